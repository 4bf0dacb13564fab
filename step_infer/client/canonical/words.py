"""Answers in words: options of multiple-choice questions, "no solution", a name."""

import re

from step_infer.client.canonical.expression import read_value
from step_infer.client.canonical.form import Canonical
from step_infer.client.canonical.intervals import EVERYTHING, intervals_form
from step_infer.client.canonical.tokens import tokenise

_LETTER = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\]]?\s*[.:]?")
_OPTION = re.compile(r"[(\[]?([A-Z]|[a-j](?=\)))[)\]]?([).:\]]+\s|[).:\]]+$)\s*(?![-+*/=^(])", re.S)
_ANOTHER = re.compile(r"(?:or|and)\b|[,;&/]")
_NAMED = re.compile(
    r"(?:option|choice|answer|alternative)s?\s*:?\s*[(\[]?([A-Za-z])[)\]]?(?:[.:),].*|\s*\(.*|\s*-.*)?",
    re.I | re.S,
)
DESCRIBED_OPTION = re.compile(r"([A-J])\s+-+\s+(?=\S*\d|[A-Za-z]{3})\S.*", re.S)
TEXT_GROUP = re.compile(r"\\text\s*\{([^{}]*)\}")


def option_form(text: str) -> Canonical | None:
    """Return the form of an option of a multiple-choice question; None where it is none."""
    shown = TEXT_GROUP.sub(r"\1", text).strip()
    for pattern in (_LETTER, _NAMED):
        found = pattern.fullmatch(shown)
        if found is not None:
            letter = found[1].upper()
            if pattern is _NAMED:
                return Canonical("choice", ("choice", letter), choice=letter)
            value = read_value(tokenise(found[1]))[0]
            return Canonical("number", ("number", value.key), value, choice=letter)
    found = _OPTION.match(shown)
    if found is not None and not _ANOTHER.match(shown, found.end()):
        letter = found[1].upper()
        return Canonical("choice", ("choice", letter), choice=letter)
    return None


_WORD = re.compile(r"[^\W_]+(?:[.'-][^\W_]+)*")
_ARTICLES = {"a", "an", "the", "is", "are", "it", "there", "they"}


def words_form(text: str) -> Canonical | None:
    """Return the form of any other words; None where the text is none."""
    shown = TEXT_GROUP.sub(r" \1 ", text)
    if "\\" in shown or not re.search(r"[^\W\d_]{2,}", shown) or re.search(r"[=^_{}<>|&#~]", shown):
        return None
    words = [word.lower() for word in _WORD.findall(shown)]
    signs = tuple(re.findall(r"[-+*/%$](?=\s|\d|$)", shown))
    kept = tuple(_singular(word) for word in words if word not in _ARTICLES) or tuple(words)
    return Canonical("words", ("words", kept) if not signs else ("words", kept, signs))


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


_MEANINGS = {
    **dict.fromkeys(
        (r"\emptyset", r"\varnothing", r"\{\}", "{}", r"\{\emptyset\}", "empty set",
         "the empty set", "nosolution", "nosolutions", "no solution", "no solutions",
         "no real solution", "no real solutions", "no real roots"),
        intervals_form([]),
    ),
    **dict.fromkeys(
        (r"\mathbb{R}", r"\mathbbR", r"\R", r"\Reals", r"\Bbb{R}", "real numbers", "all reals",
         "all real number", "all real numbers", "the set of all real numbers",
         "every real number", "any real number"),
        intervals_form([EVERYTHING]),
    ),
    **dict.fromkeys(
        (r"\infty", r"+\infty", r"\infinity", "infty", "inf", "infinity", "positive infinity"),
        Canonical("words", ("infinity", 1)),
    ),
    **dict.fromkeys(
        (r"-\infty", "- infinity", "negative infinity"), Canonical("words", ("infinity", -1))
    ),
    r"\mathbb{Z}": words_form("all integers"),
    "dne": words_form("does not exist"),
}  # fmt: skip
"""By its LaTeX without spaces, or by its words."""


def known_words(text: str) -> Canonical | None:
    """Return the form of words with a meaning of their own; None where there is none."""
    form = _MEANINGS.get(text.replace(" ", ""))
    if form is not None or "\\" in TEXT_GROUP.sub("", text):
        return form
    return _MEANINGS.get(" ".join(TEXT_GROUP.sub(r" \1 ", text).lower().split()).strip(" .!"))
