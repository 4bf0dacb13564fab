"""Methods that end a question when its vote is decided, and what that changed."""

import math

import pytest
from fake_engine import FakeEngine, made_up_model, made_up_scorer, write_questions

from step_eval.config import EvalConfig
from step_eval.decided import closing
from step_eval.methods.registry import METHODS, find_method, method_names, method_order
from step_eval.records import RecordStore
from step_eval.report.words import decided_rows, stop_rule_rows
from step_eval.run import evaluate
from step_eval.votes import most_weight, score_weigher
from step_infer.client.deciding import StopRule
from step_infer.errors import InputError

QUESTIONS, NUM_TRACES = 12, 16
ALL = "sc,sc+decided,step,step+decided"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decided")
    model = made_up_model(folder / "model") if (folder / "model").mkdir() is None else ""
    config = EvalConfig(
        model=model,
        questions=write_questions(folder / "q.jsonl", QUESTIONS),
        out=str(folder / "out"),
        scorer=made_up_scorer(folder / "scorer.safetensors", model),
        methods=ALL,
        num_traces=NUM_TRACES,
        kv_budget_tokens=6_000,
    )
    results = evaluate(config, FakeEngine)
    return results, RecordStore(folder / "out").read()


def test_a_decided_question_ends_with_the_same_answer_and_earlier(run):
    results, records = run
    for base in ("sc", "step"):
        found = results["decided"][f"{base}+decided"]
        assert found["pairs"] == QUESTIONS
        assert found["changed"] == []
        assert found["differences"]["seconds"]["difference"]["value"] < 0
        assert found["differences"]["tokens"]["difference"]["value"] < 0
        for plain, ended in zip(records[base], records[f"{base}+decided"], strict=True):
            assert ended.seconds <= plain.seconds
            assert len(ended.traces) == NUM_TRACES
    ends = [record.ended for record in records["sc+decided"]]
    assert ends.count("decided") > QUESTIONS / 2


def test_the_records_tell_pruned_and_decided_apart(run):
    results, records = run
    for record in records["step+decided"]:
        closed = [trace for trace in record.traces if trace.closed]
        assert bool(closed) == (record.ended == "decided")
        assert all(trace.answer is None and trace.group is None for trace in closed)
        assert not any(trace.pruned or trace.finished for trace in closed)
    metrics = results["methods"]["step+decided"]["metrics"]
    assert metrics["decided"]["value"] > 0
    assert metrics["pruned"]["value"] > 0
    assert results["methods"]["step"]["metrics"]["decided"]["value"] == 0
    assert results["methods"]["sc+decided"]["stop_totals"]["pruned"] == 0


def test_a_rule_on_the_records_says_what_really_came(run):
    """The pretended engine goes the same way with and without a rule, up to the decision."""
    _, records = run
    for base in ("sc", "step"):
        vote_by = find_method(base).vote
        for plain, ended in zip(records[base], records[f"{base}+decided"], strict=True):
            found = closing(plain, StopRule(), vote_by)
            assert found.seconds == pytest.approx(ended.seconds, abs=1e-4)


def test_both_views_are_told_in_words(run):
    results, _ = run
    row = next(row for row in decided_rows(results) if row["label"] == "STEP+decided")
    assert row["base"] == "STEP"
    assert row["changed"] == f"0 of {QUESTIONS} answers changed"
    assert row["seconds"].startswith("seconds \N{MINUS SIGN}")
    rules = [(row["label"], row["rule"]) for row in stop_rule_rows(results)]
    assert rules == [("SC", "unbeatable"), ("STEP", "unbeatable")]


def test_suffixes_make_a_method_of_any_other():
    for name, base in METHODS.items():
        method = find_method(f"{name}+decided")
        assert method.label == f"{base.label}+decided"
        assert method.stop_rule == ("consensus" if name.startswith("deepconf") else "unbeatable")
        assert method.vote == base.vote
    waves = find_method("sc+decided+wave8")
    assert (waves.wave, waves.stop_rule) == (8, "unbeatable")
    likely = find_method("sc+likely")
    assert (likely.stop_rule, likely.needs_scorer) == ("likely", True)
    assert method_order(["step+decided", "sc+likely", "step", "sc"]) == [
        *("sc", "sc+likely", "step", "step+decided")
    ]


@pytest.mark.parametrize("name", ["sc+", "sc+wave8", "sc+decided+likely", "sc+decided+wave0"])
def test_other_suffixes_are_refused(name):
    with pytest.raises(InputError, match=r"Hint: \+decided or \+likely may follow a name"):
        method_names(name)


def test_waves_need_a_method_that_starts_its_traces_itself():
    with pytest.raises(InputError, match=r"all at once before \+wave, found slim-sc"):
        method_names("slim-sc+decided+wave4")


def test_likely_is_refused_without_a_threshold_before_any_engine_starts(tmp_path):
    (tmp_path / "model").mkdir()
    model = made_up_model(tmp_path / "model")
    config = EvalConfig(
        model=model,
        questions=write_questions(tmp_path / "q.jsonl", 2),
        out=str(tmp_path / "out"),
        scorer=made_up_scorer(tmp_path / "scorer.safetensors", model),
        methods="step+likely",
    )
    with pytest.raises(InputError, match="likely with the vote score in the scorer card"):
        evaluate(config, FakeEngine)


def test_votes_have_a_most_weight_where_a_trace_alone_decides_it():
    assert [most_weight(name) for name in ("uniform", "score", "score^4")] == [1.0] * 3
    for name in ("best", "score-top-5", "confidence", "lowest-confidence"):
        assert most_weight(name) == math.inf
    assert score_weigher("score^2")(0.5) == 0.25
    assert score_weigher("uniform") is None
