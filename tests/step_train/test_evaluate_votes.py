"""Votes of some traces of a question: who counts, how much, and how often they are right."""

import numpy as np
import pytest
from synthetic_traces import write_traces

from step_infer.client.answers import vote
from step_infer.client.kinds import AnswerOptions
from step_train.data.trace_table import read_traces
from step_train.evaluation.votes import Ballot, evaluate_votes, read_ballots, vote_accuracy


def ballot(groups, right, scores, confidences=None):
    return Ballot(
        np.array(groups),
        np.array(right),
        scores,
        confidences or [1.0] * len(groups),
    )


def test_the_score_can_turn_a_vote():
    # Five wrong traces agree, three right ones have the better scores.
    one = ballot([0] * 5 + [1] * 3, [False, True], [0.2] * 5 + [0.9] * 3)
    found = vote_accuracy([one, one])["by_traces"]
    assert list(found) == ["4", "8"]
    assert found["8"]["uniform"]["value"] == 0.0
    assert found["8"]["score"]["value"] == 1.0
    assert found["8"]["score"]["gain"]["value"] == 1.0
    assert 0.0 < found["4"]["uniform"]["value"] < found["4"]["score"]["value"]


def test_confidences_weigh_votes_where_all_traces_have_them():
    one = ballot([0, 0, 0, 1], [False, True], [0.5] * 4, [1.0, 1.0, 1.0, 9.0])
    found = vote_accuracy([one])
    assert found["by_traces"]["4"]["confidence"]["value"] == 1.0
    assert found["not_computed"] == {}
    other = ballot([0, 0, 0, 1], [False, True], [0.5] * 4, [1.0, None, 1.0, 9.0])
    found = vote_accuracy([one, other])
    assert "confidence" not in found["by_traces"]["4"]
    assert "not recorded" in found["not_computed"]["confidence"]


def test_draws_of_all_traces_are_the_vote_itself():
    generator = np.random.default_rng(0)
    for _ in range(20):
        groups = generator.integers(4, size=8)
        scores = generator.random(8)
        right = np.arange(4) == 2
        winner = vote([str(g) for g in groups], scores.tolist()).answer
        found = vote_accuracy([ballot(groups, right, scores.tolist())], choices=5)
        assert found["by_traces"]["8"]["score"]["value"] == float(winner == "2")


def test_traces_without_an_answer_do_not_vote():
    one = ballot([-1, -1, -1, 0], [True], [None, 0.1, 0.1, 0.1])
    assert vote_accuracy([one])["by_traces"]["4"]["uniform"]["value"] == 1.0
    nobody = ballot([-1] * 4, [], [None] * 4)
    assert vote_accuracy([nobody])["by_traces"]["4"]["uniform"]["value"] == 0.0


def test_questions_with_too_few_traces_are_left_out_and_counted():
    few, many = ballot([0] * 3, [True], [0.5] * 3), ballot([0] * 9, [True], [0.5] * 9)
    found = vote_accuracy([few, many])["by_traces"]
    assert {n: entry["questions"] for n, entry in found.items()} == {"4": 1, "8": 1}
    assert vote_accuracy([few])["by_traces"] == {}


def test_the_same_seed_gives_the_same_draws():
    generator = np.random.default_rng(1)
    ballots = [
        ballot(generator.integers(2, size=12), [True, False], generator.random(12).tolist())
        for _ in range(5)
    ]
    assert vote_accuracy(ballots, seed=3) == vote_accuracy(ballots, seed=3)
    assert vote_accuracy(ballots, seed=3) != vote_accuracy(ballots, seed=4)


def test_ballots_hold_all_finished_traces_with_equal_answers_together(tmp_path):
    wrong = {"extracted_answer": "3", "is_correct": False}
    changes = {
        0: {"extracted_answer": r"\frac{1}{2}", "is_correct": True},
        1: {"extracted_answer": "0.5", "is_correct": True},
        2: wrong,
        3: wrong | {"extracted_answer": r"\frac{6}{2}"},
        4: {"extracted_answer": None, "is_correct": None, "mean_token_confidence": None},
        5: wrong | {"boundary_positions": []},
        6: {"finish_reason": "pruned", "extracted_answer": None, "is_correct": None},
        7: wrong | {"extracted_answer": "4", "mean_token_confidence": 2.5},
    }
    directory = write_traces(tmp_path / "traces", "label", questions=2, changes=changes)
    table, _ = read_traces(directory)
    table = table.of_questions(np.array([0]))
    (one,) = read_ballots(directory, table, np.arange(len(table)) / 10)
    assert one.group_M.tolist() == [0, 0, 1, 1, -1, 1, 2]
    assert one.right_G.tolist() == [True, False, False]
    assert one.score_M == [0.0, 0.1, 0.2, 0.3, None, None, 0.4]
    assert one.confidence_M[4] is None
    assert one.confidence_M[6] == 2.5


@pytest.mark.parametrize(("kind", "accuracy"), [("math", 0.0), ("exact", 1.0)])
def test_answers_are_grouped_as_they_were_when_the_traces_were_made(tmp_path, kind, accuracy):
    # Three right answers, and four wrong ones in two forms of one number.
    forms = ["7"] * 3 + ["3", "3.0"] * 2
    changes = {
        trace: {"extracted_answer": form, "is_correct": form == "7"}
        for trace, form in enumerate(forms)
    }
    changes[7] = {"extracted_answer": None, "is_correct": None}
    answers = AnswerOptions(kind)
    directory = write_traces(
        tmp_path / "traces", "label", questions=1, changes=changes, answers=answers
    )
    table, _ = read_traces(directory)
    found = evaluate_votes(directory, table, np.zeros(directory.num_steps), "mean", seed=0)
    assert found["by_traces"]["8"]["uniform"]["value"] == accuracy
