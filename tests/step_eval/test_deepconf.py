"""DeepConf online: the threshold and the settings; test_stopping_engine.py has the engine."""

import math

import numpy as np
import pytest
from fake_engine import made_up_model, write_questions
from hypothesis import given
from hypothesis import strategies as st

from step_eval.config import EvalConfig
from step_eval.methods.deepconf import HIGH, LOW, DeepConf
from step_infer.client.trace import Trace
from step_infer.errors import InputError


def ended(lowest):
    return Trace("q", 0, None, [], [], "", "stop", lowest_group_confidence=lowest)


@given(st.lists(st.floats(0, 40), min_size=1, max_size=40))
def test_low_keeps_the_top_tenth_of_the_warm_up_and_high_all_but_the_lowest_tenth(lowest):
    traces = [ended(value) for value in lowest] + [ended(None)]
    low, high = DeepConf(LOW).threshold(traces), DeepConf(HIGH).threshold(traces)
    assert low == pytest.approx(np.quantile(lowest, 0.9))
    assert high == pytest.approx(np.quantile(lowest, 0.1))
    most = math.ceil((len(lowest) - 1) / 10)
    assert sum(value > low for value in lowest) <= most
    assert sum(value < high for value in lowest) <= most


def test_without_confidences_there_is_no_threshold():
    assert DeepConf().threshold([ended(None)]) is None


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"warmup": 0}, "Expected warmup of at least 1, found 0"),
        ({"window": 0}, "Expected window of at least 1, found 0"),
        ({"percentile": 101}, r"Expected a percentile in \[0, 100\], found 101"),
    ],
)
def test_bad_settings_are_one_line(options, match):
    with pytest.raises(InputError, match=match):
        DeepConf(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_traces": 16}, r"--warmup below --num-traces \(16\) for the method deepconf-low"),
        ({"window": 0}, "Expected --window of at least 1, found 0"),
    ],
)
def test_step_eval_refuses_bad_settings(tmp_path, options, match):
    config = {
        "model": made_up_model(tmp_path),
        "questions": write_questions(tmp_path / "questions.jsonl", 1),
        "out": str(tmp_path / "out"),
        "methods": "sc,deepconf-low",
    }
    with pytest.raises(InputError, match=match):
        EvalConfig(**{**config, **options})
