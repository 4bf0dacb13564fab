"""DeepConf online: the threshold, and one question on the demo model in a real engine."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_engine import made_up_model, write_questions
from hypothesis import given
from hypothesis import strategies as st

from step_infer.deepconf import HIGH, LOW, DeepConf
from step_infer.errors import InputError
from step_infer.eval_config import EvalConfig
from step_infer.eval_records import RecordStore
from step_infer.eval_statistics import voted_group
from step_infer.trace import Trace

CHECKPOINT = Path(__file__).parent.parent / "checkpoints" / "ledger-5m"


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


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Return the records of an evaluation of both kinds on the demo model."""
    if not (CHECKPOINT / "model.safetensors").exists():
        pytest.skip("the demo model is not there")
    folder = tmp_path_factory.mktemp("deepconf")
    questions = folder / "questions.jsonl"
    command = [sys.executable, "-m", "data_gen.ledger", "--split", "test", "--seed", "5"]
    subprocess.run([*command, "--count", "2", "--out", questions], check=True)
    options = {
        "--model": CHECKPOINT,
        "--methods": "deepconf-low,deepconf-high",
        "--questions": questions,
        "--out": folder / "out",
        "--num-traces": 16,
        "--warmup": 6,
        "--window": 64,
        "--engine.max_model_len": 2048,
        "--sampling.temperature": 1,
        "--sampling.top_p": 1,
        "--sampling.top_k": 0,
        "--system": "",
    }
    found = subprocess.run(
        [sys.executable, "-m", "step_infer.eval_command"]
        + [str(part) for pair in options.items() for part in pair],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    return RecordStore(folder / "out").read()


@pytest.mark.engine
@pytest.mark.parametrize(("method", "percentile"), [("deepconf-low", 90), ("deepconf-high", 10)])
def test_unsure_traces_are_stopped_and_neither_they_nor_an_unsure_warm_up_vote(
    records, method, percentile
):
    assert len(records[method]) == 2
    for record in records[method]:
        warm_up, others = record.traces[:6], record.traces[6:]
        assert all(trace.finish_reason in ("stop", "length") for trace in warm_up)
        bar = np.percentile([trace.lowest_confidence for trace in warm_up], percentile)
        assert {t.finish_reason for t in others} <= {"stop", "length", "confidence"}
        kept = [t for t in others if t.finish_reason != "confidence"]
        assert kept, "the last trace of the group was stopped"
        for trace in others:
            if trace.pruned:
                assert trace.lowest_confidence < bar
                assert trace.tokens >= 64
                assert trace.answer is None
        for trace in record.traces:
            votes = trace.answer is not None and trace.lowest_confidence > bar - 1e-4
            assert (trace.group is not None) == votes
        weights = {}
        for trace in record.traces:
            if trace.group is not None:
                weights[trace.group] = weights.get(trace.group, 0) + trace.lowest_confidence
        winner = max(weights, key=weights.get, default=None)
        assert voted_group(record, "lowest-confidence") == winner


@pytest.mark.engine
def test_low_stops_more_than_high_and_saves_tokens(records):
    stopped = {m: sum(t.pruned for r in group for t in r.traces) for m, group in records.items()}
    tokens = {m: sum(t.tokens for r in group for t in r.traces) for m, group in records.items()}
    assert stopped["deepconf-low"] > stopped["deepconf-high"]
    assert tokens["deepconf-low"] < tokens["deepconf-high"]
