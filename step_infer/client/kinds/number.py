"""Numbers that are the same within a tolerance."""

import re
import unicodedata
from collections.abc import Hashable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from functools import lru_cache

from step_infer.client.answers import extract_boxed
from step_infer.client.kinds.kind import Open, final_part
from step_infer.client.kinds.stated import statements
from step_infer.client.worker_pool import WorkerProgram
from step_infer.errors import InputError

DEFAULT_TOLERANCE = "0.0001%"
_DIGITS = 1000
_EXACT = Context(prec=_DIGITS, Emax=MAX_EMAX, Emin=MIN_EMIN)
"""No float decides; a number of more digits is no answer."""
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"""
    (?<![\w.])(?<!\d,)
    (?P<sign>(?<![\w)\]}}])[-+])?[$€£¥]?
    (?:
      \\[dt]?frac\s?\{{(?P<over>-?\d+)\}}\s?\{{(?P<under>\d+)\}}
      | (?P<mixed>\d+)\s(?P<part>\d+)/(?P<whole>\d+)(?![\d/])
      | (?P<number>{_WHOLE}(?:\.\d+)?|\.\d+)
        (?: [eE](?P<power>[-+]?\d{{1,6}})(?!\w)
          | \s?(?:\\times|\\cdot|\*|x|×)\s?10\s?(?:\^|\*\*)\s?\{{?(?P<ten>[-+]?\d{{1,6}})\}}?
          | \s?/\s?(?P<divisor>\d+)(?![\d./]) )?
    )
    """,
    re.X,
)
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_REWRITES = (
    (re.compile(r"[\u2212\u2013\ufe63\uff0d]"), "-"),
    (re.compile(r"(?<=\d)(?=[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])"), " "),
    (re.compile(r"(?<=\d)(?:\{,\}|\\,|\\!,?|[\u2009\u202f\u00a0])(?=\d{3}(?!\d))"), ","),
)
_POWERS = re.compile("[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_AND = re.compile(
    r"\s*(?:,|;|\band\b|\bor\b|\\text\{\s*(?:and|or)\s*\})\s*\$?\s*[-+]?[$€£¥]?\s*[\d.]"
)
_EQUALS = re.compile(r"=|≈|\\approx|\\simeq|~")


class NumberKind:
    """A number, without its unit; equal within a tolerance.

    Nearness is not transitive: 1.0 may be near 1.1, and that near 1.2. A vote's groups are then
    those of `step_infer.client.answers.group_forms`: all answers of a group are near each other,
    and one that is near two groups joins the larger. Answers are bound where they are the same
    number, which is near to the same others.
    """

    program: WorkerProgram | None = None

    def __init__(self, tolerance: float | str | None = None) -> None:
        """Read a tolerance.

        Args:
            tolerance: how far apart two equal numbers may be, such as 0.01; with a percent sign, in
                parts of the larger one; None is 0.0001 %.

        Raises:
            InputError: it is no such number.
        """
        self._part, self._most = read_tolerance(tolerance)

    def extract(self, text: str, think_end: str | None) -> str | None | Open:
        """Return the boxed number, or else the stated one, or the last of the final part."""
        boxed = extract_boxed(text, think_end)
        if boxed is not None and (found := find_number(boxed)) is not None:
            return found
        final = final_part(text, think_end)
        for stated in statements(final):
            found = find_number(stated.answer)
            if found is not None:
                return found
        last = None
        for match in _NUMBER.finditer(_plain(final)):
            last = match[0] if _value(match) is not None else last
        return None if last is None else last.strip()

    def clean(self, answer: str) -> str:
        """Return an answer without spaces around it."""
        return answer.strip()

    def binding(self, answer: str) -> Hashable:
        """Return an answer's number, or the answer itself where it has none."""
        value = read_number(answer)
        return answer if value is None else value

    def compare(self, first: str, second: str, in_vote: bool) -> bool | None | Open:
        """Return whether two numbers are near each other; None where one is no number."""
        if first == second:
            return True
        a, b = read_number(first), read_number(second)
        if a is None or b is None:
            return None
        apart = _EXACT.abs(_EXACT.subtract(a, b))
        if self._most is not None:
            return apart <= self._most
        return apart <= _EXACT.multiply(self._part, max(_EXACT.abs(a), _EXACT.abs(b)))


def read_tolerance(tolerance: float | str | None) -> tuple[Decimal, Decimal | None]:
    """Return the part of the larger number, or the distance, that a tolerance allows.

    Raises:
        InputError: it is no number from 0 on, or no part below 100 %.
    """
    text = str(DEFAULT_TOLERANCE if tolerance is None else tolerance).strip()
    relative = text.endswith("%")
    try:
        value = Decimal(text.removesuffix("%"))
    except ArithmeticError:
        value = Decimal("NaN")
    if not value.is_finite() or value < 0 or (relative and value >= 100):
        raise InputError(
            "Expected an answer tolerance as a number from 0 on, or below 100%, found "
            f"{text!r:.60}. Hint: 0.01 is a distance, 1% a part of the larger number."
        )
    return (value / 100, None) if relative else (Decimal(0), value)


def find_number(text: str) -> str | None:
    """Return the number that a short text gives, as it is written; None for none, or several."""
    text = _plain(text)
    start = max((found.end() for found in _EQUALS.finditer(text)), default=0)
    found = _NUMBER.search(text, start) or _NUMBER.search(text)
    if found is None or _value(found) is None or _AND.match(text, found.end()):
        return None
    return found[0].strip()


@lru_cache(maxsize=10_000)
def read_number(text: str) -> Decimal | None:
    """Return the number that a short text gives."""
    number = find_number(text)
    found = None if number is None else _NUMBER.search(number)
    return None if found is None else _value(found)


def _plain(text: str) -> str:
    text = _POWERS.sub(lambda found: "^" + found[0].translate(_SUPERSCRIPT), text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return unicodedata.normalize("NFKC", text).replace("⁄", "/")


def _value(found: "re.Match[str]") -> Decimal | None:
    if found.end() - found.start() > _DIGITS:
        return None

    def part(name: str) -> Decimal:
        return Decimal((found[name] or "0").replace(",", ""))

    under = next((n for n in ("under", "whole", "divisor") if found[n] is not None), None)
    if under is not None and part(under) == 0:
        return None
    if found["over"] is not None:
        value = _EXACT.divide(part("over"), part("under"))
    elif found["mixed"] is not None:
        value = _EXACT.add(part("mixed"), _EXACT.divide(part("part"), part("whole")))
    else:
        value = part("number").scaleb(int(found["power"] or found["ten"] or 0), _EXACT)
        if found["divisor"] is not None:
            value = _EXACT.divide(value, part("divisor"))
    return -value if found["sign"] == "-" else value
