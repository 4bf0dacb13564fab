"""Votes over answers."""

import pytest

from step_infer.client.answers import vote


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
