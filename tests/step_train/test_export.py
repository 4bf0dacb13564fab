"""From checkpoint to scorer file: what travels, and what is refused."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from places import ROOT, SCORER
from safetensors.torch import load_file
from synthetic_traces import BOUNDARY, write_traces

from step_infer.errors import InputError
from step_infer.scorer.identity import ModelIdentity
from step_infer.scorer.network import load_scorer, read_card
from step_train.evaluation.acceptance import ranks_above_chance
from step_train.export.command import main
from step_train.export.run import export
from step_train.fit.config import FitConfig
from step_train.fit.run import fit
from step_train.run_directory import RECORD_KEY

MODEL = ModelIdentity("a/folder", "c" * 64, "t" * 64, 16)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    write_traces(path / "traces", "label", questions=40)
    options = {"max_epochs": 3, "learning_rate": 1e-3, "width": 32, "progress": False}
    return fit(FitConfig(path / "traces", path / "run", **options))


@pytest.fixture
def saved(result):
    return torch.load(result.checkpoint, weights_only=True)


def written(tmp_path, content):
    torch.save(content, tmp_path / "changed.ckpt")
    return tmp_path / "changed.ckpt"


def test_a_scorer_travels_unchanged_with_its_card(result, saved, tmp_path):
    path = tmp_path / "scorer.safetensors"
    card = export(result.run, path)
    scorer, loaded = load_scorer(path, expect=MODEL)
    assert loaded == card
    temperature = card.calibration["temperature"]
    assert temperature != 1
    for name, tensor in scorer.state_dict().items():
        scale = temperature if name.startswith("net.2") else 1
        assert torch.equal(tensor, saved["state_dict"][f"scorer.{name}"] / scale)
    assert (card.base_model, card.hidden_size, card.width) == ("some/model", 16, 32)
    assert card.boundary == BOUNDARY
    assert card.aggregator == result.aggregator
    assert card.metrics == result.metrics | {"earned": True}
    assert card.training["splits"] == result.data["splits"]
    assert card.training["epoch"] == result.best_epoch
    assert card.training["settings"]["width"] == 32
    assert "torch" in card.versions


def test_a_checkpoint_file_and_its_run_give_the_same_scorer(result, tmp_path):
    first = export(result.run, tmp_path / "a.safetensors")
    second = export(result.checkpoint, tmp_path / "b.safetensors")
    assert first == second
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_scorer_does_not_take_the_place_of_its_run(result):
    before = result.checkpoint.read_bytes()
    for source in (result.run, result.checkpoint):
        for name in ("best.ckpt", "last.ckpt", "manifest.json"):
            with pytest.raises(InputError, match="Expected an output file apart from what is read"):
                export(source, result.run / name)
    assert result.checkpoint.read_bytes() == before
    export(result.run, result.run / "scorer.safetensors")
    export(result.run, result.run / "scorer.safetensors")


def test_a_checkpoint_in_between_has_no_metrics(result, tmp_path):
    with pytest.raises(InputError, match="found none .not the best checkpoint.*--force"):
        export(result.run / "last.ckpt", tmp_path / "scorer.safetensors")
    card = export(result.run / "last.ckpt", tmp_path / "scorer.safetensors", force=True)
    assert card.metrics == {"earned": False}
    assert card.training["epoch"] == 3


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("model_config_hash", ModelIdentity("m", "x" * 64, "t" * 64, 16)),
        ("tokenizer_hash", ModelIdentity("m", "c" * 64, "x" * 64, 16)),
        ("hidden_size", ModelIdentity("m", "x" * 64, "x" * 64, 32)),
    ],
)
def test_loading_for_another_model_names_the_field(result, tmp_path, field, other):
    path = tmp_path / "scorer.safetensors"
    export(result.run, path)
    with pytest.raises(InputError, match=f"Expected {field} "):
        load_scorer(path, expect=other)
    if field != "hidden_size":
        load_scorer(path, expect=other, allow_mismatch=[field])


def test_what_is_missing_or_damaged_is_refused(result, tmp_path):
    with pytest.raises(
        InputError, match="Expected a checkpoint of step-train fit at .*best.ckpt, found none"
    ):
        export(tmp_path, tmp_path / "s")
    half = tmp_path / "half.ckpt"
    half.write_bytes(result.checkpoint.read_bytes()[:2000])
    with pytest.raises(InputError, match="damaged file"):
        export(half, tmp_path / "s")
    half.write_bytes(b"")
    with pytest.raises(InputError, match="damaged file"):
        export(half, tmp_path / "s")
    assert not (tmp_path / "s").exists()


class Bomb:
    """A pickle that would run code."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, {RECORD_KEY: Bomb()})
    with pytest.raises(InputError, match="tensors and plain data"):
        export(path, tmp_path / "s")
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="tensors and plain data"):
        export(path, tmp_path / "s")
    assert not (tmp_path / "exploded").exists()


class Foreign(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 1)


def test_another_projects_checkpoint_is_refused(tmp_path):
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(Foreign())
    trainer.save_checkpoint(tmp_path / "foreign.ckpt")
    for path in (tmp_path / "foreign.ckpt", written(tmp_path, [1, 2])):
        with pytest.raises(InputError, match="'step_scorer'.* found another one"):
            export(path, tmp_path / "s")


def test_a_field_that_does_not_fit_is_named(saved, tmp_path):
    good = saved["state_dict"]["scorer.net.0.weight"]
    for change, message in (
        (lambda s: s[RECORD_KEY].update(schema_version=9), "schema_version 1 .* found 9"),
        (lambda s: s[RECORD_KEY].pop("model"), "damaged one .*model"),
        (lambda s: s["state_dict"].pop("scorer.net.0.bias"), "net.0.bias .* found None"),
        (
            lambda s: s["state_dict"].update({"scorer.net.0.weight": good[:, :8]}),
            r"net.0.weight of shape \(32, 16\) .* found \(32, 8\)",
        ),
        (
            lambda s: s["state_dict"].update({"scorer.net.0.weight": good * torch.nan}),
            "NaN or infinity in net.0.weight",
        ),
    ):
        content = {**saved, "state_dict": dict(saved["state_dict"])}
        content[RECORD_KEY] = dict(saved[RECORD_KEY])
        change(content)
        with pytest.raises(InputError, match=message):
            export(written(tmp_path, content), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.fixture(scope="module")
def useless(tmp_path_factory):
    """A complete run on states that tell nothing."""
    path = tmp_path_factory.mktemp("useless")
    write_traces(path / "traces", "noise", questions=20)
    return fit(FitConfig(path / "traces", path / "run", max_epochs=1, width=8, progress=False))


@pytest.fixture
def command(monkeypatch, capsys):
    """Run scorer-export in this process; returns its status, output and errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["scorer-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return (left.value.code, *capsys.readouterr())

    return call


def test_the_command_exports_and_shows_the_card(command, result, tmp_path):
    path = tmp_path / "scorer.safetensors"
    status, output, errors = command(result.run, "--out", path)
    assert (status, errors) == (0, "")
    assert "some/model" in output
    assert read_card(path).aggregator == result.aggregator
    status, output, errors = command("--inspect", path)
    assert (status, errors) == (0, "")
    for text in ("some/model", "H = 16", "blank_line", "within question", "test split"):
        assert text in output


def test_the_shipped_scorer_shows_its_card_and_has_earned_its_place(command):
    path = SCORER
    status, output, errors = command("--inspect", path)
    assert (status, errors) == (0, "")
    assert "yes: within-question AUROC at half" in " ".join(output.split())
    assert "within question" in output


def test_a_scorer_that_cannot_rank_needs_force_and_says_so(command, useless, tmp_path):
    path = tmp_path / "scorer.safetensors"
    status, _, errors = command(useless.run, "--out", path)
    assert (status, path.exists()) == (2, False)
    assert "above 0.5 for within-question AUROC at half of the trace" in errors
    assert errors.count("\n") == 1
    status, output, errors = command(useless.run, "--out", path, "--force")
    assert (status, errors) == (0, "")
    assert "warning: this scorer has not earned its place" in output
    assert read_card(path).metrics["earned"] is False
    assert "NO: this scorer has not earned" in " ".join(command("--inspect", path)[1].split())


@pytest.mark.parametrize(
    ("within", "passes"),
    [
        ({"value": 0.7, "low": 0.51, "high": 0.9}, True),
        ({"value": 0.7, "low": 0.5, "high": 0.9}, False),
        ({"value": 0.3, "low": 0.2, "high": 0.4}, False),
        ({"value": 0.7, "low": None, "high": None}, False),
        ({"value": None, "low": None, "high": None}, False),
    ],
)
def test_the_gate_looks_at_half_of_the_trace_with_the_cards_aggregator(within, passes):
    useless = {"within_question": {"value": 0.5, "low": 0.4, "high": 0.6}}
    metrics = {"trace_score": {"last": {"50%": {"within_question": within}, "100%": useless}}}
    assert ranks_above_chance(metrics, "last", force=True) is passes
    assert ranks_above_chance(metrics, "mean", force=True) is False
    if not passes:
        with pytest.raises(InputError, match="at half of the trace"):
            ranks_above_chance(metrics, "last")


def test_the_command_refuses_in_one_line(command, result, tmp_path):
    for arguments, message in (
        ([], "Expected one of a checkpoint, --from-pt FILE and --inspect FILE, found 0"),
        ([result.run], "Expected --out FILE with a checkpoint"),
        (["--inspect", tmp_path / "none"], "Expected a scorer file"),
        (["--inspect", result.checkpoint], "Expected a safetensors file"),
        (
            [tmp_path / "none", "--out", tmp_path / "s"],
            "Expected a checkpoint of step-train fit at",
        ),
        ([result.run, "--out", "/proc/none/s"], "Expected a writable folder"),
    ):
        status, _, errors = command(*arguments)
        assert status == 2
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        assert message in errors


def test_export_needs_no_training_library():
    code = "import sys, step_train.export.run; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
