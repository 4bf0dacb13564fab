"""Killed by SIGKILL: the same command goes on, to what an uninterrupted run gives."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from collect_engine import CollectEngine
from fake_engine import made_up_model
from held_process import held_at
from places import ROOT
from prepared_process import killed, start
from rich.console import Console
from safetensors.torch import load_file
from synthetic_traces import write_traces

from data_gen.collect import collect
from data_gen.config import CollectConfig, CollectMergeConfig
from data_gen.merge import merge
from data_gen.traces.directory import TraceDirectory
from step_infer.scorer.network import read_card
from step_infer.storage.files import read_json
from step_train.export.run import export
from step_train.fit.config import FitConfig
from step_train.fit.run import fit

pytestmark = pytest.mark.slow

FIT = """
from step_train.fit.run import fit
from step_train.fit.config import FitConfig
fit(FitConfig(Path(sys.argv[4]), Path(sys.argv[5]), max_epochs=4, width=32, learning_rate=1e-3,
              accelerator="cpu", baselines="none", progress=False))
"""
EXPORT = """
from step_train.export.run import export
export(Path(sys.argv[4]), Path(sys.argv[5]), force=True)
"""


def config(traces, run):
    return FitConfig(
        traces,
        run,
        max_epochs=4,
        width=32,
        learning_rate=1e-3,
        accelerator="cpu",
        baselines="none",
        progress=False,
    )


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    path = tmp_path_factory.mktemp("killed") / "traces"
    write_traces(path, "label", questions=20)
    return path


@pytest.fixture(scope="module")
def whole(traces, tmp_path_factory):
    return fit(config(traces, tmp_path_factory.mktemp("whole") / "run"))


@pytest.mark.parametrize(
    ("count", "name", "when"),
    [
        (1, "manifest.json", "after"),
        (1, "best.ckpt", "before"),
        (1, "last.ckpt", "before"),
        (2, "best.ckpt", "before"),
        (3, "last.ckpt", "before"),
        (1, "metrics.json", "before"),
        (2, "manifest.json", "before"),
    ],
    ids=[
        "before training",
        "in the first checkpoint",
        "between best and last",
        "in the best checkpoint",
        "in the last checkpoint",
        "before the result",
        "before the run is marked complete",
    ],
)
def test_a_fit_that_was_killed_goes_on_to_the_same_result(
    traces, whole, tmp_path, count, name, when
):
    killed(FIT, count, name, when, traces, tmp_path / "run")
    result = fit(config(traces, tmp_path / "run"))
    assert result.metrics == whole.metrics
    assert result.history == whole.history
    for file in ("best.ckpt", "last.ckpt"):
        found, expected = weights(result.run / file), weights(whole.run / file)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_fit_killed_from_outside_in_the_middle_of_training_goes_on(traces, whole, tmp_path):
    # Somewhere in the middle, and never after its end.
    code = "from held_process import stand_still_at; stand_still_at('metrics.json', 1)\n"
    code += "import sys; from pathlib import Path\n" + FIT
    arguments = ["", "", "", traces, tmp_path / "run"]
    process = start(code, *arguments, log=tmp_path / "log")
    last = tmp_path / "run" / "last.ckpt"
    deadline = time.monotonic() + 240
    while not last.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert last.exists()
    assert not (tmp_path / "run" / "metrics.json").exists()
    result = fit(config(traces, tmp_path / "run"))
    assert result.metrics == whole.metrics
    found, expected = weights(result.checkpoint), weights(whole.checkpoint)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def two_processes(traces, run, environment=None):
    """Start a fit on two CPU processes, in a process group of their own."""
    options = ["--traces", traces, "--out", run, "--devices", "2", "--accelerator", "cpu"]
    options += ["--max-epochs", "6", "--width", "32", "--learning-rate", "1e-3"]
    return subprocess.Popen(
        [sys.executable, "-m", "step_train.commands", *map(str, options), "--baselines", "none"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_two_processes_killed_in_the_middle_of_training_go_on_to_the_same_result(traces, tmp_path):
    whole = two_processes(traces, tmp_path / "whole")
    _, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors
    process = two_processes(traces, tmp_path / "run", held_at("last.ckpt", 4))
    last = tmp_path / "run" / "last.ckpt"
    deadline = time.monotonic() + 240
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    trained = torch.load(last, weights_only=True)["epoch"] + 1
    assert trained < 6
    assert not (tmp_path / "run" / "metrics.json").exists()
    again = two_processes(traces, tmp_path / "run")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    # It went on, and did not start again.
    assert "epoch 1/6" not in errors
    assert f"epoch {trained + 1}/6" in errors
    found, expected = (read_json(tmp_path / run / "metrics.json") for run in ("run", "whole"))
    assert found == expected
    for file in ("best.ckpt", "last.ckpt"):
        resumed, straight = weights(tmp_path / "run" / file), weights(tmp_path / "whole" / file)
        assert all(torch.equal(resumed[key], straight[key]) for key in straight)


def test_an_export_that_was_killed_leaves_no_half_file_and_starts_again(whole, tmp_path):
    path = tmp_path / "out" / "scorer.safetensors"
    killed(EXPORT, 1, path.name, "before", whole.run, path)
    assert not path.exists()
    card = export(whole.run, path, force=True)
    reference = tmp_path / "reference.safetensors"
    assert export(whole.run, reference, force=True) == card == read_card(path)
    found, expected = load_file(path), load_file(reference)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def model_and_traces(folder, questions):
    """Write a small model, and traces that have no states of it yet; return both."""
    from step_infer.scorer.identity import identify
    from step_infer.storage.run_directory import write_manifest
    from step_train.demo_model.export import export_model, new_model

    torch.manual_seed(0)
    model = folder / "model"
    export_model(new_model(2, 128, 256), model)
    source = write_traces(folder / "source", "noise", questions=questions, part_traces=6)
    assert identify(str(model)).hidden_size == 128
    write_manifest(source.path, source.manifest | {"identity": None})
    return model, source


def long_command(name, folder):
    """Return arguments of `step-train` that take long, and a file that it makes early."""
    if name == "fit":
        traces = write_traces(folder / "traces", "label", questions=20).path
        options = ["--traces", traces, "--width", "32", "--baselines", "none"]
        options += ["--max-epochs", "100000", "--patience", "100000"]
        first = "last.ckpt"
    elif name == "extract":
        model, source = model_and_traces(folder, questions=200)
        options = ["--model", model, "--traces", source.path, "--batch-tokens", "60"]
        first = "traces/part-00000.parquet"
    else:
        options = ["--layers", "1", "--hidden-size", "128", "--intermediate-size", "64"]
        options += ["--tokens-per-batch", "2048", "--checkpoint-steps", "2", "--precision", "32"]
        first = "checkpoints/step-0000002.ckpt"
    out = folder / "out"
    options += ["--out", out, *(["--accelerator", "cpu"] if name != "demo-model" else [])]
    return [name, *options], out / first


@pytest.mark.parametrize("name", ["fit", "extract", "demo-model"])
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)]
)
def test_a_run_that_is_told_to_end_ends_at_once_and_not_with_success(
    tmp_path, name, number, status
):
    arguments, first = long_command(name, tmp_path)
    code = "from step_train.commands import main; main()"
    process = start(code, *arguments, log=tmp_path / "log")
    deadline = time.monotonic() + 300
    while not first.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(200)
    errors = (tmp_path / "log").read_text()
    assert process.exitcode == status, errors
    assert first.exists()
    assert "Traceback" not in errors
    manifest = tmp_path / "out" / "manifest.json"  # the demo model's comes at the end
    assert not manifest.exists() or not read_json(manifest).get("complete")


EXTRACT = """
from step_train.extract.run import extract
from step_train.extract.config import ExtractConfig
extract(ExtractConfig(sys.argv[4], Path(sys.argv[5]), Path(sys.argv[6]), accelerator="cpu",
                      dtype="float32", batch_tokens=200, progress=False))
"""


@pytest.mark.parametrize(
    ("count", "name", "when"),
    [(2, "shard-*.safetensors", "after"), (2, "part-*.parquet", "after")],
    ids=["between shard and table", "between table and manifest"],
)
def test_an_extraction_that_was_killed_goes_on_to_the_same_features(tmp_path, count, name, when):
    from step_train.extract.config import ExtractConfig
    from step_train.extract.run import extract

    model, source = model_and_traces(tmp_path, questions=3)

    def settings(out):
        return ExtractConfig(
            str(model),
            source.path,
            out,
            accelerator="cpu",
            dtype="float32",
            batch_tokens=200,
            progress=False,
        )

    expected = extract(settings(tmp_path / "whole"))
    killed(EXTRACT, count, name, when, model, source.path, tmp_path / "out")
    assert TraceDirectory(tmp_path / "out").num_parts == 1
    found = extract(settings(tmp_path / "out"))
    found.verify()
    assert found.complete
    assert found.num_parts == expected.num_parts == source.num_parts
    for one, other in zip(found.shards(), expected.shards(), strict=True):
        assert torch.equal(one.hidden(), other.hidden())
        assert torch.equal(one.position(), other.position())
    assert not [path for path in (tmp_path / "out").rglob("*.tmp")]


COLLECT_MERGE = """
from data_gen.config import CollectMergeConfig
from data_gen.merge import merge
merge(CollectMergeConfig(sys.argv[4], sys.argv[5:]))
"""


@pytest.mark.parametrize(
    ("count", "name", "when"),
    [
        (1, "manifest.json", "after"),
        (2, "part-*.parquet", "before"),
        (2, "part-*.parquet", "after"),
        (2, "manifest.json", "before"),
        (3, "manifest.json", "before"),
    ],
    ids=["at the start", "in a part", "between parts", "before the list", "before the summary"],
)
def test_a_join_of_shards_that_was_killed_starts_again(tmp_path, count, name, when):
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"question": "1-1", "answer": "0"}\n{"question": "2-1", "answer": "1"}\n')
    model = made_up_model(tmp_path, hidden_size=CollectEngine.H)
    shards = []
    for index in range(2):
        out = str(tmp_path / f"shard{index}")
        config = CollectConfig(
            model, str(questions), out, num_traces=8, part_traces=4, shard=f"{index}/2"
        )
        collect(config, CollectEngine(), Console(file=io.StringIO()))
        shards.append(out)
    killed(COLLECT_MERGE, count, name, when, tmp_path / "out", *shards)
    left = TraceDirectory(tmp_path / "out")
    assert not left.complete
    assert left.num_parts in (0, 4)
    merge(CollectMergeConfig(str(tmp_path / "out"), shards), Console(file=io.StringIO()))
    merge(CollectMergeConfig(str(tmp_path / "whole"), shards), Console(file=io.StringIO()))
    found, expected = TraceDirectory(tmp_path / "out"), TraceDirectory(tmp_path / "whole")
    found.verify()
    assert found.complete
    assert found.num_traces == 16
    assert found.fingerprint == expected.fingerprint
    assert not [path for path in (tmp_path / "out").rglob("*.tmp")]
