"""Votes over answers."""

from collections.abc import Iterator
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step_infer.client.answers import Vote, group_forms, vote
from step_infer.client.grading import Grader


def test_most_votes_win_and_none_does_not_vote() -> None:
    outcome = vote(["1", None, "2", "2", None])
    assert outcome.answer == "2"
    assert outcome.share == pytest.approx(2 / 3)
    assert outcome.groups == (("2", 2.0, (2, 3)), ("1", 1.0, (0,)))


def test_weights_decide_against_numbers() -> None:
    assert vote(["1", "2", "2"], [0.9, 0.2, 0.3]).answer == "1"


def test_tie_goes_to_the_earlier_answer() -> None:
    assert vote(["b", "a", "a", "b"]).answer == "b"


def test_equal_answers_are_one_group_in_their_commonest_form() -> None:
    outcome = vote(["1/2", "0.5", "3", "0.5", "3"], equal=lambda a, b: {a, b} == {"1/2", "0.5"})
    assert outcome.answer == "0.5"
    assert outcome.groups[0] == ("0.5", 3.0, (0, 1, 3))


def test_nobody_voted() -> None:
    assert vote([None, None]).answer is None
    assert vote([]).groups == ()


def test_weights_of_zero_still_give_an_answer() -> None:
    outcome = vote(["1", "2"], [0.0, 0.0])
    assert (outcome.answer, outcome.share) == ("1", 0.0)


def _groups_of(answers: list[str], outcome: Vote) -> set[tuple[frozenset[str], float]]:
    return {
        (frozenset(answers[voter] for voter in voters), weight)
        for _, weight, voters in outcome.groups
    }


_FORMS = (
    "(-\\infty,4)",
    "x<4",
    "4>x",
    "7",
    "7 cm",
    "70 mm",
    "7 m",
    "0.4",
    "40\\%",
    "40",
    "x=7",
    "y=7",
)
_ANSWERS = st.lists(st.sampled_from(_FORMS), max_size=12)


@settings(max_examples=200)
@given(_ANSWERS.flatmap(lambda answers: st.tuples(st.just(answers), st.permutations(answers))))
def test_a_vote_does_not_depend_on_the_order_of_its_traces(
    orders: tuple[list[str], list[str]],
) -> None:
    with Grader() as grader:
        outcomes = [vote(answers, equal=grader.same(answers)) for answers in orders]
    first, second = outcomes
    groups = [_groups_of(*pair) for pair in zip(orders, outcomes, strict=True)]
    assert groups[0] == groups[1]
    assert first.share == second.share
    weights = sorted((weight for _, weight, _ in first.groups), reverse=True)
    if len(weights) < 2 or weights[0] > weights[1]:  # ties go to the earlier answer
        assert first.answer == second.answer


def test_forms_of_one_interval_vote_together_in_any_order() -> None:
    answers = ["x<4", "9", "(-\\infty,4)", "9", "4>x", "9", "x<4"]
    with Grader() as grader:
        for shift in range(len(answers)):
            turned = answers[shift:] + answers[:shift]
            outcome = vote(turned, equal=grader.same(turned))
            assert outcome.answer == "x<4"
            assert [weight for _, weight, _ in outcome.groups] == [4.0, 3.0]


def test_an_answer_without_a_unit_joins_the_unit_of_most_voters() -> None:
    answers = ["6", "6 m", "6 cm", "6.0 cm", "6", "8"]
    with Grader() as grader:
        outcome = vote(answers, equal=grader.same(answers))
        assert [voters for _, _, voters in outcome.groups] == [(0, 2, 3, 4), (1,), (5,)]
        assert len(vote(["6 cm", "6 m", "8"], equal=grader.same(["6 cm", "6 m", "8"])).groups) == 3


def test_groups_follow_from_equality_however_odd_it_is() -> None:
    # a = b = c = d, but no others: the inner two equal forms that differ.
    chain = {frozenset(pair) for pair in ("ab", "bc", "cd")}
    outcome = vote(list("dcbaa"), equal=lambda x, y: frozenset((x, y)) in chain)
    assert [voters for _, _, voters in outcome.groups] == [(2, 3, 4), (0, 1)]


@settings(max_examples=200)
@given(
    st.sets(st.frozensets(st.sampled_from("abcdef"), min_size=2, max_size=2)),
    st.dictionaries(st.sampled_from([*"abcdef", *"ABCDEF"]), st.integers(1, 3)),
)
def test_forms_equal_to_the_same_others_are_never_torn_apart(
    equal: set[frozenset[str]], counts: dict[str, int]
) -> None:
    # A capital letter is the twin of its small one.
    groups = group_forms(
        counts,
        lambda x, y: x.lower() == y.lower() or frozenset((x.lower(), y.lower())) in equal,
    )
    home = {form: number for number, group in enumerate(groups) for form in group}
    assert sorted(home) == sorted(counts)
    for small in "abcdef":
        assert len({home[form] for form in (small, small.upper()) if form in home}) < 2


def test_a_ring_of_half_said_answers_keeps_what_says_the_same_together() -> None:
    # Each equals the next, but none of them two that are equal to each other.
    answers = ["x=5", "5 cm", "y=5", "5 m", "x=5.0", "5.0 m"]
    with Grader() as grader:
        outcome = vote(answers, equal=grader.same(answers))
    assert {voters for _, _, voters in outcome.groups} == {(0, 4), (1,), (2,), (3, 5)}


_BOUND = (
    *_FORMS,
    "7.0",
    "14/2",
    "7.0 cm",
    r"7\text{ m}",
    "x=7.0",
    "2/5",
    "B",
    "(B)",
    "B) 7",
    "C",
    "7 cm, 4 m",
    "7, 4",
    "4, 7",
    "(7 cm, 4 m)",
    "(7 m, 4 cm)",
    "(7, 4)",
    "101_2",
    "5",
    "5_{10}",
    r"y=\frac{14}{2}",
    r"\int_0^1 7\,dt",
    r"\int_0^1  7\,dt",
    r"\sin(7)^2",
    r"1-\cos^2 7",
    "odd",
    "7 apples",
    "seven",
    "?!",
)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(_BOUND), max_size=10), st.lists(st.sampled_from(_BOUND), max_size=10)
)
def test_bound_answers_are_in_one_group_whatever_others_come(
    grader: Grader, ended: list[str], later: list[str]
) -> None:
    answers = ended + later
    home = {
        voter: number
        for number, (_, _, voters) in enumerate(vote(answers, equal=grader.same(answers)).groups)
        for voter in voters
    }
    for first, second in combinations(range(len(answers)), 2):
        if grader.binding(answers[first]) == grader.binding(answers[second]):
            assert home[first] == home[second]


def test_bound_answers_are_equal(grader: Grader) -> None:
    for first, second in combinations(_BOUND, 2):
        if grader.binding(first) == grader.binding(second):
            assert grader.equal(first, second) is True
