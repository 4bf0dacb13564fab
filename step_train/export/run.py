"""From a training checkpoint to a scorer file: weights and card, nothing that needs a pickle."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from step_infer.errors import InputError
from step_infer.scorer.card import MOST_DEPTH, MOST_WIDTH, ScorerCard
from step_infer.scorer.identity import ModelIdentity
from step_infer.scorer.network import StepScorer, save_scorer
from step_infer.storage.files import check_output
from step_infer.storage.run_directory import package_versions
from step_train.data.normaliser import Normaliser
from step_train.data.subspace import Subspace
from step_train.evaluation.acceptance import VERDICT_KEY, ranks_above_chance
from step_train.evaluation.calibration import fold_temperature
from step_train.run_directory import (
    BEST,
    OWN_FILES,
    RECORD_KEY,
    SUBSPACE_KEY,
    read_checkpoint,
)

_PREFIX, _NORMALISER = "scorer.", "normaliser."


def export(checkpoint: Path | str, out: Path | str, force: bool = False) -> ScorerCard:
    """Write the scorer of a checkpoint as one safetensors file with its card.

    Args:
        checkpoint: a checkpoint of step-train fit, or its run directory (then the best epoch).
        out: the file to write, atomically.
        force: write also a scorer that has not earned its place.

    Returns:
        The card. Its metrics say under "earned" whether the scorer has earned its place; there are
        no others where the checkpoint is not the best one of a complete run.

    Raises:
        InputError: the checkpoint is missing, damaged, not ours, not usable, or not shown to rank
            above chance (`ranks_above_chance`); or `out` is a file of that run.
    """
    path = Path(checkpoint)
    if path.is_dir():
        path = path / BEST
    check_output(out, path, *(path.parent / name for name in OWN_FILES))
    saved = read_checkpoint(path)
    record = saved[RECORD_KEY]
    try:
        model = ModelIdentity(**record["model"])
        width, depth = int(record["width"]), int(record["depth"])
        if not (1 <= width <= MOST_WIDTH and 0 <= depth <= MOST_DEPTH):
            raise ValueError(f"width {width} and depth {depth}")
        metrics = record.get("metrics", {})
        aggregator = record.get("aggregator", "mean")
        card = ScorerCard(
            base_model=model.model,
            model_config_hash=model.config_hash,
            tokenizer_hash=model.tokenizer_hash,
            hidden_size=model.hidden_size,
            boundary=record["boundary"],
            width=width,
            depth=depth,
            aggregator=aggregator,
            confidence=record.get("confidence", {}),
            training=_training(record, int(saved["epoch"])),
            metrics=metrics,
            calibration=record.get("calibration", {}),
            versions=package_versions(),
        )
        weights = {
            name.removeprefix(_PREFIX): tensor
            for name, tensor in saved["state_dict"].items()
            if name.startswith(_PREFIX)
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"Expected a checkpoint of step-train fit in {path}, found a damaged one "
            f"({error!r:.200}). Hint: train again."
        ) from error
    # Weights that cannot be used are refused first: that is the greater fault.
    subspace = _subspace(saved, card, path)
    inputs = card.hidden_size if subspace is None else subspace.weight_HK.shape[1]
    with torch.device("meta"):  # without memory, which the sizes may ask too much of
        shapes = StepScorer(inputs, width, depth).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in shapes.items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(
                f"Expected tensor {name} of shape {expected.get(name)} in {path}, "
                f"found {found.get(name)}. Hint: train again."
            )
        if not torch.isfinite(weights[name]).all():
            raise InputError(
                f"Expected finite weights in {path}, found NaN or infinity in {name}. "
                "Hint: train again with a lower --learning-rate."
            )
    scorer = StepScorer(inputs, width, depth)
    scorer.load_state_dict(weights)
    if subspace is not None:
        scorer = subspace.unfold(scorer, width, depth)
    _fold(scorer, saved["state_dict"], card)
    passed = ranks_above_chance(card.metrics, card.aggregator, force)
    card = dataclasses.replace(card, metrics=card.metrics | {VERDICT_KEY: passed})
    save_scorer(out, scorer, card)
    return card


def _subspace(saved: dict[str, Any], card: ScorerCard, path: Path) -> Subspace | None:
    """Return the subspace that a checkpoint's weights are for; None: for states as they are."""
    if not card.training["settings"].get("components"):
        return None
    found: Any = saved.get(SUBSPACE_KEY)
    try:
        subspace = Subspace(**found)
        good = subspace.mean_H.shape == (card.hidden_size,)
        good = good and subspace.weight_HK.shape[:-1] == (card.hidden_size,)
        good = good and all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
    except (TypeError, AttributeError):
        good = False
    if not good:
        raise InputError(
            f"Expected the subspace of states of size {card.hidden_size} in {path}, found none or "
            "a damaged one. Hint: train again."
        )
    return subspace


def _fold(scorer: StepScorer, state: dict[str, Any], card: ScorerCard) -> None:
    """Put normalisation and temperature into the weights: the engine knows neither."""
    statistics = {
        name.removeprefix(_NORMALISER): tensor
        for name, tensor in state.items()
        if name.startswith(_NORMALISER)
    }
    if statistics:
        normaliser = Normaliser(card.hidden_size)
        normaliser.load_state_dict(statistics)
        normaliser.fold(scorer)
    if card.calibration:
        fold_temperature(scorer, card.calibration["temperature"])


def _training(record: dict[str, Any], epoch: int) -> dict[str, Any]:
    return {
        **record["data"],
        "settings": record["settings"],
        "epoch": epoch + 1,
        "epochs": record.get("epochs"),
        "aggregator_choice": record.get("aggregator_choice"),
    }
