r"""Which answers are left to math-verify.

It leaves out in silence what it cannot read: "\frac12\text{ or more}" is 1/2 to it. So it is only
asked about forms that it is known to read as a whole, and that cannot explode.
"""

import re

from step_infer.client.canonical.markup import plain
from step_infer.client.canonical.tokens import FUNCTION_NAMES

_EXPLOSIVE = re.compile(
    r"(?:\^\s*(?:[{(][^{}()^]*|\w)\s*){2}\^|\d{4,}[})\s]*!|![})\s]*!|\^\s*\{?\s*\d{5,}"
)
"""Towers of powers and factorials that only fail by never ending."""
_OPERATION = re.compile(
    r"\\int\s*(?:_.*?\^.*?)?.*?\bd\s*[a-z]\b"
    r"|\\(?:sum|prod)\s*_\s*\{[^{}]*=[^{}]*\}\s*\^\s*(?:\{[^{}]*\}|\\?\w+)\s*[\w\\({]"
    r"|\\lim\s*_\s*\{[^{}]*\\(?:to|rightarrow)[^{}]*\}\s*[\w\\({]"
    r"|\\[dt]?binom\s*\{[^{}]*\}\s*\{[^{}]*\}",
    re.S,
)
"""What the canonical forms leave to it."""
_COMMANDS = FUNCTION_NAMES | {
    "int", "sum", "prod", "lim", "to", "rightarrow", "binom", "dbinom", "tbinom", "infty", "frac",
    "dfrac", "tfrac", "sqrt", "pi", "cdot", "times", "theta", "alpha", "beta", "gamma", "lambda",
}  # fmt: skip
_LETTERS = re.compile(r"\\([A-Za-z]+)")
_MARKS = re.compile(r"[\w\s+\-*/^=(){}\\.!]*")
_OPEN_END = re.compile(r"(?:[-+*/^_=({\\]|\\[A-Za-z]*(?<!pi)(?<!infty)(?<!a)(?<!theta))\s*$")


def math_verify_reads(text: str) -> bool:
    """Return whether math-verify reads all of an answer that has no canonical form."""
    text = plain(text)
    return (
        _OPERATION.search(text) is not None
        and _MARKS.fullmatch(text) is not None
        and _COMMANDS.issuperset(_LETTERS.findall(text))
        and _OPEN_END.search(text) is None
        and all(text.count(a) == text.count(b) for a, b in ("()", "{}"))
    )


def is_explosive(text: str) -> bool:
    """Return whether an answer may take for ever to evaluate."""
    return _EXPLOSIVE.search(text) is not None
