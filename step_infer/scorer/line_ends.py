r"""Line ends and blank lines across tokens: they are a property of the text, not of one token.

A text is newlines, blanks (spaces, tabs, carriage returns) and words (all else). Newlines with
nothing but blanks between them are one run; from its second newline on it is a blank line, so
"\n\n", "\n \n", "\r\n\r\n" and "\n\n\n" hold one each, in whatever tokens they come.
"""

import re
from collections.abc import Iterable

WORD_END, LINE_END, BLANK_LINE = 0, 1, 2
"""What a text can end in, blanks aside: a word (or nothing), one newline, a run of several."""

Moves = tuple[tuple[int, bool], ...]
"""For each of these, what the text ends in after one more token, and whether that ends a step."""

_WORD = "x"
_RULES = {"blank_line": LINE_END, "newline": WORD_END}
"""Which newline of a run ends a step: the one that comes after this."""

LINE_RULES = tuple(_RULES)
"""Boundary rules that look at line ends."""


def line_shape(text: str) -> str:
    r"""Return what of a token's text matters here: its newlines, and "x" for words between.

    ".\r\n \r\nSo" gives "x\n\nx", blanks alone give the empty text.
    """
    shape = re.sub(r"[^\n]+", lambda part: _WORD if part[0].strip(" \t\r") else "", text)
    return re.sub(r"\n{3,}", "\n\n", shape)


def group_by_shape(texts: Iterable[str]) -> dict[str, frozenset[int]]:
    """Return the ids of the tokens that are more than a word, by their shape.

    Args:
        texts: every token's text, in the order of the ids.
    """
    groups: dict[str, set[int]] = {}
    for token_id, text in enumerate(texts):
        shape = line_shape(text)
        if shape != _WORD:
            groups.setdefault(shape, set()).add(token_id)
    return {shape: frozenset(groups[shape]) for shape in sorted(groups)}


def shape_moves(shape: str, kind: str) -> Moves:
    """Return what a token of a shape does under a rule of `LINE_RULES`.

    A token ends a step where it holds the newline that counts: of a run the second one (the one
    that makes the line blank) for "blank_line", the first one for "newline".
    """
    moves = []
    for before in (WORD_END, LINE_END, BLANK_LINE):
        now, ends = before, False
        for character in shape:
            if character == "\n":
                ends = ends or now == _RULES[kind]
                now = min(now + 1, BLANK_LINE)
            else:
                now = WORD_END
        moves.append((now, ends))
    return tuple(moves)
