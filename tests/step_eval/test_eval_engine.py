"""One small evaluation end to end on the demo model in real engines."""

import pytest
from command_harness import run_command
from fake_engine import made_up_scorer
from places import CHECKPOINT

from data_gen.ledger.__main__ import LedgerConfig, write_questions
from step_eval.command import main
from step_eval.records import RecordStore
from step_infer.storage.files import read_json

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

NUM_TRACES = 6
QUESTIONS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the output directory and the finished command of a run of four methods."""
    folder = tmp_path_factory.mktemp("eval")
    questions = folder / "questions.jsonl"
    write_questions(LedgerConfig(questions, "test", QUESTIONS, seed=5))
    scorer = made_up_scorer(folder / "scorer.safetensors", str(CHECKPOINT))
    options = {
        "--model": CHECKPOINT,
        "--scorer": scorer,
        "--questions": questions,
        "--out": folder / "out",
        "--num-traces": NUM_TRACES,
        "--methods": "sc,step,random,oracle",
        "--kv-budget-tokens": 2100,
        "--engine.max_model_len": 2048,
        "--sampling.temperature": 1,
        "--sampling.top_p": 1,
        "--sampling.top_k": 0,
        "--system": "",
    }
    found = run_command(main, *(part for pair in options.items() for part in pair))
    assert found.returncode == 0, found.stderr[-4000:]
    return folder / "out", found


def test_all_methods_answer_under_the_same_budget(run):
    out, found = run
    results = read_json(out / "results.json")
    assert [m["questions"] for m in results["methods"].values()] == [QUESTIONS] * 4
    assert "Right under SC and wrong under oracle victim" in found.stdout
    assert (out / "report.html").stat().st_size > 50_000
    records = RecordStore(out).read()
    capacity = {r.kv_capacity_tokens for group in records.values() for r in group}
    assert capacity == {2112}


def test_stock_vllm_preempts_where_step_prunes(run):
    records = RecordStore(run[0]).read()
    for plain, step in zip(records["sc"], records["step"], strict=True):
        assert plain.preemptions > 0
        assert not any(trace.pruned for trace in plain.traces)
        assert step.preemptions == 0
        assert 0 < sum(trace.pruned for trace in step.traces) < NUM_TRACES
        assert plain.waiting_trace_s > 0
        assert [t.seed for t in plain.traces] == [t.seed for t in step.traces]


@pytest.mark.parametrize("method", ["random", "oracle"])
def test_other_victims_are_pruned_behind_the_same_trigger(run, method):
    records = RecordStore(run[0]).read()
    for plain, record in zip(records["sc"], records[method], strict=True):
        assert record.preemptions == 0
        assert 0 < sum(trace.pruned for trace in record.traces) < NUM_TRACES
        assert all(trace.scores for trace in record.traces if trace.pruned), "unscored traces stay"
        assert [t.seed for t in plain.traces] == [t.seed for t in record.traces]


def test_the_oracle_stops_no_right_trace_while_a_wrong_one_is_running(run):
    records = RecordStore(run[0]).read()
    wrong_stopped = 0
    for plain, record in zip(records["sc"], records["oracle"], strict=True):
        right = {trace.trace_id: trace.correct is True for trace in plain.traces}
        for victim in (trace for trace in record.traces if trace.pruned):
            if not right[victim.trace_id]:
                wrong_stopped += 1
                continue
            for trace in record.traces:
                ended = trace.finished_s <= victim.finished_s
                assert right[trace.trace_id] or ended or not trace.scores
    assert wrong_stopped > 0


def test_scores_stand_at_the_boundaries_of_the_traces(run):
    records = RecordStore(run[0]).read()
    for record in (*records["step"], *records["random"], *records["oracle"]):
        for trace in record.traces:
            assert len(trace.scores) == len(trace.positions) == len(trace.prefix_hashes)
            assert all(0 <= score <= 1 for score in trace.scores if score is not None)
            assert all(position < trace.tokens for position in trace.positions)


def test_readings_follow_the_cache(run):
    for group in RecordStore(run[0]).read().values():
        for record in group:
            series = record.series
            assert 0.5 < max(series.kv_use) <= 1
            assert series.time_s == sorted(series.time_s)
            assert series.time_s[-1] >= record.seconds - 0.01
            assert series.preemptions[-1] == record.preemptions
            assert series.running[-1] == 0
