"""Training a step scorer: what it learns, that it is repeatable, and that it goes on."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from places import ROOT
from safetensors.torch import load_file, save_file
from synthetic_traces import write_traces
from two_nodes import run_on_two_nodes

from step_infer.errors import InputError
from step_train.commands import main
from step_train.data.training_data import read_training_data
from step_train.fit.config import FitConfig
from step_train.fit.run import fit
from step_train.run_directory import RECORD_KEY, FitDirectory

pytestmark = pytest.mark.slow


def config(traces, out, **options):
    defaults = {"max_epochs": 6, "learning_rate": 1e-3, "progress": False, "width": 64}
    defaults["baselines"] = "none"
    return FitConfig(traces, out, **(defaults | options))


def weights(result, name="best.ckpt"):
    saved = torch.load(result.run / name, weights_only=True)
    return saved["state_dict"]


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def separable(tmp_path_factory):
    path = tmp_path_factory.mktemp("separable") / "traces"
    write_traces(path, "label", questions=40)
    return path


@pytest.fixture(scope="module")
def trained(separable, tmp_path_factory):
    return fit(config(separable, tmp_path_factory.mktemp("trained") / "run"))


def test_states_that_tell_right_from_wrong_are_learned(trained):
    steps = trained.metrics["steps"]
    assert steps["auroc"]["value"] > 0.95
    assert steps["within_question"]["low"] > 0.9
    assert steps["f1"]["value"] > 0.85
    assert trained.metrics["trace_score"]["mean"]["100%"]["within_question"]["value"] > 0.99
    losses = [row["train_loss"] for row in trained.history]
    assert losses[-1] < 0.6 * losses[0]


def test_pure_noise_gives_half_within_its_interval(tmp_path):
    write_traces(tmp_path / "traces", "noise", questions=100)
    result = fit(config(tmp_path / "traces", tmp_path / "run", test_fraction=0.4))
    for metric in ("auroc", "within_question"):
        found = result.metrics["steps"][metric]
        assert found["low"] <= 0.5 <= found["high"], metric
        assert found["value"] == pytest.approx(0.5, abs=0.06)


def test_states_that_name_the_question_only_are_half_within_question(tmp_path):
    write_traces(tmp_path / "traces", "question", questions=100, traces=10)
    result = fit(config(tmp_path / "traces", tmp_path / "run", test_fraction=0.4))
    steps = result.metrics["steps"]
    assert steps["auroc"]["low"] > 0.58
    assert steps["within_question"]["low"] <= 0.5 <= steps["within_question"]["high"]
    assert steps["within_question"]["value"] == pytest.approx(0.5, abs=0.04)


def test_a_run_leaves_logs_a_picture_and_its_split(trained, separable):
    run = trained.run
    lines = (run / "csv" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 1 + trained.epochs
    assert {"step", "train_loss", "val_loss", "val_auroc", "val_within_question"} <= set(
        lines[0].split(",")
    )
    assert list((run / "tensorboard").glob("events.*"))
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    split = json.loads((run / "split.json").read_text())
    ids = [question for name in ("train", "val", "test") for question in split[name]]
    assert len(ids) == len(set(ids)) == 40
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["settings"]["seed"] == 0
    assert manifest["data"]["splits"]["test"]["questions"] == len(split["test"])
    assert json.loads((run / "metrics.json").read_text())["metrics"] == trained.metrics


def test_a_run_is_compared_with_baselines_that_are_what_they_should_be(separable, tmp_path):
    result = fit(config(separable, tmp_path / "run", baselines="all", shuffles=3))
    found = result.baselines
    assert set(found) == {
        *("definitions", "length", "step", "confidence", "logistic", "question", "shuffled")
    }
    shuffled = found["shuffled"]["trace_score"]["50%"]["within_question"]
    assert shuffled["low"] < 0.7
    assert shuffled["deviation"] > 0
    assert found["shuffled"]["label"] == "shuffled labels, mean of 3"
    assert found["shuffled"]["gain"]["50%"]["value"] > 0.2
    assert found["logistic"]["trace_score"]["50%"]["within_question"]["value"] > 0.95
    assert found["length"]["gain"]["50%"]["low"] > 0.1
    assert "not on this machine" in found["question"]["not_computed"]
    assert list(result.metrics["votes"]["by_traces"]) == ["4", "8"]
    # Neither they nor the second training change the scorer.
    without = fit(config(separable, tmp_path / "without"))
    assert without.metrics == result.metrics
    assert same(weights(without), weights(result))
    assert json.loads((result.run / "metrics.json").read_text())["baselines"] == found


def test_the_loss_weight_is_that_of_the_training_split(trained):
    train = trained.data["splits"]["train"]
    expected = (train["steps"] - train["right_steps"]) / train["right_steps"]
    assert trained.data["pos_weight"] == pytest.approx(expected)


def test_the_same_seed_gives_the_same_weights(trained, separable, tmp_path):
    again = fit(config(separable, tmp_path / "again"))
    assert same(weights(trained), weights(again))
    assert trained.metrics == again.metrics
    other = fit(config(separable, tmp_path / "other", seed=1))
    assert not same(weights(trained), weights(other))


def test_little_memory_changes_the_order_but_not_what_is_learned(separable, tmp_path, monkeypatch):
    monkeypatch.setattr("step_train.data.datamodule.MEBIBYTE", 2**14)
    result = fit(config(separable, tmp_path / "run", memory_mib=1))
    assert result.metrics["steps"]["auroc"]["value"] > 0.95


class Interrupt(Callback):
    """Fails in the middle of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == self.epoch and trainer.global_step % 3 == 2:
            raise RuntimeError("interrupted")


def test_an_interrupted_run_goes_on_to_the_same_weights(trained, separable, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(config(separable, run), [Interrupt(epoch=3)])
    assert not (run / "metrics.json").exists()
    # The directory may be moved in between.
    moved = run.rename(tmp_path / "moved")
    result = fit(config(separable, moved))
    assert result.epochs == trained.epochs
    assert same(weights(trained, "last.ckpt"), weights(result, "last.ckpt"))
    assert same(weights(trained), weights(result))
    assert result.metrics == trained.metrics
    assert (moved / "csv" / "metrics.csv").read_text() == (
        trained.run / "csv" / "metrics.csv"
    ).read_text()


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_full_disk_is_one_line_and_loses_nothing(trained, separable, tmp_path, monkeypatch, name):
    left, sync = [2], os.fsync

    def full(file):
        left[0] -= f".{name}." in os.readlink(f"/proc/self/fd/{file}")
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=f"Expected room on the disk for .*/{name}, found it"):
            fit(config(separable, run))
    assert torch.load(run / name, weights_only=True)["epoch"] == 0
    assert not list(run.glob(".*.tmp"))
    assert same(weights(trained, name), weights(fit(config(separable, run)), name))


def test_a_full_disk_is_named_whatever_is_written(separable, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lightning.pytorch.loggers.CSVLogger.save", full)
    with pytest.raises(InputError, match="Expected room on the disk for .*/run, found it full"):
        fit(config(separable, tmp_path / "run"))


@pytest.fixture
def interrupted(separable, tmp_path):
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(config(separable, tmp_path / "run"), [Interrupt(epoch=3)])
    return tmp_path / "run"


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("name", "others", "hint"),
    [
        ("last.ckpt", [], "remove it and give the same command again; training goes on from best"),
        ("best.ckpt", ["last.ckpt"], "remove it, where it is there, and last.ckpt, and give the"),
    ],
)
def test_a_damaged_checkpoint_is_named_with_what_to_do(
    trained, separable, interrupted, name, others, hint
):
    cut(interrupted / name)
    with pytest.raises(InputError, match=f"/{name}, found a damaged one. Hint: {hint}"):
        fit(config(separable, interrupted))
    for file in [name, *others]:
        (interrupted / file).unlink()
    result = fit(config(separable, interrupted))
    assert result.history == trained.history
    assert same(weights(trained), weights(result))


def test_a_run_whose_best_checkpoint_is_gone_does_not_train_to_its_end(separable, interrupted):
    (interrupted / "best.ckpt").unlink()
    with pytest.raises(InputError, match="/best.ckpt, found none. Hint: remove it, where"):
        fit(config(separable, interrupted))


@pytest.mark.parametrize("patience", [1, 50], ids=["stopped early", "all epochs"])
def test_a_run_that_was_trained_but_not_judged_is_judged(tmp_path, monkeypatch, patience):
    write_traces(tmp_path / "traces", "noise", questions=20)
    options = {"patience": patience, "max_epochs": 12 if patience == 1 else 3}
    whole = fit(config(tmp_path / "traces", tmp_path / "whole", **options))
    assert (whole.epochs < 12) if patience == 1 else (whole.epochs == 3)
    with monkeypatch.context() as patch:
        patch.setattr("step_train.fit.run.evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fit(config(tmp_path / "traces", tmp_path / "run", **options))
    result = fit(config(tmp_path / "traces", tmp_path / "run", **options))
    assert result.history == whole.history
    assert result.metrics == whole.metrics
    assert same(weights(result), weights(whole))


def test_a_complete_run_is_only_read(trained, separable, monkeypatch):
    monkeypatch.setattr("step_train.fit.run.train", None)
    result = fit(config(separable, trained.run, memory_mib=7, devices=4))
    assert result.metrics == trained.metrics
    assert result.aggregator == trained.aggregator


def test_early_stopping_waits_for_patience(tmp_path):
    write_traces(tmp_path / "traces", "noise", questions=20)
    result = fit(config(tmp_path / "traces", tmp_path / "run", max_epochs=40, patience=3))
    assert result.epochs == result.best_epoch + 3
    saved = torch.load(result.checkpoint, weights_only=True)
    assert saved["epoch"] + 1 == result.best_epoch
    assert saved[RECORD_KEY]["metrics"] == result.metrics


@pytest.mark.parametrize(
    "options", [{"accelerator": "nonsense"}, {"accelerator": "cuda", "devices": 99}]
)
def test_a_device_that_is_not_there_is_refused(separable, tmp_path, options):
    with pytest.raises(
        InputError, match="machine has, found: .* Hint: see --accelerator and --devices"
    ):
        fit(config(separable, tmp_path / "run", **options))


def test_the_aggregator_can_be_given(separable, tmp_path):
    assert fit(config(separable, tmp_path / "run", aggregator="min")).aggregator == "min"


def test_other_settings_in_the_same_directory_are_refused_by_name(trained, separable):
    with pytest.raises(InputError, match="Expected width 64 .* found 32"):
        fit(config(separable, trained.run, width=32))


def test_other_traces_in_the_same_directory_are_refused(trained, tmp_path):
    write_traces(tmp_path / "traces", "label", questions=40, seed=9)
    with pytest.raises(InputError, match="Expected traces_fingerprint"):
        fit(config(tmp_path / "traces", trained.run))


def test_a_directory_of_something_else_is_refused(separable, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"found notes\.txt and no manifest\.json"):
        fit(config(separable, tmp_path))
    with pytest.raises(InputError, match="kind 'traces'"):
        fit(config(separable, separable))


def test_two_processes_cannot_train_in_one_directory(separable, trained):
    with (
        FitDirectory(trained.run).claim(),
        pytest.raises(InputError, match="Expected no other process writing"),
    ):
        fit(config(separable, trained.run))
    fit(config(separable, trained.run))


@pytest.mark.parametrize("normalise", ["none", "standard"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan], ids=["infinity", "NaN"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_states_that_are_not_finite_are_named(tmp_path, split, value, normalise):
    directory = write_traces(tmp_path / "traces", "label", questions=20)
    options = {"max_epochs": 2, "normalise": normalise, "verify_checksums": False}
    settings = config(tmp_path / "traces", tmp_path / "run", **options)
    read = read_training_data(
        settings.traces,
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        max_traces_per_class=None,
        seed=settings.seed,
    )
    shard, row = read.splits[split].shard_N[-1], read.splits[split].row_start_N[-1]
    path = directory.shards()[shard].path
    tensors = load_file(path)
    tensors["hidden"][row, 3] = value
    save_file(tensors, path)
    message = f"finite hidden states, found NaN or infinity in .*shard-0000{shard}.*, row {row}\\."
    with pytest.raises(InputError, match=message):
        fit(settings)
    assert not (settings.out / "metrics.json").exists()


def test_traces_without_features_are_refused(tmp_path):
    directory = write_traces(tmp_path / "traces", "label", questions=5)
    manifest = json.loads((directory.path / "manifest.json").read_text())
    for part in manifest["parts"]:
        part["features"] = None
    (directory.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="Expected features in"):
        fit(config(tmp_path / "traces", tmp_path / "run"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch-size of at least 1"),
        ({"learning_rate": 0.0}, "--learning-rate above 0"),
        ({"patience": 0}, "--patience of at least 1"),
        ({"seed": -1}, "--seed from 0 to 4294967295"),
        ({"seed": 2**32}, "--seed from 0 to 4294967295"),
        ({"test_seed": -1}, "--test-seed from 0 to 4294967295"),
        ({"shuffles": 0}, "--shuffles of at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        config("traces", "run", **options)


def test_the_command_trains_and_says_what_came_of_it(separable, tmp_path):
    options = ["--traces", separable, "--out", tmp_path / "run", "--max-epochs", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "step_train.commands", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stderr
    assert "warn" not in done.stderr.lower()
    assert "within question" in done.stdout
    assert "scorer-export" in done.stdout


def test_two_processes_give_what_one_gives(trained, separable, tmp_path):
    options = ["--traces", separable, "--out", tmp_path / "run", "--devices", "2"]
    options += ["--accelerator", "cpu", "--max-epochs", "6", "--learning-rate", "1e-3"]
    done = subprocess.run(
        [sys.executable, "-m", "step_train.commands", *options, "--width", "64"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Best of") == 1
    outcome = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for name, value in trained.metrics["steps"]["auroc"].items():
        assert outcome["metrics"]["steps"]["auroc"][name] == pytest.approx(value, abs=1e-4)
    # Adam enlarges the rounding of sums where a gradient is almost 0: here to 2e-4 at most.
    both = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in weights(trained, "last.ckpt").items():
        torch.testing.assert_close(both[name], tensor, atol=5e-4, rtol=0)


def test_two_nodes_give_what_one_process_gives(trained, separable, tmp_path):
    options = ["--traces", separable, "--out", tmp_path / "run", "--accelerator", "cpu"]
    options += ["--max-epochs", "6", "--learning-rate", "1e-3", "--width", "64", "--shuffles", "1"]
    first, second = run_on_two_nodes("fit", *options)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "Best of" in first.stdout
    assert not second.stdout, "only the first node tells"
    outcome = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert outcome["best_epoch"] == trained.best_epoch
    # The same batches; sums are rounded in another order (see the test above).
    both = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in weights(trained, "last.ckpt").items():
        torch.testing.assert_close(both[name], tensor, atol=5e-4, rtol=0)
    again = run_on_two_nodes("fit", *options)
    assert [node.returncode for node in again] == [0, 0], "a complete run is only read"
    assert not again[1].stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--traces", "/none", "--out", "/none/run"], "at /none, found no such directory"),
        (["--traces", "t", "--out", "o", "--batch-size", "0"], "--batch-size of at least 1"),
        (["--traces", "t", "--out", "o", "--widht", "1"], "widht"),
        (["nonsense"], "Expected options, or a subcommand out of fit, sweep, evaluate, extract"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step-train", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
