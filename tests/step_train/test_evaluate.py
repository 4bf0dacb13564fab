"""Judging a scorer on traces: which questions, which scorer, and what comes out."""

import json
import shutil
import sys

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from synthetic_traces import write_traces

from step_infer.errors import InputError
from step_train.commands import main
from step_train.evaluate import evaluate_scorer
from step_train.evaluation.config import EvaluateConfig
from step_train.export.run import export
from step_train.fit.config import FitConfig
from step_train.fit.run import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    write_traces(path / "traces", "label", questions=40)
    options = {"max_epochs": 6, "learning_rate": 1e-3, "progress": False, "width": 64}
    fit(FitConfig(path / "traces", path / "run", **options, baselines="cheap"))
    export(path / "run", path / "scorer.safetensors")
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("other") / "traces"
    write_traces(path, "label", questions=20, seed=5)
    return path


@pytest.mark.parametrize(
    "content", ["[1]", '{"test": ["q1"]}', '{"train": 1, "val": 2, "test": 3}']
)
def test_a_damaged_split_is_refused(run, tmp_path, content):
    damaged = tmp_path / "run"
    shutil.copytree(run / "run", damaged)
    (damaged / "split.json").write_text(content)
    with pytest.raises(InputError, match="Expected lists of question ids under train, val, test"):
        evaluate_scorer(EvaluateConfig(damaged))


def test_where_no_run_is_none_is_said_to_be_unfinished(tmp_path):
    with pytest.raises(InputError, match=r"Expected a run directory .* found none there"):
        evaluate_scorer(EvaluateConfig(tmp_path / "nowhere"))


def test_a_run_is_judged_on_its_own_test_questions(run, tmp_path):
    found = evaluate_scorer(EvaluateConfig(run / "run", out=tmp_path / "found.json"))
    assert found["questions"] == "test"
    assert found["trained_on"] == 0
    own = json.loads((run / "run" / "metrics.json").read_text())
    assert found["aggregator"] == own["aggregator"]
    for name in ("auroc", "brier", "within_question"):
        for key, value in own["metrics"]["steps"][name].items():
            assert found["metrics"]["steps"][name][key] == pytest.approx(value, abs=1e-6)
    assert json.loads((tmp_path / "found.json").read_text()) == json.loads(json.dumps(found))
    assert found["kind"] == "scorer evaluation"


def test_figures_do_not_take_the_place_of_what_is_judged(run, monkeypatch):
    # Refused before any work.
    monkeypatch.setattr("step_train.evaluate.read_traces", None)  # refused before any work
    scorer, traces = run / "scorer.safetensors", run / "traces"
    for out in (scorer, traces / "manifest.json", run / "run" / "best.ckpt", traces):
        before = out.read_bytes() if out.is_file() else None
        source = {"scorer": scorer} if out == scorer else {"run": run / "run"}
        with pytest.raises(InputError, match=r"Expected (an output file apart|a file to write)"):
            evaluate_scorer(EvaluateConfig(**source, traces=traces, out=out))
        assert before is None or out.read_bytes() == before


def test_a_run_and_its_exported_file_agree_on_other_traces(run, other):
    first = evaluate_scorer(EvaluateConfig(run / "run", traces=other))
    second = evaluate_scorer(EvaluateConfig(scorer=run / "scorer.safetensors", traces=other))
    assert first["questions"] == second["questions"] == "all"
    assert first["trained_on"] == second["trained_on"] == 0
    assert first["metrics"] == second["metrics"]
    assert first["metrics"]["data"]["questions"] == 20
    assert first["metrics"]["steps"]["within_question"]["low"] > 0.9
    half = first["baselines"]["length"]["gain"]["50%"]
    assert half["low"] > 0.2
    votes = first["metrics"]["votes"]["by_traces"]
    assert list(votes) == ["4", "8"]


def test_questions_of_training_are_counted(run):
    found = evaluate_scorer(EvaluateConfig(run / "run", split="all"))
    split = json.loads((run / "run" / "split.json").read_text())
    assert found["trained_on"] == len(split["train"])
    found = evaluate_scorer(
        EvaluateConfig(scorer=run / "scorer.safetensors", traces=run / "traces")
    )
    assert found["trained_on"] is None


def test_one_question_has_figures_without_intervals(run, tmp_path):
    write_traces(tmp_path / "traces", "label", questions=1)
    found = evaluate_scorer(EvaluateConfig(run / "run", traces=tmp_path / "traces"))
    within = found["metrics"]["steps"]["within_question"]
    assert within["value"] > 0.9
    assert (within["low"], within["high"]) == (None, None)
    json.dumps(found, allow_nan=False)


def test_one_class_only_is_refused(run, tmp_path):
    changes = {number: {"is_correct": True} for number in range(16)}
    write_traces(tmp_path / "traces", "label", questions=2, changes=changes)
    message = "right and wrong traces .*found 16 right and 0 wrong. Hint: collect traces of more"
    with pytest.raises(InputError, match=message) as caught:
        evaluate_scorer(EvaluateConfig(run / "run", traces=tmp_path / "traces"))
    assert "--val-fraction" not in str(caught.value)  # no option of this command


def test_traces_without_a_boundary_or_a_label_are_counted(run, tmp_path):
    changes = {0: {"boundary_positions": []}, 9: {"is_correct": None}}
    write_traces(tmp_path / "traces", "label", questions=3, changes=changes)
    found = evaluate_scorer(EvaluateConfig(run / "run", traces=tmp_path / "traces"))
    assert {k: n for k, n in found["skipped_traces"].items() if n} == {
        "no boundary": 1,
        "no label": 1,
    }
    assert found["metrics"]["data"]["traces"] == 22
    # Those without a boundary still vote.
    assert found["metrics"]["votes"]["by_traces"]["8"]["questions"] == 3


def test_traces_that_do_not_fit_the_scorer_are_refused(run, tmp_path):
    write_traces(tmp_path / "wide", "label", questions=2, hidden_size=32)
    with pytest.raises(InputError, match="Expected hidden_size 16 .* found 32"):
        evaluate_scorer(EvaluateConfig(run / "run", traces=tmp_path / "wide"))
    directory = write_traces(tmp_path / "rule", "label", questions=2)
    manifest = json.loads((directory.path / "manifest.json").read_text())
    manifest["boundary"]["token_ids"] = [6, 7]
    (directory.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        InputError, match="the scorer's boundary rule, found another one in .*/rule. Hint"
    ):
        evaluate_scorer(EvaluateConfig(run / "run", traces=directory.path))


def test_states_that_are_not_finite_are_named(run, tmp_path):
    directory = write_traces(tmp_path / "traces", "label", questions=8)
    path = directory.shards()[1].path
    tensors = load_file(path)
    tensors["hidden"][5, 3] = np.nan
    save_file(tensors, path)
    with pytest.raises(InputError, match="finite hidden states, found .*shard-00001.*row 5"):
        evaluate_scorer(EvaluateConfig(run / "run", traces=tmp_path / "traces"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --run or --scorer, found none"),
        (["--run", "r", "--scorer", "s"], "either --run or --scorer, found both"),
        (["--scorer", "s"], "Expected --traces with --scorer"),
        (["--scorer", "s", "--traces", "t", "--split", "test"], "knows no split"),
        (["--run", "/none"], "/none"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step-train", "evaluate", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_the_command_prints_the_figures(run, other, tmp_path, monkeypatch, capsys):
    options = ["--run", run / "run", "--traces", other, "--out", tmp_path / "found.json"]
    monkeypatch.setattr(sys, "argv", ["step-train", "evaluate", *map(str, options)])
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = capsys.readouterr().out
    for words in ("within question", "trace length so far", "Right votes", "found.json"):
        assert words in printed
