"""Which answers are equal: a table by kinds, and what holds for any answer."""

import json
from fractions import Fraction
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step_infer.client.canonical import canonical, equal, exact
from step_infer.client.grading import Grader

_ROWS = [json.loads(line) for line in Path(__file__).with_name("verdicts.jsonl").open()]
_KINDS: dict[str, list[list[str]]] = {}
"""By kind, classes of equal answers; answers of different classes are not equal."""
for _row in _ROWS:
    if "equal" in _row:
        _KINDS.setdefault(_row["kind"], []).append(_row["equal"])
_PAIRS = [row for row in _ROWS if "pair" in row]
"""Pairs of answers that belong to no class."""


_form = cache(canonical)


def verdict(first: str, second: str) -> bool | None:
    """Compare by canonical forms alone."""
    forms = _form(first), _form(second)
    return None if forms[0] is None or forms[1] is None else equal(forms[0], forms[1])


@pytest.mark.parametrize("kind", _KINDS)
def test_answers_of_a_class_are_equal_and_others_are_not(kind: str) -> None:
    # All pairs of a kind both ways round: so equality is transitive over the kind.
    forms = [(index, text) for index, texts in enumerate(_KINDS[kind]) for text in texts]
    assert len(_KINDS[kind]) > 1
    wrong = [
        (first, second)
        for (i, first), (j, second) in product(forms, repeat=2)
        if first != second and verdict(first, second) is not (i == j)
    ]
    assert wrong == []


@pytest.mark.parametrize("kind", sorted({row["kind"] for row in _PAIRS}))
def test_pairs_are_graded_right_both_ways_round(kind: str) -> None:
    wrong = [
        (first, second, right)
        for row in _PAIRS
        for right in [row["right"]]
        for first, second in (row["pair"], row["pair"][::-1])
        if row["kind"] == kind and verdict(first, second) is not right
    ]
    assert wrong == []


def test_the_table_needs_no_process() -> None:
    with Grader() as grader:
        for row in _PAIRS:
            first, second = row["pair"]
            assert grader.equal(first, second) is row["right"]
            assert grader.equal(second, first) is row["right"]
        assert grader._pool.workers == []


_HOSTILE = [
    "9^{9^{9^{9^{9^{9}}}}}",
    "(((9!)!)!)!",
    r"(10^{10^{10}})! \cdot \binom{10^{12}}{10^{11}}",
    "(x+y+z)^{100000}" * 20,
    r"\sum_{k=1}^{100}\sum_{j=1}^{100}\sum_{i=1}^{100} ijk",
    "10^{99999}" * 200,
    "(" * 1000 + "1" + ")" * 1000,
    r"\sqrt{" * 300 + "2" + "}" * 300,
    "1" + "+1" * 990,
    "2^" * 990 + "2",
    "2999!" * 300,
    ",".join("±1" for _ in range(600)),
    "\\frac" * 390,
    "1.(3" * 490,
    "{" * 1999,
    "$" * 1999,
    "_" * 1999,
    "1 " * 999,
    " and " * 399,
    r"\sqrt{2}" + r"\cdot 9^{1800}" * 150,
    r"\sqrt{1+" * 150 + r"\sqrt{2}" + "}" * 150,
    "one hundred and " * 120 + "one",
    r"\boxed{" * 280,
    "|x-" * 500,
    r"\binom{n}{6}" * 150,
]


@pytest.mark.parametrize("text", _HOSTILE, ids=lambda text: text[:20])
def test_hostile_answers_take_bounded_steps_and_sizes(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    original = exact.Value.__init__

    def counted(self: exact.Value, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        made.append(0 if self.exact is None else self.exact.numerator.bit_length())

    monkeypatch.setattr(exact.Value, "__init__", counted)
    form = canonical(text)
    assert form is None or hash(form) is not None
    assert len(made) < 20_000
    assert max(made, default=0) <= 6000


def test_numbers_that_only_look_alike_as_floats_differ() -> None:
    close = [
        "10^{30}",
        "10^{30}+1",
        "1e-300",
        "2e-300",
        r"\frac{1}{10^{400}}",
        "0",
        r"\sqrt{10^{60}+1}",
    ]
    for first, second in combinations(close, 2):
        assert verdict(first, second) is False


_PIECES = [
    *(
        "1",
        "2",
        "12",
        "0.5",
        "x",
        "e",
        "i",
        "\\pi",
        "+",
        "-",
        "*",
        "/",
        "^",
        "_",
        "{",
        "}",
        "(",
        ")",
    ),
    *(
        "[",
        "]",
        ",",
        ";",
        ":",
        "=",
        "<",
        "\\le",
        "\\frac",
        "\\sqrt",
        "\\text{",
        "cm",
        "!",
        "%",
        "\\cup",
    ),
    *(
        "\\infty",
        "\\{",
        "\\}",
        "|",
        "\\pm",
        "or",
        "and",
        "\\in",
        "$",
        "**",
        "\\boxed{",
        "C.",
        "\\\\",
    ),
    *(
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
        "&",
        "\\overline{",
        "^\\circ",
        "\\sum_",
        "\\log",
        "sin",
        "yes",
    ),
]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=25))
def test_any_text_is_read_without_an_error(pieces: list[str]) -> None:
    text = "".join(pieces)
    form = canonical(text)
    if form is not None:
        assert equal(form, form) is True
        assert canonical(text) == form


_FORMS = [text for classes in _KINDS.values() for texts in classes for text in texts[:2]]


@settings(max_examples=300)
@given(st.sampled_from(_FORMS), st.sampled_from(_FORMS))
def test_any_two_answers_are_graded_the_same_both_ways_round(first: str, second: str) -> None:
    assert verdict(first, second) is verdict(second, first)


_LATEX = r"\frac{%d}{%d}"
_ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
         "eleven", "twelve")  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def _words(n: int) -> str:
    if n < 13:
        return _ONES[n]
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if n >= size:
            rest = " and " + _words(n % size) if n % size else ""
            return f"{_words(n // size)} {name}{rest}"
    if n < 20:
        return {13: "thirteen", 15: "fifteen", 18: "eighteen"}.get(n, _ONES[n % 10] + "teen")
    return _TENS[n // 10] + ("-" + _ONES[n % 10] if n % 10 else "")


def _decimal(x: Fraction) -> str:
    """Write a number with its period under a bar."""
    whole, rest = divmod(abs(x.numerator), x.denominator)
    digits, seen = "", dict[int, int]()
    while rest and rest not in seen:
        seen[rest] = len(digits)
        digit, rest = divmod(rest * 10, x.denominator)
        digits += str(digit)
    if rest:
        digits = digits[: seen[rest]] + rf"\overline{{{digits[seen[rest] :]}}}"
    return f"{'-' if x < 0 else ''}{whole}.{digits or '0'}"


def _number_forms(x: Fraction) -> list[str]:
    n, d = abs(x.numerator), x.denominator
    sign = "-" if x < 0 else ""
    forms = [
        sign + _LATEX % (n, d),
        _LATEX % (-3 * x.numerator, -3 * d),
        rf"\left({sign}{n}\right) \div {d}",
        f"x = {sign}{n}/{d}",
        _decimal(x),
        rf"{_decimal(1000 * x)} \times 10^{{-3}}",
        rf"{x.numerator} \cdot {d}^{{-1}}",
    ]
    if d > 1 and n > d:
        forms += [sign + f"{n // d}" + _LATEX % (n % d, d), f"{sign}{n // d} {n % d}/{d}"]
    if d == 1:
        separated = [f"{n:,}".replace(",", mark) for mark in (",", "{,}", r"\,", " ", "'")]
        forms += [sign + text for text in separated]
        forms += [f"{x} boxes", rf"\${x}", ("minus " if x < 0 else "") + _words(n)]
    return forms


def _surd_forms(p: Fraction, q: Fraction, d: int) -> list[str]:
    scale = p.denominator * q.denominator
    first, second = int(p * scale), int(q * scale)
    below = p * p - q * q * d
    forms = [
        rf"{_decimal(p)} + ({_decimal(q)})\sqrt{{{d}}}",
        rf"\frac{{{first} - {-second}*sqrt({d})}}{{{scale}}}".replace("--", "+"),
        rf"\left({q}\right) √{d} + {p}",
        rf"{p} {'+' if q > 0 else '-'} \sqrt{{{_LATEX % (q * q * d).as_integer_ratio()}}}",
    ]
    if p > 0 and q > 0 and below > 0:  # the root of its square, written out
        square = (p * p + q * q * d, 2 * p * q)
        forms.append(rf"\sqrt{{{_decimal(square[0])} + {square[1]}\sqrt{{{d}}}}}")
    return forms


def _interval_forms(low: Fraction, high: Fraction, closed: bool) -> list[str]:
    left, right = "[]" if closed else "()"
    below, above = (r"\le ", r"\geqslant ") if closed else ("<", ">")
    return [
        f"{left}{low}, {high}{right}",
        rf"x \in \left{left}{_decimal(low)}; {_decimal(high)}\right{right}",
        f"{low}{below}x{below}{high}",
        f"{high}{above}x{above}{low}",
        rf"\{{x \mid x{above}{low} \text{{ and }} x{below}{high}\}}",
        rf"|x - ({(low + high) / 2})| {below} {(high - low) / 2}",
    ]


def _factored(roots: list[tuple[int, int]]) -> str:
    return "".join(f"({slope}x + {zero})" for slope, zero in roots).replace("+ -", "- ")


def _expanded(roots: list[tuple[int, int]], order: list[int]) -> str:
    coefficients = [1]
    for slope, zero in roots:
        terms = [a * zero + b * slope for a, b in zip([*coefficients, 0], [0, *coefficients])]  # noqa: B905
        coefficients = terms
    shown = " + ".join(f"{coefficients[n]}x^{n}" for n in order if n < len(coefficients))
    return shown.replace("+ -", "- ").replace("x^0", "")


_SMALL = st.fractions(-20, 20, max_denominator=9)


@settings(max_examples=300)
@given(st.data())
def test_what_is_the_same_however_written_is_equal_and_nothing_else(data: st.DataObject) -> None:
    # An equality that holds just where the values agree is symmetric and transitive.
    kind = data.draw(st.sampled_from(["number", "surd", "interval", "polynomial"]))
    if kind == "number":
        big = st.integers(-(10**5), 10**5).map(Fraction)
        x = data.draw(big | st.fractions(-1000, 1000, max_denominator=40))
        near = [x, -x, x + 1, 10 * x, x + Fraction(1, 10**9), x * 1000]
        y = data.draw(st.sampled_from(near))
        same, forms = x == y, (_number_forms(x), _number_forms(y))
    elif kind == "surd":
        p, q = data.draw(_SMALL), data.draw(_SMALL.filter(bool))
        d = data.draw(st.sampled_from([2, 3, 5, 7]))
        near = [(p, q, d), (p, q, 4 * d), (p, -q, d), (-p, q, d), (p, q / 2, 4 * d)]
        other = data.draw(st.sampled_from(near))
        same = other in (near[0], near[4]) or near[0] == other
        forms = _surd_forms(p, q, d), _surd_forms(*other)
    elif kind == "interval":
        low, high = sorted(data.draw(st.lists(_SMALL, min_size=2, max_size=2, unique=True)))
        near = [(low, high, True), (low, high, False), (low - 1, high, True), (low, high + 1, True)]
        other = data.draw(st.sampled_from(near))
        same = other == near[0]
        forms = _interval_forms(*near[0]), _interval_forms(*other)
    else:
        factor = st.tuples(st.integers(1, 4), st.integers(-9, 9))
        roots = data.draw(st.lists(factor, min_size=1, max_size=4))
        order = data.draw(st.permutations(range(5)))
        same = data.draw(st.booleans())
        changed = [(roots[0][0], roots[0][1] + (not same)), *roots[1:]]
        forms = [_factored(data.draw(st.permutations(roots)))], [_expanded(changed, order)]
    first, second = (data.draw(st.sampled_from(written)) for written in forms)
    assert verdict(first, second) is same
    assert verdict(second, first) is same
