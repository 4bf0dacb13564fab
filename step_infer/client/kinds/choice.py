"""Letters of multiple-choice options."""

import re
from collections.abc import Hashable

from step_infer.client.answers import extract_boxed
from step_infer.client.canonical import canonical
from step_infer.client.kinds.kind import KeyedKind, Open, final_part
from step_infer.client.kinds.stated import statements

_LONGEST_LINE = 300
_LETTERS = r"[(\[]?\b[A-Z]\b[)\]]?"
_SEVERAL = re.compile(rf"{_LETTERS}(?:(?:\s*(?:,\s*and|,|and|&)\s*){_LETTERS})+[.]?")
_TOGETHER = re.compile(r"[A-J]{2,10}")
_LEADING = re.compile(
    r"(?:(?:the\s)?(?:option|choice|letter|answer)\s)?[(\[]?"
    r"(?:(?P<upper>[A-Z])(?![\w'’])|(?P<lower>[a-z])(?=[)\]]))[)\]]?",
    re.I,
)
_UNDECIDED = re.compile(r"\s*(?:or|/|and/or)\s*(?:option\s)?[(\[]?[A-Z]\b")
_MENTION = re.compile(r"\(([A-Z])\)|\b[Oo]ption\s\(?([A-Z])\b|\*\*\(?([A-Z])\)?[.:]?\s?\*\*")
_MARKS = re.compile(r"\*\*|__|`+|^#+\s")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|rm)\s*\{([^{}]*)\}")


class ChoiceKind(KeyedKind):
    """A letter, or several; equal if the letters are."""

    def extract(self, text: str, think_end: str | None) -> str | None | Open:
        """Return the letter in the box, or else the stated one, or that of the last line."""
        boxed = extract_boxed(text, think_end)
        letter = None if boxed is None else read_choice(boxed)
        return letter or extract_choice(final_part(text, think_end))

    def read(self, answer: str) -> Hashable | None:
        """Return the letters of an answer."""
        return read_choice(answer)


def read_choice(text: str) -> str | None:
    """Return the letter that a short text names, such as "(C) 42", or its letters: "A, C"."""
    text = _TEXT.sub(r"\1", _MARKS.sub("", text)).strip(" \t$.")
    if _SEVERAL.fullmatch(text):
        return ", ".join(sorted(set(re.findall(r"\b[A-Z]\b", text))))
    if _TOGETHER.fullmatch(text) and sorted(set(text)) == list(text):
        return ", ".join(text)
    if len(text) > _LONGEST_LINE:
        return None
    form = canonical(text)
    return None if form is None else form.choice


def extract_choice(final: str) -> str | None:
    """Return the letter that a response states, or else that of its last line.

    Args:
        final: its final part.
    """
    for stated in statements(final):
        letter = read_choice(stated.whole) or _leading(stated.whole)
        if letter is not None:
            return letter
    lines = [line.strip() for line in final.splitlines() if line.strip()]
    if not lines or len(lines[-1]) > _LONGEST_LINE:
        return None
    letter = read_choice(lines[-1])
    if letter is not None:
        # The last of the options, written out, is no choice.
        before = read_choice(lines[-2]) if len(lines) > 1 else None
        return letter if before in (None, letter) else None
    mentioned = {"".join(found) for found in _MENTION.findall(lines[-1])}
    return mentioned.pop() if len(mentioned) == 1 else None


def _leading(text: str) -> str | None:
    """Return the letter with which a statement begins, where it goes on in prose."""
    found = _LEADING.match(text)
    if found is None or _UNDECIDED.match(text, found.end()):
        return None
    letter = found["upper"] or found["lower"]
    bare = text[found.start() : found.end()] == letter
    prose = bare and re.match(r"\s[a-z]", text[found.end() :]) is not None
    if found["upper"] and not letter.isupper() and bare:
        return None  # "the answer is a number"
    return None if prose and letter == "I" else letter.upper()
