"""Answers that are compared as text: whole ones, and what a pattern finds."""

import unicodedata
from collections.abc import Hashable
from typing import Any

from step_infer.client.answers import extract_boxed
from step_infer.client.kinds.kind import KeyedKind, Open, final_part
from step_infer.client.kinds.stated import statements
from step_infer.errors import InputError

LONGEST_PATTERN = 200
"""Characters in a pattern."""
_PATTERN_BYTES = 22_000
"""Memory of a compiled pattern, on which the time of a search depends: "x{1,400}" takes more."""
_SEARCHED = 2000
"""Characters of a response's end in which a pattern is looked for."""
_MOST_MATCHES = 250
"""A search is linear in the text, but each match begins another one. With the bounds above, all of
them take half a second at most."""
_LEADING_MARKS = " \t\"'“”‘’«»*_`$"
_TRAILING_MARKS = _LEADING_MARKS + ".,;:!?"


class ExactKind(KeyedKind):
    """A text; equal but for case, spaces, punctuation at the ends and Unicode's variants."""

    def extract(self, text: str, think_end: str | None) -> str | None | Open:
        """Return the boxed text, or else the stated one, or a final part of one line."""
        boxed = extract_boxed(text, think_end)
        if boxed is not None:
            return boxed
        final = final_part(text, think_end)
        stated = next(statements(final), None)
        if stated is not None:
            return stated.answer
        lines = [line.strip() for line in final.splitlines() if line.strip()]
        return lines[0] if len(lines) == 1 else None

    def read(self, answer: str) -> Hashable | None:
        """Return the normal form of an answer."""
        return normal_text(answer)


class RegexKind(KeyedKind):
    """What a pattern's group holds where it last matches; equal as normalised text."""

    def __init__(self, pattern: str) -> None:
        """Compile a pattern.

        Args:
            pattern: in the syntax of RE2, with one group.

        Raises:
            InputError: it cannot be compiled, is too long, or has no group or several.
        """
        super().__init__()
        self._pattern = _compiled(pattern)

    def extract(self, text: str, think_end: str | None) -> str | None | Open:
        """Return the group of the last match in which it took part; None for too many matches."""
        final = final_part(text, think_end)[-_SEARCHED:]
        last = None
        # RE2 encodes the text: half of a surrogate pair has no code.
        final = final.encode(errors="replace").decode()
        for count, found in enumerate(self._pattern.finditer(final)):
            if count == _MOST_MATCHES:
                return None
            last = found.group(1) or last
        return last

    def read(self, answer: str) -> Hashable | None:
        """Return the normal form of an answer."""
        return normal_text(answer)


def normal_text(text: str) -> str:
    """Return a text without case, runs of spaces, and punctuation at its ends."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = " ".join(folded.split())
    return folded.lstrip(_LEADING_MARKS).rstrip(_TRAILING_MARKS) or folded


def _compiled(pattern: str) -> Any:
    # Linear in the text, unlike Python's own, which one pattern of a client could stop for ever.
    import re2

    if len(pattern) > LONGEST_PATTERN:
        raise InputError(
            f"Expected an answer pattern of at most {LONGEST_PATTERN} characters, found "
            f"{len(pattern)}. Hint: it need not match more than the words before the answer."
        )
    options = re2.Options()
    options.max_mem = _PATTERN_BYTES
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:  # half of a surrogate pair has no code
        reason = error.reason if isinstance(error, UnicodeEncodeError) else error.args[0]
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
        raise InputError(
            f"Expected an answer pattern in the syntax of RE2, found {pattern!r}: {reason}. "
            "Hint: RE2 has neither look-around nor back-references, and repeats are to be small."
        ) from error
    if compiled.groups != 1:
        raise InputError(
            f"Expected an answer pattern with one group, found {compiled.groups} in {pattern!r}. "
            r"Hint: such as 'Total: (\d+)'; (?:...) groups without being one."
        )
    return compiled
