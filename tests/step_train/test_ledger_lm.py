"""Training of the demo language model: learns, resumes exactly, exports a loadable model."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch
from places import ROOT
from refusals import refusal
from safetensors.torch import load_file

from data_gen.ledger.stream import TraceStream
from data_gen.ledger.tokenizer import encode_array, prompt_text
from step_infer.errors import InputError
from step_infer.scorer.identity import identify
from step_infer.storage.run_directory import RunDirectory
from step_train.commands import demo_model_command
from step_train.demo_model.config import LedgerLMConfig
from step_train.demo_model.export import new_model
from step_train.demo_model.module import LedgerLM
from step_train.demo_model.run import train_ledger_lm

pytestmark = pytest.mark.slow


def tiny(out, **changes):
    config = LedgerLMConfig(
        out=out,
        steps=6,
        tokens_per_batch=4096,
        warmup_steps=2,
        layers=1,
        hidden_size=128,
        intermediate_size=64,
        workers=0,
        compile=False,
        checkpoint_steps=3,
        log_steps=1,
    )
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run's directory."""
    out = tmp_path_factory.mktemp("run")
    assert train_ledger_lm(tiny(out)) == out / "model"
    return out


def rows(out):
    for path in sorted(out.glob("logs/*/metrics.csv")):
        with path.open() as file:
            yield from csv.DictReader(file)


def test_loss_falls_and_is_logged(finished):
    losses = [float(row["train_loss"]) for row in rows(finished) if row["train_loss"]]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.1
    assert any(row["val_loss"] for row in rows(finished))
    assert any(row["tokens_per_s"] for row in rows(finished))


def test_interrupted_run_resumes_to_the_same_weights(finished, tmp_path, monkeypatch):
    def interrupt(self, batch, batch_idx):
        if self.trainer.global_step == 4:
            raise RuntimeError("cut off")
        return training_step(self, batch, batch_idx)

    training_step = LedgerLM.training_step
    monkeypatch.setattr(LedgerLM, "training_step", interrupt)
    with pytest.raises(RuntimeError, match="cut off"):
        train_ledger_lm(tiny(tmp_path))
    monkeypatch.undo()
    assert not (tmp_path / "model").exists()
    folder = train_ledger_lm(tiny(tmp_path))
    ours = load_file(folder / "model.safetensors")
    theirs = load_file(finished / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_mixed_precision_trains_as_on_a_gpu(tmp_path):
    train_ledger_lm(tiny(tmp_path, precision="bf16-mixed", steps=3))
    losses = [float(row["train_loss"]) for row in rows(tmp_path) if row["train_loss"]]
    assert losses[-1] < losses[0]


def test_a_finished_run_is_not_trained_again(finished):
    weights = finished / "model" / "model.safetensors"
    before, logged = load_file(weights), rows(finished)
    assert train_ledger_lm(tiny(finished)) == finished / "model"
    after = load_file(weights)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [row["step"] for row in rows(finished)] == [row["step"] for row in logged]


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_checkpoint_is_named_and_removing_it_is_enough(finished, tmp_path, damage):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    if damage == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    else:
        torch.save([1, 2], checkpoint)
    found = refusal(lambda tmp: train_ledger_lm(tiny(tmp / "run")), tmp_path)
    assert found == (
        f"Expected a whole checkpoint of step-train demo-model at TMP/run/checkpoints/"
        f"{checkpoint.name}, found a damaged one. Hint: remove it and give the same command "
        "again; training goes on from the one before, or starts anew where there is none."
    )
    checkpoint.unlink()
    assert (train_ledger_lm(tiny(tmp_path / "run")) / "model.safetensors").is_file()


def test_other_settings_name_the_field(finished):
    with pytest.raises(InputError, match="Expected learning_rate 0.002 .* found 0.1"):
        train_ledger_lm(tiny(finished, learning_rate=0.1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps of at least 1"),
        ({"hidden_size": 192}, "multiples of 128"),
        ({"tokens_per_batch": 100}, "--tokens-per-batch of at least 2048"),
    ],
)
def test_bad_setting_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        train_ledger_lm(tiny(tmp_path, **change))


def test_unwritable_run_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Expected a writable output directory"):
        train_ledger_lm(tiny(tmp_path / "file" / "run"))


def test_two_processes_cannot_train_in_one_directory(tmp_path):
    with (
        RunDirectory(tmp_path, None).claim(),
        pytest.raises(InputError, match="Expected no other process writing"),
    ):
        train_ledger_lm(tiny(tmp_path))
    assert not (tmp_path / "checkpoints").exists()


def test_command_refuses_an_unknown_flag(tmp_path):
    with pytest.raises(InputError, match="demo-model"):
        demo_model_command(["--out", str(tmp_path), "--colour", "red"])


def test_exported_model_loads_and_generates(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(finished / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.generation_config.temperature == 1.0
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    messages = [{"role": "user", "content": "1+2"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    assert prompt[0].tolist() == encode_array(prompt_text("1+2")).tolist()
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5)
    assert prompt.shape[1] < out.shape[1] <= prompt.shape[1] + 5
    assert identify(folder).hidden_size == 128


def test_export_leaves_no_temporary_folder_and_a_manifest(finished):
    assert not list(finished.glob(".model.*"))
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["config"]["steps"] == 6
    assert manifest["held_out_loss"] > 0


def test_training_forward_equals_the_models_own_and_scores_responses_only():
    torch.manual_seed(0)
    net = new_model(2, 128, 64)
    module = LedgerLM(net, LedgerLMConfig(out=None, compile=False))  # type: ignore[arg-type]
    batch = next(iter(TraceStream(4096)))
    ids_BT = batch.ids_BT.long()
    with torch.no_grad():
        logits_BTV = net(input_ids=ids_BT).logits
        states_BTH = net.model.norm(module(ids_BT))
        torch.testing.assert_close(net.lm_head(states_BTH), logits_BTV)
        log_p = logits_BTV.log_softmax(-1)
        terms = [
            -log_p[b, t - 1, ids_BT[b, t]]
            for b in range(len(ids_BT))
            for t in range(int(batch.prompt_B[b]), int(batch.length_B[b]))
        ]
        torch.testing.assert_close(module._loss(batch), torch.stack(terms).mean())


def test_demo_model_has_the_stated_size():
    parameters = sum(p.numel() for p in new_model(6, 256, 768).parameters())
    assert 4.5e6 < parameters < 5e6


def test_two_processes_share_the_training_and_export_one_model(finished, tmp_path):
    options = ["--out", tmp_path / "run", "--devices", "2", "--steps", "6", "--workers", "0"]
    options += ["--tokens-per-batch", "4096", "--warmup-steps", "2", "--layers", "1"]
    options += ["--hidden-size", "128", "--intermediate-size", "64", "--compile", "false"]
    options += ["--checkpoint-steps", "3", "--log-steps", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "step_train.commands", "demo-model", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model written to") == 1
    both = json.loads((tmp_path / "run" / "manifest.json").read_text())
    alone = json.loads((finished / "manifest.json").read_text())
    assert (both["world_size"], alone["world_size"]) == (2, 1)
    # Each process has batches of its own: half the noise, the same course.
    assert both["held_out_loss"] == pytest.approx(alone["held_out_loss"], abs=0.05)
    one = load_file(finished / "model" / "model.safetensors")
    two = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert one.keys() == two.keys()
