"""What token confidence adds to step scores: the card's field, and the scheduler's sum."""

import math

import numpy as np
import pytest

from step_infer.errors import InputError
from step_infer.scorer.confidence_term import ConfidenceTerm

TERM = ConfidenceTerm(weight=0.5, mean=10.0)


@pytest.mark.parametrize("confidence", [4.0, 10.0, 13.5])
def test_the_term_moves_the_logit(confidence):
    logit = -0.7
    expected = logit + TERM.logits(np.array([confidence]))[0]
    found = TERM.score(1 / (1 + math.exp(-logit)), confidence)
    assert math.log(found / (1 - found)) == pytest.approx(expected)
    assert expected == pytest.approx(logit + 0.5 * (confidence - 10))


def test_scores_at_their_ends_stay_there():
    assert TERM.score(0.0, 20.0) == 0.0
    assert TERM.score(1.0, 2.0) == 1.0
    assert TERM.score(0.5, -1e4) == 0.0
    assert TERM.score(0.5, 1e4) == 1.0


@pytest.mark.parametrize(
    ("score", "confidence"), [(0.5, None), (0.5, math.nan), (math.nan, 9.0), (0.5, math.inf)]
)
def test_what_is_not_known_gives_no_score(score, confidence):
    assert math.isnan(TERM.score(score, confidence))


def test_a_cards_field_is_read_and_checked():
    assert ConfidenceTerm.from_dict({"weight": 0.5, "mean": 10}, "F") == TERM
    assert ConfidenceTerm.from_dict({}, "F") is None
    for damaged in (
        {"weight": 0.5},
        {"weight": 0.5, "mean": 10.0, "more": 1.0},
        {"weight": "0.5", "mean": 10.0},
        {"weight": True, "mean": 10.0},
        {"weight": math.inf, "mean": 10.0},
    ):
        with pytest.raises(InputError, match="Expected finite numbers for weight and mean"):
            ConfidenceTerm.from_dict(damaged, "F")
