"""Baselines: each reads what it says, and none finds what is not there."""

import numpy as np
import pytest
from places import CHECKPOINT
from synthetic_traces import write_traces

from data_gen.ledger.questions import question_text
from data_gen.ledger.tokenizer import build_tokenizer, prompt_text
from step_infer.scorer.identity import identify
from step_infer.storage.run_directory import read_manifest, write_manifest
from step_train.data.trace_table import read_traces
from step_train.data.training_data import read_training_data
from step_train.evaluation.baselines import Baseline, compare, known_baselines
from step_train.evaluation.baselines_trained import logistic_baseline, question_baseline
from step_train.evaluation.held_out import trace_scores
from step_train.evaluation.trace_facts import read_step_facts

SPLIT = {"val_fraction": 0.1, "test_fraction": 0.4, "max_traces_per_class": None, "seed": 0}


def data(path, signal, **options):
    write_traces(path, signal, **options)
    return read_training_data(path, **SPLIT)


def within(found, name):
    return found[name]["steps"]["within_question"]


def test_facts_come_in_the_order_of_the_steps(tmp_path):
    directory = write_traces(tmp_path / "traces", "noise", questions=20, part_traces=7)
    table, _ = read_traces(directory)
    facts = read_step_facts(directory, table)
    assert facts.tokens_S.tolist() == (3 * table.step_S + 3).tolist()
    rows = [row for part in range(directory.num_parts) for row in directory.part(part).to_pylist()]
    recorded = [value for row in rows for value in row["step_confidences"]]
    assert facts.confidence_S.tolist() == pytest.approx(recorded)
    some = table.of_questions(np.array([3, 11]))
    chosen = [r for r in rows if r["question_id"] in {table.questions[3], table.questions[11]}]
    recorded = [value for row in chosen for value in row["step_confidences"]]
    assert read_step_facts(directory, some).confidence_S.tolist() == pytest.approx(recorded)


def test_known_baselines_read_length_step_and_confidence(tmp_path):
    directory = write_traces(tmp_path / "traces", "noise", questions=4)
    table, _ = read_traces(directory)
    length, step, confidence = known_baselines(table, read_step_facts(directory, table))
    assert (length.score_S == -3.0 * (table.step_S + 1)).all()
    assert (step.score_S == -table.step_S).all()
    assert confidence.name == "confidence"
    assert (confidence.score_S >= 1).all()


def test_confidence_that_was_not_recorded_is_said_to_be_missing(tmp_path):
    changes = {3: {"step_confidences": None}}
    directory = write_traces(tmp_path / "traces", "noise", questions=4, changes=changes)
    table, _ = read_traces(directory)
    baselines = known_baselines(table, read_step_facts(directory, table))
    found = compare(table, np.full(table.num_steps, 0.5), "mean", baselines)
    assert found["confidence"] == {
        "label": "token confidence so far",
        "not_computed": "not recorded with these traces",
    }
    assert "steps" in found["length"]


def test_the_gain_is_paired_and_nothing_against_itself(tmp_path):
    directory = write_traces(tmp_path / "traces", "noise", questions=12)
    table, _ = read_traces(directory)
    facts = read_step_facts(directory, table)
    known = known_baselines(table, facts)
    same = compare(table, -1.0 * facts.tokens_S, "last", known[:1])["length"]
    assert same["gain"]["50%"] == {"value": 0.0, "low": 0.0, "high": 0.0, "questions": 12}
    truth = compare(table, table.label_S.astype(float), "mean", known)["length"]
    at_half = truth["trace_score"]["50%"]["within_question"]["value"]
    assert truth["gain"]["50%"]["value"] == pytest.approx(1 - at_half)
    assert truth["gain"]["50%"]["low"] > 0.2


def test_logistic_regression_finds_a_signal_and_none_in_noise(tmp_path):
    for signal, least in (("label", 0.9), ("noise", None)):
        read = data(tmp_path / signal, signal, questions=60)
        test = read.splits["test"]
        baseline = logistic_baseline(read, 64, "mean", 0)
        found = compare(test, np.full(test.num_steps, 0.5), "mean", [baseline])
        entry = within(found, "logistic")
        if least is None:
            assert entry["low"] <= 0.5 <= entry["high"]
        else:
            assert entry["low"] > least


def test_logistic_regression_keeps_to_its_memory(tmp_path, monkeypatch):
    read = data(tmp_path / "traces", "label", questions=60)
    # 400 training steps of 16 float32 numbers, three times.
    monkeypatch.setattr("step_train.evaluation.baselines_trained.MEBIBYTE", 400 * 3 * 4 * 16)
    asked = []
    gather = read.rows.gather
    monkeypatch.setattr(
        read.rows, "gather", lambda rows, out: asked.append(len(rows)) or gather(rows, out)
    )
    baseline = logistic_baseline(read, 1, "mean", 0)
    assert asked[0] == 400
    (whole,) = trace_scores(read.splits["test"], baseline.score_S, "mean", [1.0])
    right = read.splits["test"].correct_N
    assert whole[right].mean() > whole[~right].mean() + 0.2


def test_a_model_that_is_not_there_leaves_a_reason(tmp_path):
    read = data(tmp_path / "traces", "noise", questions=20)
    baseline = question_baseline(read)
    assert baseline.score_S is None
    assert baseline.not_computed == "model some/model is not on this machine"


def test_the_question_probe_reads_prompts_and_is_blind_within_question(tmp_path):
    # Questions with few numbers are mostly answered right, those with many mostly wrong.
    tokenizer, changes = build_tokenizer(), {}
    for number in range(40):
        easy = number % 2 == 0
        question = question_text([100 + number] * (3 if easy else 13))
        tokens = tokenizer.encode(prompt_text(question), add_special_tokens=False)
        for trace in range(8):
            right = trace < (6 if easy else 2)
            changes[8 * number + trace] = {"prompt_token_ids": tokens, "is_correct": right}
    path = tmp_path / "traces"
    write_traces(path, "noise", questions=40, hidden_size=256, changes=changes)
    identity = identify(str(CHECKPOINT))
    manifest = read_manifest(path) | {"model": str(CHECKPOINT)}
    manifest["identity"]["config_hash"] = identity.config_hash
    write_manifest(path, manifest)
    read = read_training_data(path, **SPLIT)
    test = read.splits["test"]
    baseline = question_baseline(read)
    assert baseline.not_computed == ""
    found = compare(test, baseline.score_S, "last", [baseline])
    assert within(found, "question")["value"] == 0.5
    assert found["question"]["steps"]["auroc"]["low"] > 0.58


def test_another_model_under_the_same_name_is_not_asked(tmp_path):
    path = tmp_path / "traces"
    write_traces(path, "noise", questions=20)
    write_manifest(path, read_manifest(path) | {"model": str(CHECKPOINT)})
    baseline = question_baseline(read_training_data(path, **SPLIT))
    assert "not the one that made the traces" in baseline.not_computed


def test_several_runs_by_chance_are_averaged_with_their_spread(tmp_path):
    directory = write_traces(tmp_path / "traces", "noise", questions=12)
    table, _ = read_traces(directory)
    scores = tuple(np.random.default_rng(run).random(table.num_steps) for run in range(4))
    scorer = table.label_S.astype(float)
    alone = [compare(table, scorer, "mean", [Baseline("shuffled", run)]) for run in scores]
    runs = [entry["shuffled"]["trace_score"]["50%"]["within_question"] for entry in alone]
    whole = compare(table, scorer, "mean", [Baseline("shuffled", scores[0], scores[1:])])
    found = whole["shuffled"]["trace_score"]["50%"]["within_question"]
    values = [run["value"] for run in runs]
    assert found["value"] == pytest.approx(np.mean(values))
    assert found["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert found["low"] == min(run["low"] for run in runs)
    assert found["high"] == max(run["high"] for run in runs)
    assert found["questions"] == 12
    gains = [entry["shuffled"]["gain"]["50%"]["value"] for entry in alone]
    assert whole["shuffled"]["gain"]["50%"]["value"] == pytest.approx(np.mean(gains))
    assert whole["shuffled"]["by_progress"][3]["from"] == 0.3
    assert whole["shuffled"]["runs"] == 4
