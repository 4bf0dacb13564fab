"""Votes over answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step_infer.client.answers import Vote, vote
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


_ANSWERS = st.lists(
    st.sampled_from(
        (
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
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
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
