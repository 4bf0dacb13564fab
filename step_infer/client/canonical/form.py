"""The form of an answer: what it says, without how it is written; and when two say the same."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from step_infer.client.canonical.exact import PI, Value, same_numbers, whole
from step_infer.client.canonical.units import DEGREE, NONE, PERCENT, RADIAN, Unit, read_unit


@dataclass(frozen=True)
class Canonical:
    """What an answer says; equal keys mean equal answers.

    Equality is more than that of keys: a number without a unit equals the same number with one.
    `equal` compares two forms.
    """

    kind: str
    """number, words, choice, list, tuple, intervals, relation or matrix."""
    key: Hashable
    """What it says, but for the attributes below."""
    value: Value | None = field(default=None, compare=False, repr=False)
    """Of a number: its value, without its unit."""
    items: tuple["Canonical", ...] = field(default=(), compare=False, repr=False)
    """Of a list, tuple or matrix: its parts."""
    parts: tuple[Any, ...] = field(default=(), compare=False, repr=False)
    """Of intervals: these, sorted."""
    unit: Unit | None = None
    """Unit of measure of a number."""
    name: str | None = None
    """What it is said to be: "x" of "x = 5"."""
    base: Hashable = None
    """The value that a number's digits have in the base that is given with them."""
    choice: str | None = None
    """The letter, where it may be an option of a multiple-choice question."""
    described: bool = False
    """The option's letter may just as well begin an expression: "C - 42"."""
    spelled: str | None = None
    """The letters of a product that may just as well be a word: "odd"."""
    relation: Hashable = None
    """Of an equation of the form y = ...: what it says as an equation between all its symbols."""
    loose: bool = False
    """Another form may be equal though the keys differ: not all rules are known here."""
    heavy: bool = False
    """It holds numbers too large to write out; no other library should be given it."""


def identity(form: Canonical) -> Hashable:
    """Return a key of all that a form says, its parts' units and names too.

    Forms of one identity are equal, to each other and to the same others.
    """
    items = [identity(item) for item in form.items]
    return (form, tuple(sorted(items, key=repr) if form.kind == "list" else items))


def equal(a: Canonical, b: Canonical) -> bool | None:
    """Return whether two answers are the same; None where only another library may know.

    It does not depend on the order of the two.
    """
    if a == b:
        return True
    options = a.choice and b.choice and not (a.described and b.described)
    if options and a.choice == b.choice:
        return True
    if "choice" in (a.kind, b.kind):
        return False
    if a.relation is not None and a.relation == b.relation:
        return True
    if a.name and b.name and a.name != b.name:
        return False
    for one, other in ((a, b), (b, a)):
        if one.spelled and other.kind == "words":
            return other.key == ("words", (one.spelled,))
        # "(x, y) = (1, 2)" has the name of a pair, "x in (1, 2)" that of a number.
        ordered = not (other.name and not other.name.startswith("(")) and _in_order(other)
        if ordered and a.kind != b.kind and (one.kind == "assignments" or _in_order(one)):
            return _all_equal(one.items, other.items)
        if one.relation is not None and other.kind == "relation":
            return one.relation == other.key or (None if one.loose or other.loose else False)
    if a.kind != b.kind:
        unknown = (a.kind == "relation" and b.kind == "intervals") or (
            b.kind == "relation" and a.kind == "intervals"
        )
        return None if unknown else False
    if a.kind == "number":
        return _equal_numbers(a, b)
    if a.key == b.key:
        return True
    if a.kind in ("tuple", "matrix", "assignments") and len(a.items) == len(b.items):
        if _shape(a) != _shape(b):
            return False
        return _all_equal(a.items, b.items)
    if a.kind == "list" and len(a.items) == len(b.items):
        return _same_items(a.items, b.items)
    return None if a.loose or b.loose else False


def _in_order(form: Canonical) -> bool:
    """Return whether a form is a tuple, or may be one: a column, or the interval (1, 2)."""
    column = form.kind == "matrix" and _shape(form) == (len(form.items), 1)
    return column or form.kind == "tuple" or (form.kind == "intervals" and bool(form.items))


def _shape(form: Canonical) -> Hashable:
    return form.key[1] if isinstance(form.key, tuple) else None


def _all_equal(a: Sequence[Canonical], b: Sequence[Canonical]) -> bool | None:
    if len(a) != len(b):
        return False
    verdicts = [equal(x, y) for x, y in zip(a, b, strict=True)]
    return False if False in verdicts else None if None in verdicts else True


def _same_items(a: Sequence[Canonical], b: Sequence[Canonical]) -> bool | None:
    # Those without a unit equal more; they take what is left.
    rest = sorted(b, key=lambda item: item.unit is None)
    unknown = False
    for item in sorted(a, key=lambda item: item.unit is None):
        verdicts = [equal(item, other) for other in rest]
        if True in verdicts:
            del rest[verdicts.index(True)]
        elif None in verdicts:
            unknown = True
        else:
            return False
    return None if unknown else True


def _equal_numbers(a: Canonical, b: Canonical) -> bool | None:
    x, y = a.value, b.value
    assert x is not None
    assert y is not None
    if a.base is not None and b.base is not None:
        return a.base == b.base
    if a.unit and b.unit and NONE not in (a.unit, b.unit):
        if a.unit.dimensions == b.unit.dimensions:
            if a.unit.factor != b.unit.factor:
                x, y = x * Value(a.unit.factor), y * Value(b.unit.factor)
        elif {a.unit, b.unit} == {DEGREE, RADIAN}:
            angle, degrees = (x, y) if a.unit == RADIAN else (y, x)
            return (angle * whole(180) / PI).key == degrees.key
        elif DEGREE not in (a.unit, b.unit) or not {a.unit, b.unit} <= _DEGREES:
            # Things counted are no unit of measure: "72 apples" is 72, as "72 km/h" is.
            return False if a.unit.counted == b.unit.counted else x.key == y.key
    elif PERCENT in (a.unit, b.unit):
        percent, other = (x, y) if a.unit == PERCENT else (y, x)
        if (percent / whole(100)).key == other.key:
            return True
    if x.key == y.key:
        return True
    if not (x.loose or y.loose) or x.heavy or y.heavy:
        return False
    return None if same_numbers(x, y) is not False else False


_DEGREES = {DEGREE, *(unit for unit in (read_unit("°C"), read_unit("°F")) if unit)}


def number_form(
    value: Value, unit: Unit | None = None, *, base: Hashable = None, spelled: str | None = None
) -> Canonical:
    """Return the form of a number."""
    return Canonical(
        "number",
        ("number", value.key, base),
        value,
        unit=None if unit == NONE else unit,
        base=base,
        spelled=spelled,
        loose=value.loose,
        heavy=value.heavy,
    )


def whole_form(kind: str, shape: Hashable, items: Sequence[Canonical]) -> Canonical:
    """Return the form of a list, tuple, matrix or the like; `shape` is what else must agree."""
    keys = [(item.key, item.unit, item.name) for item in items]
    return Canonical(
        kind,
        (kind, shape, tuple(sorted(keys, key=repr) if kind == "list" else keys)),
        items=tuple(items),
        loose=any(item.loose for item in items),
        heavy=any(item.heavy for item in items),
    )


def list_form(items: Sequence[Canonical], distinct: bool = False) -> Canonical:
    """Return the form of answers in any order; of one, that itself."""
    if distinct:
        items = list({(item.key, item.unit): item for item in items}.values())
    if len(items) == 1:
        return items[0]
    return whole_form("list", None, items)


def named(form: Canonical, name: str | None) -> Canonical:
    """Return a form as said of a name, or of none."""
    return replace(form, name=name, relation=None, choice=None)
