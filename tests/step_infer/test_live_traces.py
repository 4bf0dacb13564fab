"""What the scheduler keeps of running traces: boundaries are counted once, at the right row."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from step_infer.live_traces import LiveTraces
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.confidence_term import ConfidenceTerm
from step_infer.settings import RequestOptions, StepSettings
from step_infer.wire import StepRows

BOUNDARY, THINK_END, WORD = 1, 2, 3
RULE = BoundaryRule("blank_line", frozenset({BOUNDARY}), THINK_END, r"\n\n")


def live_traces(**settings):
    return LiveTraces(RULE, "mean", StepSettings(scorer="x", capture=True, **settings))


def feed(live, name, tokens, scores=None):
    """Run a trace alone, one token a step; the row of each step carries the given score."""
    for position, token in enumerate(tokens):
        score = 0.5 if scores is None else scores[position]
        rows = StepRows(np.array([score], np.float32))
        live.take_scores(rows, {name: 0}, [[token]])
        live.take_tokens(live.traces[name], [token])


@given(st.lists(st.sampled_from([BOUNDARY, THINK_END, WORD]), min_size=1, max_size=60))
def test_boundaries_token_by_token_are_those_of_the_whole_response(tokens):
    live = live_traces()
    live.add("a", RequestOptions("g"))
    feed(live, "a", tokens)
    assert live.traces["a"].positions == RULE.positions(tokens)


def test_a_boundary_takes_the_score_of_the_step_that_reads_it():
    live = live_traces()
    live.add("a", RequestOptions("g"))
    feed(live, "a", [WORD, BOUNDARY, WORD, BOUNDARY, WORD], [0.1, 0.2, 0.3, 0.4, 0.5])
    trace = live.traces["a"]
    assert trace.positions == [1, 3]
    assert trace.scores == pytest.approx([0.3, 0.5])
    assert trace.score == pytest.approx(0.4)


def test_accepted_drafts_take_their_scores_states_and_confidences_from_their_own_rows():
    live = live_traces(confidence=True)
    live.add("a", RequestOptions("g", capture=True))
    trace = live.traces["a"]
    # Another request has the first two rows. Three drafts for this one: two are accepted.
    numbers = np.arange(12, dtype=np.uint16)
    rows = StepRows(numbers / 16, numbers[:, None], confidences_B=numbers * 1.0)
    rows.first_rows = np.array([0, 2, 6])
    live.take_scores(rows, {"b": 0, "a": 1}, [[WORD], [BOUNDARY, BOUNDARY, BOUNDARY]])
    live.take_tokens(trace, [BOUNDARY, BOUNDARY, BOUNDARY], rows, 1)
    assert trace.positions == [0, 1]  # the last one's row is in the next step
    rows.first_rows = np.array([0, 9, 11])
    live.take_scores(rows, {"b": 0, "a": 1}, [[WORD], [WORD]])
    live.take_tokens(trace, [WORD], rows, 1)
    report = live.report(trace)
    assert report["positions"] == [0, 1, 2]
    assert report["scores"] == [3 / 16, 4 / 16, 9 / 16]
    assert np.frombuffer(report["hidden"], np.uint16).tolist() == [3, 4, 9]
    assert report["confidences"] == [2, (2 + 3) / 2, (2 + 3 + 4) / 3]
    assert report["confidence"] == (2 + 3 + 4 + 9) / 4


def test_a_preempted_trace_scores_its_boundary_once_when_it_resumes():
    live = live_traces()
    live.add("a", RequestOptions("g"))
    feed(live, "a", [WORD, BOUNDARY])
    # Preempted: it is not in the next steps; then its prefill comes in parts without a token.
    live.take_scores(StepRows(np.array([0.9], np.float32)), {"other": 0}, [[WORD]])
    live.take_scores(StepRows(np.array([0.8], np.float32)), {"a": 0}, [[]])
    assert live.traces["a"].positions == []
    live.take_scores(StepRows(np.array([0.7], np.float32)), {"a": 0}, [[WORD]])
    live.take_tokens(live.traces["a"], [WORD])
    # Preempted again and recomputed: the row of the same boundary is not asked for any more.
    live.take_scores(StepRows(np.array([0.6], np.float32)), {"a": 0}, [[WORD]])
    assert live.traces["a"].positions == [1]
    assert live.traces["a"].scores == pytest.approx([0.7])


def test_a_non_finite_score_is_dropped_and_counted():
    live = live_traces()
    live.add("a", RequestOptions("g"))
    feed(live, "a", [BOUNDARY, BOUNDARY, WORD], [0.5, math.nan, 0.25])
    trace = live.traces["a"]
    assert trace.scores == [None, 0.25]
    assert (trace.num_scored, trace.dropped, trace.score) == (1, 1, 0.25)


def test_a_step_without_rows_leaves_a_boundary_without_score():
    live = live_traces()
    live.add("a", RequestOptions("g"))
    live.take_tokens(live.traces["a"], [BOUNDARY])
    live.take_scores(None, {"a": 0}, [[WORD]])
    assert live.report(live.traces["a"]) == {
        "positions": [0],
        "scores": [None],
        "score": None,
        "pruned": False,
    }


def test_captured_states_are_those_of_the_boundary_rows():
    live = live_traces()
    live.add("a", RequestOptions("g", capture=True))
    live.take_tokens(live.traces["a"], [BOUNDARY])
    hidden = np.arange(8, dtype=np.uint16).reshape(2, 4)
    rows = StepRows(np.array([0.1, 0.2], np.float32), hidden)
    live.take_scores(rows, {"b": 0, "a": 1}, [[WORD], [WORD]])
    report = live.report(live.traces["a"])
    assert report["hidden"] == hidden[1].tobytes()
    assert report["hidden_dtype"] == "bfloat16"


def test_a_trace_that_ends_without_a_finite_score_is_not_kept_unless_it_goes_by_confidence():
    live = LiveTraces(RULE, "mean", StepSettings(boundary=RULE.to_dict(), confidence=True))
    for name, window in (("stays", None), ("plain", None), ("dropped", None), ("unsure", 4)):
        live.add(name, RequestOptions("g", window=window))
    live.traces["dropped"].add_score(math.nan)
    for name, left in (("plain", 3), ("dropped", 2), ("unsure", 2)):
        live.remove(name, survived=True)
        assert live.kept == {"g": left}


def test_the_largest_min_keep_of_a_groups_live_traces_protects_all_of_them():
    live = live_traces()
    for name, least in (("a", 3), ("b", None), ("c", 2)):
        live.add(name, RequestOptions("g", min_keep=least))
    live.add("other", RequestOptions("h"))
    assert live.min_keeps() == {"g": 3, "h": 1}
    assert not live.may_stop(live.traces["b"])
    live.remove("a", survived=False)
    assert live.min_keeps()["g"] == 2


def test_groups_count_live_and_finished_traces_and_vanish_with_the_last():
    live = live_traces()
    for name in "abc":
        live.add(name, RequestOptions("g"))
    assert live.kept == {"g": 3}
    live.traces["a"].add_score(0.5)
    live.remove("a", survived=True)
    assert live.kept == {"g": 3}
    live.remove("b", survived=False)
    assert live.kept == {"g": 2}
    live.remove("c", survived=True)
    assert live.kept == {}
    assert live.traces == {}
    live.remove("c", survived=True)


def test_request_options_win_over_the_engine_settings():
    live = live_traces(min_keep=2, min_steps=3)
    live.add("a", RequestOptions("g", prune=False, min_keep=4, aggregator="last"))
    live.add("b", RequestOptions("g"))
    a, b = live.traces["a"], live.traces["b"]
    assert (a.prune, a.min_keep, a.min_steps, a.aggregator) == (False, 4, 3, "last")
    assert (b.prune, b.min_keep, b.min_steps, b.aggregator) == (True, 2, 3, "mean")


def test_without_confidences_of_a_step_the_mean_is_unknown_from_there_on():
    live = live_traces(confidence=True)
    live.add("a", RequestOptions("g"))
    trace = live.traces["a"]
    for step, confidence in enumerate([2.0, 4.0, None, 6.0]):
        rows = None
        if confidence is not None:
            rows = StepRows(None, confidences_B=np.array([confidence], np.float32))
        live.take_scores(rows, {"a": 0}, [[BOUNDARY]])
        live.take_tokens(trace, [BOUNDARY], rows)
        assert len(trace.confidences) == step
    report = live.report(trace)
    assert report["positions"] == [0, 1, 2]
    assert report["confidences"] == [2.0, 3.0, None]
    assert report["confidence"] is None


def test_a_step_score_takes_in_the_confidence_up_to_its_boundary():
    settings, term = StepSettings(scorer="x", confidence=True), ConfidenceTerm(0.5, 10.0)
    live = LiveTraces(RULE, "mean", settings, confidence_term=term)
    live.add("a", RequestOptions("g"))
    trace, score_B = live.traces["a"], np.array([0.4], np.float32)
    for token, confidence in [(WORD, 9.0), (BOUNDARY, 14.0), (WORD, 50.0), (BOUNDARY, math.nan)]:
        rows = StepRows(score_B, confidences_B=np.array([confidence], np.float32))
        live.take_scores(rows, {"a": 0}, [[token]])
        live.take_tokens(trace, [token], rows)
    live.take_scores(rows, {"a": 0}, [[WORD]])
    logit = math.log(0.4 / 0.6) + 0.5 * ((9 + 14) / 2 - 10)
    assert trace.scores == [pytest.approx(1 / (1 + math.exp(-logit))), None]
    assert trace.dropped == 1
    assert trace.score == trace.scores[0]
