"""Aggregates kept score by score are those of all scores at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from step_infer.scorer.aggregate import AGGREGATORS, NEVER_RISE, RunningScore


@pytest.mark.parametrize("name", list(AGGREGATORS))
@given(scores=st.lists(st.floats(0, 1), max_size=60))
def test_a_running_score_is_the_aggregate_of_the_scores_so_far(name, scores):
    running = RunningScore(name)
    assert running.value is None
    for count, score in enumerate(scores, 1):
        running.add(score)
        assert running.value == pytest.approx(AGGREGATORS[name](scores[:count]), abs=1e-12)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_which_aggregates_a_further_score_never_raises(name):
    rises = AGGREGATORS[name]([0.5, 1.0]) > AGGREGATORS[name]([0.5])
    assert rises == (name not in NEVER_RISE)
