"""Scorers published as PyTorch checkpoints: read safely, written as scorer files with a card."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from step_infer.client.prompt import load_tokenizer
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryOptions
from step_infer.scorer.card import ScorerCard
from step_infer.scorer.identity import identify
from step_infer.scorer.network import StepScorer, save_scorer
from step_infer.storage.files import check_output, sha256_file
from step_infer.storage.run_directory import package_versions
from step_train.run_directory import IMPORTED, load_plain

STATE_KEY = "model_state_dict"
"""Key of the state dict in the checkpoints of the paper's code."""

_FORM = "Linear(H, width), ReLU, Linear(width, 1)"


def import_scorer(
    path: Path | str,
    out: Path | str,
    model: str,
    *,
    revision: str | None = None,
    boundary: BoundaryOptions = BoundaryOptions(),  # noqa: B008 - frozen
    aggregator: Literal["mean", "last", "min", "ema"] = "mean",
) -> ScorerCard:
    """Write a published scorer (STEP, arXiv 2601.09093) as a scorer file.

    Args:
        path: a dict with `model_state_dict`, or that state dict itself.
        out: the file to write, atomically.
        model: folder or hub id of the model whose states the scorer reads.
        revision: branch, tag or commit of a hub id; None is the main one.
        boundary: the boundary rule that it was trained with.
        aggregator: trace aggregator for the card.

    Returns:
        The card; it has no metrics, and says that the scorer was imported.

    Raises:
        InputError: the file holds anything but plain data and such a network, or the network does
            not fit the model.
    """
    check_output(out, path)
    tensors, taken = read_network(Path(path))
    width, hidden_size = tensors["net.0.weight"].shape
    identity = identify(model, revision)
    if identity.hidden_size != hidden_size:
        raise InputError(
            f"Expected hidden_size {identity.hidden_size} (model {model}), found {hidden_size} in "
            f"{path}. Hint: give the model whose hidden states the scorer was trained on."
        )
    card = ScorerCard(
        base_model=model,
        model_config_hash=identity.config_hash,
        tokenizer_hash=identity.tokenizer_hash,
        hidden_size=hidden_size,
        boundary=boundary.rule(load_tokenizer(model, revision)).to_dict(),
        width=width,
        aggregator=aggregator,
        training={IMPORTED: {"file": str(path), "sha256": sha256_file(path), "tensors": taken}},
        versions=package_versions(),
    )
    scorer = StepScorer(hidden_size, width)
    scorer.load_state_dict(tensors)
    save_scorer(out, scorer, card)
    return card


def read_network(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the network of a published checkpoint.

    The two layers are told by shape, and must also stand in that order; their names do not matter.

    Returns:
        The scorer's tensors by our names, and for each of these the name in the file.

    Raises:
        InputError: it cannot be read safely, or holds anything but one such network.
    """
    saved = load_plain(path, "a PyTorch checkpoint")
    state = saved.get(STATE_KEY, saved) if isinstance(saved, dict) else saved
    layers = _layers(state, path)
    shapes = [tuple(layer["weight"][1].shape) for layer in layers]
    biases = [tuple(layer["bias"][1].shape) for layer in layers]
    fits = (
        len(layers) == 2
        and all(len(shape) == 2 for shape in shapes)
        and shapes[1] == (1, shapes[0][0])
        and biases == [(shapes[0][0],), (1,)]
    )
    if not fits:
        found = ", ".join(f"{shape}" for shape in shapes)
        raise InputError(
            f"Expected weights of {_FORM}, in this order, in {path}, found weights of shapes "
            f"{found}. Hint: only scorers of this form can be imported."
        )
    tensors, taken = {}, {}
    for number, layer in zip((0, 2), layers, strict=True):
        for kind in ("weight", "bias"):
            name, tensor = layer[kind]
            tensor = tensor.float()
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"Expected finite weights in {path}, found NaN or infinity in {name}. "
                    "Hint: take another checkpoint."
                )
            tensors[f"net.{number}.{kind}"] = tensor
            taken[f"net.{number}.{kind}"] = name
    return tensors, taken


def _layers(state: Any, path: Path) -> list[dict[str, tuple[str, Tensor]]]:
    """Return each layer's weight and bias with their names, in the order of the file."""
    layers: dict[str, dict[str, tuple[str, Tensor]]] = {}
    for name, tensor in state.items() if isinstance(state, dict) else ():
        stem, _, kind = str(name).rpartition(".")
        if kind not in ("weight", "bias") or not _is_weights(tensor):
            raise InputError(
                f"Expected only weights and biases of {_FORM} in {path}, found {name!r}"
                f"{_form(tensor)}. Hint: give a state dict, or a dict with {STATE_KEY!r}."
            )
        layers.setdefault(stem, {})[kind] = (str(name), tensor)
    if not layers or any(len(layer) != 2 for layer in layers.values()):
        raise InputError(
            f"Expected a weight and a bias for each layer of {_FORM} in {path}, found "
            f"{', '.join(map(str, state)) if isinstance(state, dict) and state else 'none'}. "
            f"Hint: give a state dict, or a dict with {STATE_KEY!r}."
        )
    return list(layers.values())


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and (value.device.type, value.layout, value.is_nested) == ("cpu", torch.strided, False)
        # A view can claim more numbers than the file holds.
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _form(value: Any) -> str:
    return f" ({value.layout}, {value.dtype})" if isinstance(value, Tensor) else ""
