"""Published scorers: PyTorch checkpoints of the paper's form come in, anything else stays out."""

import sys
from pathlib import Path

import pytest
import torch
from places import CHECKPOINT
from torch import nn

from step_infer.client.prompt import load_tokenizer
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.identity import identify
from step_infer.scorer.network import load_scorer, read_card
from step_train.export.command import main
from step_train.export.published import import_scorer, read_network

H = 256


def network(width=512, hidden_size=H, last=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(hidden_size, width), nn.ReLU(), nn.Linear(width, last))


def named(net, prefix):
    """Return a state dict as a module has that keeps the network under a name."""
    return {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Save a content, import it; returns the command's status, output and errors."""

    def call(content, *options):
        torch.save(content, tmp_path / "scorer.pt")
        arguments = ["--from-pt", tmp_path / "scorer.pt", "--model", CHECKPOINT, *options]
        arguments += ["--out", tmp_path / "scorer.safetensors"]
        monkeypatch.setattr(sys, "argv", ["scorer-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return (left.value.code, *capsys.readouterr())

    return call


def test_a_hub_model_is_read_at_the_revision_that_is_named(command):
    state = network().state_dict()
    status, _, errors = command(state, "--model", "org/name", "--revision", "v2")
    assert status == 2
    assert "reachable hub id, found 'org/name' at revision 'v2'" in errors


def test_the_import_does_not_take_the_place_of_its_source(tmp_path):
    path = tmp_path / "scorer.pt"
    torch.save(network().state_dict(), path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="Expected an output file apart from what is read"):
        import_scorer(path, path, str(CHECKPOINT))
    assert path.read_bytes() == before


@pytest.mark.parametrize("prefix", ["", "net.", "module.model.", "_orig_mod.scorer.layers."])
@pytest.mark.parametrize("wrapped", [True, False], ids=["model_state_dict", "state dict"])
def test_a_published_scorer_gives_the_same_logits(command, tmp_path, prefix, wrapped):
    net = network()
    state = named(net, prefix)
    content = {"epoch": 7, "val_auroc": 0.9, "model_state_dict": state} if wrapped else state
    status, output, errors = command(content)
    assert (status, errors) == (0, "")
    assert f"net.2.weight from {prefix}2.weight" in output
    assert "never evaluated here" in output
    scorer, card = load_scorer(tmp_path / "scorer.safetensors", expect=identify(str(CHECKPOINT)))
    hidden_SH = torch.randn(9, H)
    assert torch.equal(scorer(hidden_SH), net(hidden_SH).squeeze(-1))
    assert (card.width, card.aggregator, card.metrics) == (512, "mean", {})
    assert card.boundary_rule == BoundaryRule.for_tokenizer(load_tokenizer(str(CHECKPOINT)))
    assert card.training["imported"]["file"].endswith("scorer.pt")


def test_layers_of_any_names_and_half_precision_are_taken_in_order(command, tmp_path):
    net = network(width=64).half()
    new = {"0": "fc1", "2": "out"}
    state = {f"{new[name[0]]}{name[1:]}": tensor for name, tensor in net.state_dict().items()}
    status, output, _ = command(state, "--boundary.kind", "newline", "--aggregator", "last")
    assert status == 0
    assert "net.2.bias from out.bias" in output
    scorer, card = load_scorer(tmp_path / "scorer.safetensors")
    assert torch.equal(scorer.net[0].weight, net[0].weight.float())
    assert (card.width, card.aggregator, card.boundary["kind"]) == (64, "last", "newline")


def test_the_card_says_that_it_was_imported(command, tmp_path, monkeypatch, capsys):
    command(network().state_dict())
    path = tmp_path / "scorer.safetensors"
    assert read_card(path).training["imported"]["sha256"]
    monkeypatch.setattr(sys, "argv", ["scorer-export", "--inspect", str(path)])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "imported, never evaluated here" in capsys.readouterr().out


class Bomb:
    """A pickle that would run code."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


BAD = {
    "code": (Bomb(), "tensors and plain data"),
    "a whole module": (network(), "tensors and plain data"),
    "code beside the weights": (
        {"model_state_dict": network().state_dict(), "config": Bomb()},
        "tensors and plain data",
    ),
    "a list": ([1, 2], "weight and a bias for each layer"),
    "nothing": ({}, "found none"),
    "other data": ({"model_state_dict": {"epoch": 3}}, "found 'epoch'"),
    "one more tensor": (network().state_dict() | {"scale": torch.ones(1)}, "found 'scale'"),
    "no bias": (
        {name: value for name, value in network().state_dict().items() if name != "2.bias"},
        "weight and a bias for each layer",
    ),
    "three layers": (
        nn.Sequential(*network(8), nn.ReLU(), nn.Linear(1, 1)).state_dict(),
        "Expected weights of Linear",
    ),
    "two outputs": (network(last=2).state_dict(), r"shapes (512, 256), (2, 512)"),
    "the wrong order": (dict(reversed(network().state_dict().items())), "in this order"),
    "another model": (network(hidden_size=128).state_dict(), "Expected hidden_size 256 (model"),
    "NaN": (
        network().state_dict() | {"0.bias": torch.full((512,), torch.nan)},
        "NaN or infinity in 0.bias",
    ),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused_in_one_line(command, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content, message = BAD[name]
    status, _, errors = command(content)
    assert status == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "scorer.safetensors").exists()


def test_a_damaged_safetensors_file_is_refused_as_well(tmp_path):
    path = tmp_path / "empty.safetensors"
    path.touch()
    with pytest.raises(InputError, match="Expected a PyTorch checkpoint of tensors"):
        read_network(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["run", "--out", "s", "--boundary.kind", "newline"],
            "--boundary.kind with --from-pt only",
        ),
        (["run", "--out", "s", "--revision", "v1"], "--revision with --from-pt only"),
        (["run", "--out", "s", "--model", "m"], "--model with --from-pt and only there"),
        (["--from-pt", "f", "--out", "s"], "--model with --from-pt and only there"),
        (["run", "--from-pt", "f", "--out", "s"], "found 2 of them"),
        (["--from-pt", "f", "--model", "m"], "Expected --out FILE"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scorer-export", *options])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err
