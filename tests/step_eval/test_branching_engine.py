"""step-eval with branching and its control, on the demo model in real engines."""

import pytest
from places import CHECKPOINT, SCORER

from data_gen.ledger.__main__ import LedgerConfig, write_questions
from step_eval.config import EvalConfig
from step_eval.records import RecordStore
from step_eval.report.words import branch_rows
from step_eval.run import evaluate
from step_infer.client.branching import Branching
from step_infer.client.trace import Sampling

pytestmark = pytest.mark.engine


def test_records_and_reports_tell_of_parents(tmp_path):
    questions = tmp_path / "questions.jsonl"
    write_questions(LedgerConfig(questions, "test", count=1, seed=11))
    config = EvalConfig(
        model=str(CHECKPOINT),
        scorer=str(SCORER),
        methods="branch,branch-random",
        questions=str(questions),
        out=str(tmp_path / "out"),
        num_traces=32,
        kv_budget_tokens=12288,
        branch=Branching(min_tokens=128),
        engine={"max_model_len": 2048},
        sampling=Sampling(1.0, 1.0, 0),
        system="",
    )
    results = evaluate(config)
    rows = branch_rows(results)
    for name, (record,) in RecordStore(tmp_path / "out").read().items():
        by_id = {trace.trace_id: trace for trace in record.traces}
        children = [trace for trace in record.traces if trace.parent is not None]
        assert 0 < len(children) <= sum(trace.pruned for trace in record.traces)
        for trace in children:
            assert 0 < trace.inherited <= trace.tokens
            assert trace.inherited - 1 in by_id[trace.parent].positions
        metric = results["methods"][name]["metrics"]["tokens"]["value"]
        assert metric == sum(trace.own_tokens for trace in record.traces)
        assert any(f"{len(children)} traces branched from another" in row for row in rows)
        assert "score-shared" in results["methods"][name]["accuracy_by_vote"]
