"""Which answers are equal: a table by kinds, and what holds for any answer."""

import json
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
        assert grader._workers == []


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


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=25))
def test_any_text_is_read_without_an_error(pieces: list[str]) -> None:
    text = "".join(pieces)
    form = canonical(text)
    if form is not None:
        assert equal(form, form) is True
        assert canonical(text) == form


_FORMS = [text for classes in _KINDS.values() for texts in classes for text in texts[:2]]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(_FORMS), st.sampled_from(_FORMS))
def test_any_two_answers_are_graded_the_same_both_ways_round(first: str, second: str) -> None:
    assert verdict(first, second) is verdict(second, first)
