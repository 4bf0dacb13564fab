"""Token confidence beside the scorer: its weight is chosen, and it is added everywhere alike."""

import json
import re

import numpy as np
import pytest
from synthetic_traces import write_traces

from data_gen.traces.directory import TraceDirectory
from step_eval.recorded.files import read_pool
from step_infer.errors import InputError
from step_infer.scorer.network import load_scorer
from step_train.commands import main
from step_train.data.feature_blocks import FeatureRows
from step_train.data.trace_table import read_traces
from step_train.evaluate import evaluate_scorer, score_steps
from step_train.evaluation.config import EvaluateConfig
from step_train.evaluation.trace_facts import read_confidences
from step_train.export.run import export
from step_train.fit.confidence import SHARES, choose_confidence
from step_train.fit.config import FitConfig
from step_train.fit.run import fit

pytestmark = pytest.mark.slow


def with_confidences(path, signal, told, **options):
    """Write traces whose confidences are 10, plus `told` where the trace is right, plus noise."""
    first = write_traces(path / "first", signal, **options)
    noise = np.random.default_rng(3)
    changes, number = {}, 0
    for part in range(first.num_parts):
        for row in first.part(part).to_pylist():
            values = 10 + told * row["is_correct"] + noise.normal(size=row["num_steps"])
            changes[number] = {"step_confidences": values.tolist()}
            number += 1
    return write_traces(path / "traces", signal, changes=changes, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("confidence")
    with_confidences(path, "both", told=1.0, questions=60, strength=0.7)
    options = {"max_epochs": 3, "learning_rate": 1e-3, "progress": False, "width": 32}
    options |= {"baselines": "none", "val_fraction": 0.3, "test_fraction": 0.4}
    for name, confidence in (("plain", False), ("run", True)):
        fit(FitConfig(path / "traces", path / name, **options, confidence=confidence))
        export(path / name, path / f"{name}.safetensors", force=True)
    return path


def half_way(path, name):
    found = evaluate_scorer(EvaluateConfig(path / name, split="test"))
    return found["metrics"]["trace_score"][found["aggregator"]]["50%"]["within_question"]["value"]


def test_a_confidence_that_tells_right_from_wrong_ranks_traces_better(run):
    assert half_way(run, "run") > half_way(run, "plain") + 0.05
    assert load_scorer(run / "plain.safetensors")[1].confidence == {}


def test_figures_of_the_fit_are_those_of_the_file(run):
    own = json.loads((run / "run" / "metrics.json").read_text())
    found = evaluate_scorer(EvaluateConfig(run / "run"))
    assert found["aggregator"] == own["aggregator"]
    for name in ("auroc", "brier", "within_question"):
        for key, value in own["metrics"]["steps"][name].items():
            assert found["metrics"]["steps"][name][key] == pytest.approx(value, abs=1e-6)


def test_recorded_traces_get_the_same_scores_by_the_file(run):
    scorer, card = load_scorer(run / "run.safetensors")
    directory = TraceDirectory(run / "traces")
    table, _ = read_traces(directory)
    added_S = card.confidence_term.logits(read_confidences(directory, table))
    expected_S = score_steps(scorer, FeatureRows(directory.shards()), table, added_S)
    pool = read_pool(directory.path, str(run / "run.safetensors"))
    found = [score for q in pool.questions for trace in q.traces for score in trace.scores]
    assert sorted(found) == pytest.approx(sorted(expected_S.tolist()), abs=1e-6)


def test_a_confidence_that_misleads_is_left_out(tmp_path):
    directory = with_confidences(tmp_path, "label", told=-2.0)
    table, _ = read_traces(directory)
    logits_S = np.where(table.label_S, 0.3, -0.3)
    logits_S = logits_S + np.random.default_rng(0).normal(size=table.num_steps)
    term, choice = choose_confidence(table, logits_S, read_confidences(directory, table))
    assert term is None
    assert list(choice) == [f"{share:g}" for share in SHARES]
    assert choice["0"] == max(choice.values())


def test_a_confidence_that_never_changes_is_left_out(tmp_path):
    directory = write_traces(tmp_path / "traces", "noise")
    table, _ = read_traces(directory)
    logits_S = np.random.default_rng(0).normal(size=table.num_steps)
    term, choice = choose_confidence(table, logits_S, np.full(table.num_steps, 7.0))
    assert term is None
    assert len(set(choice.values())) == 1


def test_the_weight_is_chosen_for_the_aggregator_that_was_asked_for(tmp_path):
    """The last step of right traces alone is surer: only the aggregator last can use it."""
    directory = write_traces(tmp_path / "traces", "noise", questions=40)
    table, _ = read_traces(directory)
    random = np.random.default_rng(0)
    logits_S, confidence_S = random.normal(size=(2, table.num_steps))
    confidence_S += 3 * table.label_S * (-1.0) ** table.step_S
    by_name = {
        name: choose_confidence(table, logits_S, confidence_S, name)[1] for name in ("last", "min")
    }
    auto = choose_confidence(table, logits_S, confidence_S)[1]
    assert by_name["last"] != by_name["min"]
    for share, value in auto.items():
        assert value >= max(found[share] for found in by_name.values())


def test_traces_without_confidences_are_refused_before_training(tmp_path):
    write_traces(tmp_path / "traces", "label", changes={3: {"step_confidences": None}})
    config = FitConfig(tmp_path / "traces", tmp_path / "run", confidence=True, test_fraction=0.5)
    with pytest.raises(InputError, match=r"Expected the token confidence at every step of .*none"):
        fit(config)
    assert not (tmp_path / "run" / "best.ckpt").exists()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (1.0, r"Token confidence: \+\d\.\d{3} on the logit for each nat\."),
        (-3.0, r"Token confidence: left out; validation questions are ranked best without\."),
    ],
)
def test_the_command_says_whether_confidence_is_taken(tmp_path, monkeypatch, capsys, told, said):
    with_confidences(tmp_path, "both", told=told, questions=40, strength=1.5)
    arguments = ["--traces", str(tmp_path / "traces"), "--out", str(tmp_path / "run")]
    arguments += ["--confidence", "true", "--baselines", "none", "--progress", "false"]
    arguments += ["--max-epochs", "8", "--learning-rate", "1e-3"]
    monkeypatch.setattr("sys.argv", ["step-train", "fit", *arguments])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert re.search(said, capsys.readouterr().out)
