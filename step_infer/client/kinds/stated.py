"""Answers that a response states in words: "The answer is 42", "#### 42", "**Answer:** 42"."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

_STATED = re.compile(
    r"""
    ^\s{0,4}\#{4}[ \t]{1,4}(?P<hashes>[^\n]{1,500})
    |
    (?:\b(?P<word>answer)s?|\b(?:correct|right|best)\s(?:option|choice))[*_]{0,3}
    (?:\s(?:to|for)\s[^\n.:?]{1,80}?)?
    (?:\s{0,3}(?P<prose>\b(?:is|are|would\sbe|should\sbe|must\sbe)\b(?:\s(?:therefore|thus|then|simply))?)
        [ \t]{0,3}(?:[:=](?:[*_]{0,3}))?
      |[ \t]{0,3}[:=][*_]{0,3})
    \s{0,8}(?=(?P<rest>[^\n]{1,500}))
    |
    ^[ \t]{0,3}(?:\#{1,6}[ \t]{1,3}|\*\*)(?:the\s)?(?:final\s)?answer[ \t]{0,3}(?:\*\*)?[ \t]{0,3}\n
    \s{0,8}(?P<below>[^\n]{1,500})
    """,
    re.I | re.M | re.X,
)
_DISPLAY = re.compile(r"\s*(?:\$\$|\\\[)\s*(?P<inner>[^$]{1,500}?)\s*(?:\$\$|\\\])")
_MARKS = re.compile(r"\*\*|__|`+")
_INLINE = re.compile(r"\\[()\[\]]|\$\$")
_DOLLARS = re.compile(r"\$(?=\S)([^$\n]{1,200}?)(?<=\S)\$(?!\d)")
_END = re.compile(
    r"[.!?](?=\s|$)|[,;:]?\s(?:because|since|which|where|when|while|after|so|but|if|and\s(?:this|it"
    r"|that|we|the)|as\s(?:we|the|it|this|there))\b|\s\((?:because|since|i\.e|or\s|as\s)",
    re.I,
)
_LONGEST_STATED = 200
_MOST_STATEMENTS = 50


@dataclass(frozen=True)
class Statement:
    """What a response states its answer to be."""

    answer: str
    """The words after "answer is", up to the end of the sentence; never empty."""
    whole: str
    """The same up to the end of the line, as far as it is looked at."""
    in_prose: bool
    """Whether it is said in a sentence ("is") rather than by a form of its own."""


def statements(final: str) -> Iterator[Statement]:
    """Yield what a response states, the last first.

    Args:
        final: its final part.
    """
    for found in islice(reversed(list(_STATED.finditer(final))), _MOST_STATEMENTS):
        name = next(name for name in ("hashes", "rest", "below") if found[name] is not None)
        display = _DISPLAY.match(final, found.start(name))
        line = found[name] if display is None else display["inner"]
        whole = _INLINE.sub("", _DOLLARS.sub(r"\1", _MARKS.sub("", line))).strip()
        answer = _END.split(whole, maxsplit=1)[0].strip(' \t*_.,;:"“”')
        if 0 < len(answer) <= _LONGEST_STATED:
            yield Statement(answer, whole, found["prose"] is not None)
