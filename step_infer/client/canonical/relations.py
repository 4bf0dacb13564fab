"""Equations and inequalities."""

import re
from collections.abc import Hashable, Sequence

from step_infer.client.canonical import exact
from step_infer.client.canonical.brackets import closes_last
from step_infer.client.canonical.exact import Value
from step_infer.client.canonical.expression import read_value
from step_infer.client.canonical.field import NotExact
from step_infer.client.canonical.form import Canonical
from step_infer.client.canonical.intervals import (
    EVERYTHING,
    End,
    Interval,
    intervals_form,
    join,
    read_end,
)
from step_infer.client.canonical.tokens import FUNCTION_NAMES, Token

RELATIONS = ("<=", ">=", "<", ">", "!=", "=")
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}


_FUNCTION_CALL = re.compile(r"(?:[A-Z]|[a-hp-sx-z])\([a-z]\)")
_PLAIN_NAME = re.compile(
    r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:[A-Za-z0-9]|\{[^{}]*\})|(?:\^\{?-1\}?)?\([A-Za-z0-9]+\))?"
    r"|P\([^()]*\)"
)
_PAIR_OF_NAMES = re.compile(r"\([A-Za-z](?:,(?:[A-Za-z]|\\[A-Za-z]+))+\)")
_NO_NAMES = FUNCTION_NAMES | {"frac", "dfrac", "tfrac", "sqrt", "pi", "binom"}


def subject_name(tokens: Sequence[Token]) -> str | None:
    """Return the name on the left of "x = 5"; None where that is an expression."""
    if not tokens:
        return None
    if tokens[0].text == "{" and closes_last(tokens):
        return subject_name(tokens[1:-1])
    kinds = {token.kind for token in tokens}
    if tokens[0].kind in ("text", "letter") and kinds <= {"text", "mark", "letter", "symbol"}:
        return " ".join(token.text for token in tokens)
    if tokens[0].kind == "command" and tokens[0].text in _NO_NAMES:
        return None
    written = "".join(
        f"\\{token.text}" if token.kind == "command" else token.text for token in tokens
    )
    if _FUNCTION_CALL.fullmatch(written):
        return FUNCTION_NAME
    if written != "i" and (_PLAIN_NAME.fullmatch(written) or _PAIR_OF_NAMES.fullmatch(written)):
        return re.sub(r"[{}\\]", "", written)
    return None


FUNCTION_NAME = "f(x)"


def read_inequality(
    left: Sequence[Token], mark: str, right: Sequence[Token], text: str, plus: int
) -> Canonical:
    """Read an inequality: bounds of a name, or a relation between symbols."""
    for subject, bound, relation in ((left, right, mark), (right, left, _FLIPPED[mark])):
        name = subject_name(subject)
        end = read_end(bound, relation in ("<=", ">="), text, plus) if name else None
        if name and end:
            return _bounded(name, relation, end)
        inner = subject[1:-1]
        if (
            inner
            and subject[0].text == subject[-1].text == "|"
            and not any(token.text == "|" for token in inner)
            and relation in _FLIPPED
        ):
            value, size = read_value(inner, plus)[0], read_value(bound, plus)[0]
            sides = [
                _half_line(value - size, relation),
                _half_line(value + size, _FLIPPED[relation]),
            ]
            if size.real is not None and size.real > 0 and sides[0] and sides[1]:
                return join([sides[0], sides[1]], relation in (">", ">="), ("and",))
    difference = read_value(left, plus)[0] - read_value(right, plus)[0]
    if not difference.free or difference.numbers is None:
        raise NotExact("an inequality between numbers")
    line = _half_line(difference, mark)
    if line is not None:
        return line
    # Which side is larger at one point decides how the two sides are put.
    sign = mark if difference.numbers[0].real > 0 else _FLIPPED[mark]
    return relation_form(sign, difference)


def relation_form(sign: str, difference: Value) -> Canonical:
    """Return the form of a relation between symbols: how a difference compares with zero."""
    key = ("relation", sign, proportional(difference))
    return Canonical("relation", key, loose=difference.loose, heavy=difference.heavy)


def _half_line(difference: Value, mark: str) -> Canonical | None:
    """Return where a linear function of one symbol is below or above zero."""
    linear = linear_zero(difference)
    if linear is None or linear[1].real is None:
        return None
    slope, zero = linear
    end = End(zero.real or 0.0, zero.key, mark in ("<=", ">="))
    return _bounded(next(iter(difference.free)), mark if slope > 0 else _FLIPPED[mark], end)


def linear_zero(value: Value) -> tuple[float, Value] | None:
    """Return the slope's sign and the zero of a linear function of one symbol."""
    if len(value.free) != 1 or value.loose or value.numbers is None:
        return None
    unknown = exact.symbol(next(iter(value.free)))
    assert unknown.numbers is not None
    (x, y), (u, v) = ([_at(form, point) for point in (0, 1)] for form in (unknown, value))
    slope = (v - u) / (y - x)
    last = u + slope * (_at(unknown, 2) - x)
    if last.key != _at(value, 2).key or slope.real is None or slope.exact == 0:
        return None
    return slope.real, x - u / slope


def _at(value: Value, point: int) -> Value:
    numbers = value.numbers
    return Value(
        None, (value.image[point],) * 3, None, None if numbers is None else (numbers[point],) * 3
    )


def _bounded(name: str, relation: str, end: End) -> Canonical:
    if relation == "!=":
        opened = End(end.number, end.key, False)
        parts = [Interval(EVERYTHING.low, opened), Interval(opened, EVERYTHING.high)]
    elif relation in ("<", "<="):
        parts = [Interval(EVERYTHING.low, end)]
    else:
        parts = [Interval(end, EVERYTHING.high)]
    return intervals_form(parts, name)


def is_function_name(name: str) -> bool:
    """Return whether a name only says that a function follows."""
    return name in (FUNCTION_NAME, "y", "f", "g", "h")


def proportional(value: Value) -> Hashable:
    """Return what a value and its multiples have in common."""
    first, second, third = (Value(None, (element,) * 3) for element in value.image)
    return ((second / first).image[0], (third / first).image[0])
