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


_ALL = "all real numbers"
_SYNONYMS = {
    "dne": "does not exist",
    **dict.fromkeys(
        (
            "nosolution",
            "nosolutions",
            "no solution",
            "no solutions",
            "no real solution",
            "no real solutions",
            "no real roots",
        ),
        "empty",
    ),
    "real numbers": _ALL,
    "all reals": _ALL,
    "all real number": _ALL,
    "all real numbers": _ALL,
    "the set of all real numbers": _ALL,
    "every real number": _ALL,
    "any real number": _ALL,
    "empty set": "empty",
    "the empty set": "empty",
    "infinity": "infinity",
    "positive infinity": "infinity",
    "inf": "infinity",
    "negative infinity": "minus infinity",
    "- infinity": "minus infinity",
}


def known_words(text: str) -> Canonical | None:
    """Return the form of words with a meaning of their own; None where there is none."""
    bare = text.replace(" ", "")
    if bare in (r"\emptyset", r"\varnothing", r"\{\}", "{}", r"\{\emptyset\}"):
        return Canonical("intervals", ("intervals", ()))
    if bare in (r"\mathbb{R}", r"\mathbbR", r"\R", r"\Reals", r"\mathbf{R}", r"\Bbb{R}"):
        return intervals_form([EVERYTHING])
    if bare in (r"\infty", r"+\infty", r"-\infty", "infty", r"\infinity"):
        return _infinity(-1 if bare.startswith("-") else 1)
    if "\\" in TEXT_GROUP.sub("", text):
        return None
    words = " ".join(TEXT_GROUP.sub(r" \1 ", text).lower().split()).strip(" .!")
    meaning = _SYNONYMS.get(words)
    if meaning == _ALL:
        return intervals_form([EVERYTHING])
    if meaning == "empty":
        return Canonical("intervals", ("intervals", ()))
    if meaning in ("infinity", "minus infinity"):
        return _infinity(1 if meaning == "infinity" else -1)
    if meaning is not None:
        return Canonical("words", ("words", tuple(map(_singular, meaning.split()))))
    return None


def _infinity(sign: int) -> Canonical:
    return Canonical("words", ("infinity", sign))


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
