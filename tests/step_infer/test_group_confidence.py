"""Group confidence: a sliding window's mean, and traces stopped when it falls too low."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_harness import (
    EOS,
    MAX_MODEL_LEN,
    WORD,
    Engine,
    Script,
    check_blocks,
    check_empty,
    make_scheduler,
    token_confidence,
)
from vllm.v1.engine import FinishReason

from step_infer.errors import InputError
from step_infer.scheduler import StepScheduler
from step_infer.scorer.group_confidence import GroupConfidence
from step_infer.settings import RequestOptions

WINDOW = 8
PROMPT = (WORD,) * 3


@given(
    st.lists(st.floats(0, 50) | st.just(math.nan), max_size=60),
    st.integers(1, 20),
)
def test_groups_are_the_means_of_all_full_windows(values, window):
    groups = GroupConfidence(window)
    found = [group for value in values if (group := groups.add(value)) is not None]
    finite = [value for value in values if math.isfinite(value)]
    windows = [np.mean(finite[i : i + window]) for i in range(len(finite) - window + 1)]
    assert found == pytest.approx(windows, abs=1e-9)
    if finite:
        assert groups.lowest == pytest.approx(min(windows, default=np.mean(finite)), abs=1e-9)
    else:
        assert groups.lowest is None


def script(name, tokens=60, group="g", **options):
    return Script(name, PROMPT, (WORD,) * (tokens - 1) + (EOS,), options=_options(group, options))


def _options(group, options):
    return {"group": group, "window": WINDOW, **options}


def groups_of(name, tokens):
    confidences = [token_confidence(name, i) for i in range(tokens)]
    return [float(np.mean(confidences[i : i + WINDOW])) for i in range(tokens - WINDOW + 1)]


def run(scripts, num_blocks=400, in_flight=1, **settings):
    engine = Engine(
        make_scheduler(StepScheduler, num_blocks, confidence=True, **settings), in_flight
    )
    for item in scripts:
        engine.add(item)
    while engine.busy:
        engine.step()
        check_blocks(engine.scheduler)
    check_empty(engine.scheduler)
    return engine


@pytest.mark.parametrize("in_flight", [0, 1], ids=["sync", "async"])
@pytest.mark.parametrize("num_blocks", [400, 40], ids=["roomy", "preempting"])
def test_a_trace_ends_with_the_token_that_takes_a_group_below_the_threshold(in_flight, num_blocks):
    names = [f"t{n}" for n in range(12)]
    bar = 4.6
    engine = run(
        [script(name, stop_below=bar) for name in names], num_blocks, in_flight, prune=False
    )
    assert (engine.preemptions > 0) == (num_blocks == 40)
    ends = {}
    for name in names:
        groups = groups_of(name, 60)
        low = next((i for i, group in enumerate(groups) if group < bar), None)
        ends[name] = None if low is None else low + WINDOW
    stopped = {name for name in names if ends[name] is not None}
    assert 0 < len(stopped) < len(names)
    for name in names:
        output, report = engine.ended[name], engine.report(name)
        length = ends[name] or 60
        assert len(engine.tokens[name]) == length
        assert report["lowest_confidence"] == pytest.approx(min(groups_of(name, length)))
        assert report["pruned"] is False
        early = length < 60
        assert (output.finish_reason == FinishReason.ABORT) == early
        assert (output.stop_reason == "confidence") == early


def test_the_last_trace_of_a_group_stays_however_unsure_it_is():
    names = [f"t{n}" for n in range(4)]
    engine = run([script(name, stop_below=99.0) for name in names])
    whole = [name for name in names if engine.ended[name].finish_reason == FinishReason.STOP]
    assert len(whole) == 1
    assert all(len(engine.tokens[name]) == WINDOW for name in names if name not in whole)


def test_without_a_threshold_no_trace_is_stopped_and_each_reports_its_lowest_group():
    engine = run([script("long"), script("short", tokens=5), Script("none", PROMPT, (WORD, EOS))])
    assert engine.report("long")["lowest_confidence"] == pytest.approx(min(groups_of("long", 60)))
    short = np.mean([token_confidence("short", i) for i in range(5)])
    assert engine.report("short")["lowest_confidence"] == pytest.approx(short)
    assert {len(engine.tokens[name]) for name in ("long", "short", "none")} == {60, 5, 2}


def test_a_window_longer_than_any_trace_stops_nobody():
    engine = run([script("t", stop_below=99.0, window=MAX_MODEL_LEN), script("u")])
    assert len(engine.tokens["t"]) == 60


def test_a_window_without_recorded_confidences_is_refused_and_the_request_runs(caplog):
    engine = Engine(make_scheduler(StepScheduler, 100))
    engine.add(script("t", stop_below=99.0))
    engine.run()
    assert len(engine.tokens["t"]) == 60
    assert "engine setting confidence only" in caplog.text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"window": 0}, "step option window a whole number >= 1, found 0"),
        ({"window": 2.5}, "step option window a whole number"),
        ({"stop_below": 3.0}, "Expected step option window beside stop_below"),
        ({"window": 8, "stop_below": "3"}, "stop_below a finite number, found '3'"),
        ({"window": 8, "stop_below": math.nan}, "stop_below a finite number, found nan"),
    ],
)
def test_bad_options_are_one_line(options, match):
    with pytest.raises(InputError, match=match) as error:
        RequestOptions.from_extra_args({"step": options})
    assert "\n" not in str(error.value)
