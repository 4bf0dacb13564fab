"""Sets of real numbers as unions of intervals."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from step_infer.client.canonical.expression import read_value
from step_infer.client.canonical.field import NotExact
from step_infer.client.canonical.form import Canonical
from step_infer.client.canonical.tokens import Token


@dataclass(frozen=True)
class End:
    """An end of an interval: a real constant, or infinite."""

    number: float
    key: Hashable
    closed: bool


@dataclass(frozen=True)
class Interval:
    """A connected set of real numbers."""

    low: End
    high: End


EVERYTHING = Interval(
    End(float("-inf"), "-inf", False),
    End(float("inf"), "inf", False),
)


def read_end(tokens: Sequence[Token], closed: bool, text: str, plus: int) -> End | None:
    """Read the end of an interval; None where it is no real constant."""
    texts = [token.text for token in tokens]
    if not texts:
        raise NotExact("no end")
    if texts[-1] in ("infty", "infinity", "inf") and len(texts) <= 2:
        negative = texts[0] == "-"
        return End(
            float("-inf") if negative else float("inf"), "-inf" if negative else "inf", False
        )
    value = read_value(tokens, plus)[0]
    return None if value.real is None else End(value.real, value.key, closed)


def intervals_form(parts: Sequence[Interval], name: str | None = None) -> Canonical:
    """Return a union of intervals; those that overlap or touch are joined."""
    merged: list[Interval] = []
    for part in sorted(parts, key=lambda part: (part.low.number, not part.low.closed)):
        if merged:
            last = merged[-1]
            touching = last.high.key == part.low.key and (last.high.closed or part.low.closed)
            if touching or (part.low.number < last.high.number and last.high.key != part.low.key):
                if part.high.number > last.high.number or (
                    part.high.key == last.high.key and part.high.closed
                ):
                    merged[-1] = Interval(last.low, part.high)
                continue
        merged.append(part)
    key = tuple((part.low.key, part.low.closed, part.high.key, part.high.closed) for part in merged)
    if len(merged) == 1 and merged[0].low.key == merged[0].high.key:
        raise NotExact("a single point")
    return Canonical("intervals", ("intervals", key), name=name, parts=tuple(merged))


def intervals_of(form: Canonical) -> list[Interval]:
    """Return the intervals of a set; a finite set's numbers are intervals of one point."""
    if form.kind == "intervals":
        return list(form.parts)
    if form.kind in ("number", "list"):
        points = []
        for item in form.items or (form,):
            if item.value is None or item.value.real is None:
                raise NotExact("a set of no numbers")
            end = End(item.value.real, item.value.key, True)
            points.append(Interval(end, end))
        return points
    raise NotExact("no set of numbers")


def complement(parts: Sequence[Interval]) -> list[Interval]:
    """Return what is left of the real numbers; the parts must be sorted."""
    found = []
    low = EVERYTHING.low
    for part in parts:
        if part.low.key != "-inf":
            high = End(part.low.number, part.low.key, not part.low.closed)
            if low.number < high.number or (low.key == high.key and low.closed and high.closed):
                found.append(Interval(low, high))
        low = End(part.high.number, part.high.key, not part.high.closed)
    if not parts or parts[-1].high.key != "inf":
        found.append(Interval(low, EVERYTHING.high))
    return found


def union(parts: Sequence[Interval]) -> list[Interval]:
    """Return a union, sorted, without overlaps."""
    form = intervals_form([*parts]) if len(parts) > 1 else None
    return intervals_of(form) if form is not None else list(parts)


def intersection(first: Sequence[Interval], second: Sequence[Interval]) -> list[Interval]:
    """Return an intersection."""
    found = []
    for a in first:
        for b in second:
            low = max((a.low, b.low), key=lambda end: (end.number, not end.closed))
            high = min((a.high, b.high), key=lambda end: (end.number, end.closed))
            if low.number < high.number or (low.key == high.key and low.closed and high.closed):
                found.append(Interval(low, high))
    return found


def join(items: Sequence[Canonical], either: bool, separators: Sequence[str]) -> Canonical:
    """Return the intervals that all of some conditions, or one of them, allow."""
    if either:
        return intervals_form([part for item in items for part in intervals_of(item)])
    common = intervals_of(items[0])
    for item in items[1:]:
        common = intersection(common, intervals_of(item))
    if not common and "and" not in separators:  # "x < 1, x > 3"
        return intervals_form([part for item in items for part in intervals_of(item)])
    return intervals_form(common)
