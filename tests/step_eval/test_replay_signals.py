"""Recorded signals in the real scheduler: they stand for the worker's rows, where it is allowed."""

import dataclasses
import math

import pytest
from scheduler_harness import BOUNDARY, WORD, Engine, Script, make_scheduler

from step_eval.methods.victim_scheduler import VictimScheduler
from step_eval.replay.scheduler import ReplayOptions, ReplayScheduler
from step_eval.replay.signals import RecordedSteps
from step_infer.errors import InputError
from step_infer.scheduler import StepScheduler


def trace(name, positions, scores, tokens=40, **recorded):
    """Return a request of arbitrary tokens, boundaries among them, that brings recorded signals."""
    replay = {"positions": positions, "scores": scores, **recorded}
    text = tuple(BOUNDARY if index % 3 == 0 else WORD for index in range(tokens))
    return Script(name, (WORD,) * 3, text, tokens, {"group": "g", "replay": replay})


def run(scripts, num_blocks=200, kind=ReplayScheduler, **settings):
    engine = Engine(make_scheduler(kind, num_blocks, **settings), 1)
    for script in scripts:
        engine.add(script)
    engine.run()
    return engine


def test_recorded_boundaries_and_scores_count_and_not_those_of_the_text():
    engine = run([trace("a", [4, 17, 38], [0.5, None, 0.25], confidences=[1.0, 2.0, 3.0])])
    report = engine.report("a")
    assert report["positions"] == [4, 17, 38]
    assert report["scores"] == [0.5, None, 0.25]
    assert report["score"] == pytest.approx(0.375)


def test_running_confidences_come_out_as_they_were_recorded():
    signals = {"confidences": [2.0, 5.0], "tail_confidence": 8.0}
    engine = run([trace("a", [9, 29], [0.5, 0.5], **signals)], confidence=True)
    report = engine.report("a")
    assert report["confidences"] == pytest.approx([2.0, (10 * 2 + 20 * 5) / 30])
    assert report["confidence"] == pytest.approx((10 * 2 + 20 * 5 + 10 * 8) / 40)


def test_the_trace_of_the_lowest_recorded_score_is_stopped():
    scores = {"low": 0.1, "middle": 0.5, "high": 0.9}
    engine = run([trace(n, [2, 20], [s, s], tokens=80) for n, s in scores.items()], num_blocks=45)
    assert [name for name in scores if engine.pruned(name)] == ["low"]
    engine = run([trace(n, [2, 20], [1 - s] * 2, 80) for n, s in scores.items()], num_blocks=45)
    assert [name for name in scores if engine.pruned(name)] == ["high"]


def test_a_trace_is_stopped_where_a_window_of_recorded_confidences_falls_too_low():
    signals = {"confidences": [9.0, 1.0], "tail_confidence": 9.0}
    kept = trace("kept", [9, 39], [0.5, 0.5], tokens=60, **signals)
    options = {**kept.options, "window": 4, "stop_below": 3.5}
    unsure = dataclasses.replace(kept, name="unsure", options=options)
    engine = run([kept, unsure], confidence=True)
    assert engine.ended["kept"].stop_reason is None
    assert engine.ended["unsure"].stop_reason == "confidence"
    # The first window below 3.5 is 9, 1, 1, 1: it ends with token 12.
    report = engine.report("unsure")
    assert report["lowest_confidence"] == pytest.approx(3.0)
    assert report["positions"] == [9]


def test_the_schedulers_of_every_day_take_no_recorded_signals():
    for kind in (StepScheduler, VictimScheduler):
        engine = run([trace("a", [4], [0.5])], kind=kind)
        assert "found 'replay'" in engine.report("a")["error"]


def test_a_replay_can_have_another_victim():
    scores = {"low": 0.1, "middle": 0.5, "high": 0.9}
    traces = [trace(n, [2, 20], [s, s], tokens=80) for n, s in scores.items()]
    ranks = dict(zip(scores, (2.0, 1.0, 3.0), strict=True))
    traces = [dataclasses.replace(t, options={**t.options, "rank": ranks[t.name]}) for t in traces]
    engine = run(traces, num_blocks=45, victim="rank")
    assert [name for name in scores if engine.pruned(name)] == ["middle"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"positions": [1, 2], "scores": [0.5]}, r"as many scores .* \(2\).*found 1"),
        ({"positions": [2, 2], "scores": [0.5, 0.5]}, "ascending positions"),
        ({"positions": [-1], "scores": [0.5]}, "ascending positions"),
        ({"positions": [1]}, "replay with positions and scores"),
        ("yes", "replay with positions and scores"),
    ],
)
def test_signals_that_cannot_be_used_are_refused(option, words):
    with pytest.raises(InputError, match=words):
        RecordedSteps.from_option(option)


def test_over_http_nobody_brings_signals():
    with pytest.raises(InputError, match="offline requests only"):
        ReplayOptions.from_extra_args({"step": '{"group": "g", "replay": {"positions": []}}'})


def test_a_token_past_the_recorded_ones_has_an_unknown_confidence():
    steps = RecordedSteps([3], [None], [1.5])
    assert [steps.confidence(p) for p in (0, 3)] == [1.5, 1.5]
    assert math.isnan(steps.confidence(4))
    assert math.isnan(steps.score(3))
