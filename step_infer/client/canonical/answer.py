"""Reads an answer into its canonical form."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import isclose

from step_infer.client.canonical import exact, functions
from step_infer.client.canonical.brackets import closes_last, find_outer, split_outside
from step_infer.client.canonical.exact import Value
from step_infer.client.canonical.expression import read_value
from step_infer.client.canonical.field import NotExact
from step_infer.client.canonical.form import (
    Canonical,
    list_form,
    named,
    number_form,
    whole_form,
)
from step_infer.client.canonical.intervals import (
    EVERYTHING,
    Interval,
    complement,
    intersection,
    intervals_form,
    intervals_of,
    join,
    read_end,
    union,
)
from step_infer.client.canonical.markup import plain
from step_infer.client.canonical.quantity import compound_form, read_quantity, read_ratio
from step_infer.client.canonical.relations import (
    FUNCTION_NAME,
    RELATIONS,
    is_function_name,
    linear_zero,
    proportional,
    read_inequality,
    relation_form,
    subject_name,
)
from step_infer.client.canonical.spelled import date, number_in_words, time_of_day
from step_infer.client.canonical.tokens import Token, tokenise
from step_infer.client.canonical.units import Unit
from step_infer.client.canonical.words import (
    DESCRIBED_OPTION,
    TEXT_GROUP,
    known_words,
    option_form,
    words_form,
)

LONGEST_ANSWER = 2000
"""Characters in an answer that is still read."""
_MOST_ITEMS = 200
_ALL_BUT = re.compile(
    r"(?is)^(?:\\text\s*\{)?\s*all real(?:s|\s+numbers)(?:\s+x)?,?\s+(?:except|but)(?:\s+for)?"
    r"\s*\}?\s*(?:x\s*(?:=|\\ne))?(.*)$"
)


def canonical(text: str) -> Canonical | None:
    """Return the canonical form of an answer; None where it is not understood.

    It takes a bounded time and never fails.
    """
    if len(text) > LONGEST_ANSWER:
        return None
    text = plain(text)
    if len(text) > 2 * LONGEST_ANSWER or not text:
        return None
    number = number_in_words(TEXT_GROUP.sub(r"\1", text) if text.startswith(r"\text") else text)
    text = "".join(number) if number is not None else text
    text = _ALL_BUT.sub(r"\\mathbb{R}\\setminus \\{\1\\}", text)
    try:
        form: Canonical | None = (
            option_form(text)
            or known_words(text)
            or time_of_day(TEXT_GROUP.sub(r" \1", text).strip())
            or date(" ".join(TEXT_GROUP.sub(r" \1 ", text).split()))
            or compound_form(text)
            or _read(text)
        )
    except (NotExact, RecursionError, OverflowError, ZeroDivisionError, ValueError):
        form = words_form(text)
    described = DESCRIBED_OPTION.fullmatch(TEXT_GROUP.sub(r"\1", text).strip())
    if described is not None:
        form = form or Canonical("words", ("words", text))
        form = replace(form, choice=described[1], described=True)
    return form


_SEPARATORS = (",", ";", "or", "and", "newline")


def _read(text: str) -> Canonical:
    # "{,}" groups digits by three; otherwise it is a decimal comma.
    text = re.sub(r"(?:(?<=\b0)|(?<=\d)(?!\{,\}(?:\d{2,3}\{|\d{3}(?!\d))))\{,\}(?=\d)", ".", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d)", ",", text)
    tokens = tokenise(text)
    if not tokens:
        raise NotExact("nothing")
    return _answer(tokens, text)


def _answer(tokens: Sequence[Token], text: str) -> Canonical:
    while len(tokens) > 1 and tokens[-1].text in (",", ";", "newline"):
        tokens = tokens[:-1]
    parts, marks = split_outside(tokens, ("!=",))
    name = subject_name(parts[0]) if len(marks) == 1 else None
    if name and not _has_relation(parts[1]):  # "x \ne 1, 2"
        points = intervals_of(_answer(parts[1], text))
        return named(intervals_form(complement(union(points))), name)
    parts, separators = split_outside(tokens, _SEPARATORS)
    if separators:
        return _several(parts, separators, text)
    return _one(tokens, text)


_POLAR = [("words", (word,)) for word in ("yes", "no", "true", "false")]
_DOTS = ("ldots", "dots", "cdots", "dotsc", "dotsb")


def _several(parts: list[Sequence[Token]], separators: list[str], text: str) -> Canonical:
    kept = [part for part in parts if part]
    if len(kept) > _MOST_ITEMS:
        raise NotExact("too many items")
    if len(kept) < 2:
        return _one(kept[0] if kept else (), text)
    items: list[Canonical] = []
    if any(_is_dots(part) for part in kept):
        shown = tuple("..." if _is_dots(part) else _one(part, text).key for part in kept)
        return Canonical("sequence", ("sequence", shown))
    for part in kept:
        items += _expanded(part, text)
    if all(item.kind == "intervals" for item in items) and any(
        _has_relation(part) for part in kept
    ):
        names = {item.name for item in items}
        if len(names) == 1:
            joined = join(items, "or" in separators, separators)
            return named(joined, names.pop())
        raise NotExact("several unknowns")
    sets = all(item.kind == "intervals" for item in items) and not all(i.items for i in items)
    if sets and len({item.name for item in items}) == 1:
        return named(join(items, True, separators), items[0].name)
    if all(item.key in _POLAR for item in items):  # an answer each to several questions
        return whole_form("tuple", len(items), items)
    if re.search(r"\\(?:wedge|vee|land|lor)(?![a-z])", text) and not items[0].name:
        raise NotExact("a formula of logic")
    # "x = 3, 4" and "x = 3 or x = 4" say what x is, as does "x_1 = 3, x_2 = 4".
    first = items[0].name
    if first and set(separators) != {"newline"} and {item.name for item in items} <= {first, None}:
        return _listed(items, first)
    stems = {re.sub(r"_\d+$", "", item.name or "") for item in items}
    if len(stems) == 1 and "" not in stems:
        return _listed(items, stems.pop())
    names_given = [item.name for item in items]
    if all(names_given) and len(set(names_given)) == len(items):
        items.sort(key=lambda item: item.name or "")
        return whole_form("assignments", tuple(item.name for item in items), items)
    return list_form(items)


def _listed(items: Sequence[Canonical], name: str, distinct: bool = False) -> Canonical:
    return named(list_form([named(item, None) for item in items], distinct), name)


def _is_dots(tokens: Sequence[Token]) -> bool:
    texts = [token.text for token in tokens]
    return (len(texts) == 1 and texts[0] in _DOTS) or texts == [".", ".", "."]


def _has_relation(tokens: Sequence[Token]) -> bool:
    return any(token.kind == "mark" and token.text in RELATIONS for token in tokens)


def _expanded(tokens: Sequence[Token], text: str) -> list[Canonical]:
    """Return what one item of a list stands for: two answers where it holds "plus or minus"."""
    form = _one(tokens, text)
    if form.kind == "list" and any(token.text in ("pm", "mp") for token in tokens):
        return [named(item, form.name) if form.name else item for item in form.items]
    return [form]


def _one(tokens: Sequence[Token], text: str) -> Canonical:
    if not tokens:
        raise NotExact("nothing")
    if any(token.kind == "command" and token.text in ("pm", "mp") for token in tokens):
        return _plus_and_minus(tokens, text)
    return _single(tokens, text, 1)


def _plus_and_minus(tokens: Sequence[Token], text: str) -> Canonical:
    first, second = (_single(tokens, text, plus) for plus in (1, -1))
    if first.name:
        return _listed([first, second], first.name, distinct=True)
    return list_form([first, second], distinct=True)


def _single(tokens: Sequence[Token], text: str, plus: int) -> Canonical:
    if not tokens:
        raise NotExact("nothing")
    about = find_outer(tokens, "approx")
    if about is not None:
        # "x = \sqrt{2} \approx 1.41" says x exactly, "x \approx 1.41" as well as it can.
        near, name = _single(tokens[about + 1 :], text, plus), subject_name(tokens[:about])
        if name or not about:
            return named(near, name)
        form = _single(tokens[:about], text, plus)
        sizes = [part.value.real for part in (form, near) if part.value is not None]
        if len(sizes) < 2 or None in sizes or not isclose(*sizes, rel_tol=0.05):  # type: ignore[arg-type]
            raise NotExact("no approximation")
        return form
    modulus = find_outer(tokens, "pmod")
    if modulus is not None:
        return _congruence(tokens[:modulus], tokens[modulus + 1 :], plus)
    parts, marks = split_outside(tokens, (*RELATIONS, "=="))
    if marks:
        return _related(parts, marks, text, plus)
    at = find_outer(tokens, "in")
    if at is not None:
        return named(_single(tokens[at + 1 :], text, plus), subject_name(tokens[:at]))
    if split_outside(tokens, _OPERATIONS)[1]:
        return _set(tokens, text, plus)
    if len(tokens) > 1 and all(token.kind == "number" for token in tokens):
        return list_form([_single([token], text, plus) for token in tokens])
    label = tokens[0].text if tokens[0].kind == "text" else ""
    rest = tokens[1 if label.endswith(":") else 2 :]
    if rest and label and (label.endswith(":") or tokens[1].text == ":"):
        return named(_single(rest, text, plus), label.rstrip(": ").lower())
    parts, marks = split_outside(tokens, (":",))
    if marks:
        return read_ratio(parts, text, plus)
    first, last = tokens[0], tokens[-1]
    if first.text == "[" or (first.text in ("(", "]") and first.kind == "mark"):
        bracketed = _bracketed(tokens, text, plus)
        if bracketed is not None:
            return bracketed
    if first.text == r"\{" and last.text == r"\}" and closes_last(tokens):
        return _braces(tokens[1:-1], text, plus)
    begins = find_outer(tokens, "begin")
    if begins is not None:
        scale = None
        if begins:
            sign = begins == 1 and tokens[0].text == "-"
            scale = Value(Fraction(-1)) if sign else read_value(tokens[:begins], plus)[0]
        return _matrix(tokens[begins:], text, scale)
    if first.kind == "command" and first.text == "mathbb":
        return _set(tokens, text, plus)
    return read_quantity(tokens, text, plus)


def _congruence(tokens: Sequence[Token], modulus: Sequence[Token], plus: int) -> Canonical:
    sides, marks = split_outside(tokens, ("==", "="))
    divisor = read_value(modulus)[0].exact
    value = read_value(sides[-1], plus)[0]
    if divisor is None or divisor.denominator != 1 or len(sides) > 2:
        raise NotExact("an unknown modulus")
    form = number_form(
        functions.remainder(value, int(divisor)), Unit(Fraction(1), ((f"mod {divisor}", 1),))
    )
    return replace(form, name=subject_name(sides[0])) if marks else form


def _bracketed(tokens: Sequence[Token], text: str, plus: int) -> Canonical | None:
    """Return a tuple or an interval; None where the bracket begins an expression."""
    opening, closing = tokens[0].text, tokens[-1].text
    if closing not in (")", "]", "["):
        return None
    turned = opening == "]" or closing == "["  # ]1, 2[ is open
    inner = tokens[1:-1]
    if not turned and not closes_last(tokens):
        return None
    parts, separators = split_outside(inner, (",", ";"))
    if not separators:
        if inner and inner[0].text == "begin":
            return _single(inner, text, plus)
        if opening == "[" and closing == "]" or opening == "(" == closing:
            return _one(inner, text) if opening == "[" and inner else None
        return None
    if any(not part for part in parts) or len(parts) > _MOST_ITEMS:
        raise NotExact("an empty place in a tuple")
    if len(parts) == 2:
        ends = _interval(parts, opening, closing, text, plus)
        if ends is not None:
            return ends
    if turned:
        raise NotExact("no interval")
    items = [_single(part, text, plus) for part in parts]
    return whole_form("tuple", len(items), items)


def _braces(tokens: Sequence[Token], text: str, plus: int) -> Canonical:
    if not tokens:
        return intervals_form([])
    for mark in ("|", ":"):
        parts, marks = split_outside(tokens, (mark,))
        if len(marks) == 1 and len(parts) == 2 and parts[0] and parts[1]:
            condition = _answer(parts[1], text)
            return named(condition, None)
    parts, _ = split_outside(tokens, (",", ";", "and", "or"))
    if len(parts) > 1 and all(map(_has_relation, parts)):
        return _answer(tokens, text)
    items: list[Canonical] = []
    for part in parts:
        items += _expanded(part, text)
    return list_form(items, distinct=True)


_MATRICES = frozenset((
    "pmatrix", "bmatrix", "Bmatrix", "matrix", "smallmatrix", "array", "psmallmatrix",
))  # fmt: skip


def _matrix(tokens: Sequence[Token], text: str, scale: Value | None) -> Canonical:
    written = text[tokens[0].start : tokens[-1].end]
    found = re.fullmatch(
        r"\\begin\s*\{([A-Za-z]+)\}(?:\s*\{[lcr|]+\})?(.*)\\end\s*\{\1\}", written, re.S
    )
    if found is None or found[1] not in _MATRICES:
        raise NotExact("an environment that is no matrix")
    body = re.sub(r"\\hline", "", found[2]).strip()
    rows = [row for row in re.split(r"\\\\(?:\[[^]]*\])?|\\cr(?![a-z])", body) if row.strip()]
    cells = [[_read(cell) for cell in re.split(r"(?<!\\)&", row)] for row in rows]
    if not rows or len({len(row) for row in cells}) != 1 or len(rows) * len(cells[0]) > _MOST_ITEMS:
        raise NotExact("a ragged matrix")
    flat = tuple(cell for row in cells for cell in row)
    if scale is not None:
        if any(cell.value is None or cell.unit for cell in flat):
            raise NotExact("a multiple of no matrix of numbers")
        flat = tuple(number_form(scale * cell.value) for cell in flat if cell.value is not None)
    return whole_form("matrix", (len(rows), len(cells[0])), flat)


def _interval(
    parts: Sequence[Sequence[Token]], opening: str, closing: str, text: str, plus: int
) -> Canonical | None:
    try:
        low = read_end(parts[0], opening == "[", text, plus)
        high = read_end(parts[1], closing == "]", text, plus)
    except NotExact:
        return None
    if low is None or high is None or not low.number < high.number:
        return None
    form = intervals_form([Interval(low, high)])
    if opening == "(" and closing == ")" and "inf" not in (high.key, str(low.key)[1:]):
        # It may be a pair of numbers as well.
        form = replace(form, items=tuple(_single(part, text, plus) for part in parts))
    return form


_OPERATIONS = ("cup", "cap", "setminus")


def _set(tokens: Sequence[Token], text: str, plus: int) -> Canonical:
    """Read unions, intersections and differences, from left to right."""
    parts, operations = split_outside(tokens, _OPERATIONS)
    if operations and set(operations) == {"cup"}:
        forms = [_single(part, text, plus) for part in parts]
        if all(form.kind in ("number", "list") for form in forms):
            items = [item for form in forms for item in form.items or (form,)]
            if any(item.value is None or item.value.free for item in items):
                raise NotExact("a union of unknown sets")
            return list_form(items, distinct=True)
    found: list[Interval] | None = None
    for operation, part in zip(["", *operations], parts, strict=True):
        written = "".join(token.text for token in part)
        if written in ("mathbb{R}", "mathbbR"):
            operand = [EVERYTHING]
        elif not operations:
            raise NotExact("an unknown set")
        else:
            operand = intervals_of(_single(part, text, plus))
        if found is None:
            found = operand
        elif operation == "cup":
            found = union([*found, *operand])
        elif operation == "cap":
            found = intersection(found, operand)
        else:
            found = intersection(found, complement(union(operand)))
    assert found is not None
    return intervals_form(found)


def _related(parts: list[Sequence[Token]], marks: list[str], text: str, plus: int) -> Canonical:
    if "==" in marks or any(not part for part in parts):
        raise NotExact("a congruence")
    if set(marks) == {"="}:
        return _equation(parts, text, plus)
    if len(parts) == 2:
        return read_inequality(parts[0], marks[0], parts[1], text, plus)
    if len(parts) == 3:
        first = read_inequality(parts[0], marks[0], parts[1], text, plus)
        second = read_inequality(parts[1], marks[1], parts[2], text, plus)
        if first.kind == second.kind == "intervals" and first.name == second.name:
            return named(join([first, second], False, ("and",)), first.name)
    raise NotExact("a chain of relations")


def _equation(parts: list[Sequence[Token]], text: str, plus: int) -> Canonical:
    names = [subject_name(part) for part in parts]
    if len(parts) > 2:
        # "S = 2 + 3 = 5" ends with what it is; "x = y = 5" says something of two.
        if names[0] and not any(names[1:-1]):
            return _equation([parts[0], parts[-1]], text, plus)
        if any(names):
            raise NotExact("a chain of equations")
        return _single(parts[-1], text, plus)
    left, right = parts
    if names[1] and not names[0]:
        left, right, names = right, left, [names[1], names[0]]
    if names[0]:
        form = _single(right, text, plus)
        shown: Hashable = None
        if form.kind == "number" and form.value is not None and form.value.free:
            try:
                # y, f(x) and the like are one name here.
                subject = exact.symbol("y") if is_function_name(names[0]) else read_value(left)[0]
                shown = ("relation", "=", proportional(subject - form.value))
            except NotExact:
                shown = None
        name = FUNCTION_NAME if shown is not None and is_function_name(names[0]) else names[0]
        return replace(form, name=name, relation=shown, choice=None)
    try:
        subject = read_value(left, plus)[0]
    except NotExact:
        written = "".join(token.text for token in left)
        if any(map(str.isdigit, written)):
            raise
        return replace(_single(right, text, plus), name=written, relation=None, choice=None)
    difference = subject - read_value(right, plus)[0]
    if not difference.free:
        # "2 + 3 = 5" is as good as 5.
        if difference.exact == 0:
            return _single(right, text, plus)
        raise NotExact("a false equation")
    linear = linear_zero(difference)
    if linear is not None:
        return replace(number_form(linear[1]), name=next(iter(difference.free)))
    relation = relation_form("=", difference)
    if len(subject.free) == 1 and subject.loose and difference.free == subject.free:
        found = _single(right, text, plus)
        if found.value is not None and not found.value.free:  # \sin x = 1/2
            return replace(found, name="".join(map(repr, left)), relation=relation.key, choice=None)
    return relation
