"""The scorer card: what a step scorer is, for which model, and how far to trust it."""

import dataclasses
import itertools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from step_infer.errors import InputError
from step_infer.scorer.aggregate import AGGREGATORS
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.confidence_term import ConfidenceTerm
from step_infer.scorer.identity import ModelIdentity
from step_infer.storage.files import check_types

CARD_SCHEMA_VERSION = 1
CARD_KEY = "scorer_card"
"""Key of the card in the safetensors metadata."""

MOST_WIDTH, MOST_DEPTH = 2**20, 64
"""Most units of a layer, and most hidden layers: far more than helps, far less than memory."""

LAST_LAYER = "last"
"""The layer that the engine can see: the last one, after the final norm."""

IDENTITY_FIELDS = ("model_config_hash", "tokenizer_hash", "hidden_size")
"""Fields that must agree with the model in use. A different hidden size can never be overridden."""


@dataclass(frozen=True)
class ScorerCard:
    """Everything a user and the engine must know of a scorer; stored as JSON in its file."""

    base_model: str
    """Path or hub id of the model whose hidden states trained the scorer."""
    model_config_hash: str
    """SHA-256 of that model's configuration."""
    tokenizer_hash: str
    """SHA-256 of its vocabulary."""
    hidden_size: int
    """Width H of the hidden state that the scorer reads."""
    boundary: dict[str, Any]
    """The boundary rule with its token ids (`BoundaryRule.to_dict`)."""
    width: int = 512
    """Units of each hidden layer of the scorer."""
    depth: int = 1
    """Hidden layers of the scorer."""
    layer: str = LAST_LAYER
    """The layer whose states it reads; "last" is the only one that an engine shows."""
    norm: str = "after final norm"
    """Where the state is read: "after final norm" for the last layer."""
    aggregator: str = "mean"
    """Trace aggregator: "mean", "last", "min" or "ema"."""
    confidence: dict[str, Any] = field(default_factory=dict)
    """What token confidence adds to a step score (`ConfidenceTerm`): "weight" and "mean"; empty
    where the scorer reads states alone."""
    training: dict[str, Any] = field(default_factory=dict)
    """Summary of the training set and settings."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Held-out metrics, overall and within question, by trace progress."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """How far scores are probabilities; folded into the weights where a temperature was fitted."""
    deciding: dict[str, Any] = field(default_factory=dict)
    """For each vote rule the threshold of the stop rule `likely`, and how it was found."""
    versions: dict[str, str] = field(default_factory=dict)
    """Library versions at export."""
    schema_version: int = CARD_SCHEMA_VERSION

    @property
    def shown_model(self) -> str:
        """The base model's name as it may stand in a message: one line, at most 200 characters."""
        return _shown(self.base_model)

    @property
    def boundary_rule(self) -> BoundaryRule:
        """The boundary rule that the scorer was trained with."""
        return BoundaryRule.from_dict(self.boundary)

    @property
    def confidence_term(self) -> ConfidenceTerm | None:
        """What token confidence adds to a step score; None: nothing."""
        return ConfidenceTerm.from_dict(self.confidence, "the scorer card")

    def to_json(self) -> str:
        """Return the card as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str, source: str) -> "ScorerCard":
        """Read a card; `source` names the file in errors.

        Raises:
            InputError: not JSON, another schema version, or a missing, unknown or bad field.
        """
        try:
            value = json.loads(text)
            found = value.get("schema_version")
            if found != CARD_SCHEMA_VERSION:
                raise InputError(
                    f"Expected scorer card schema_version {CARD_SCHEMA_VERSION} in {source}, "
                    f"found {found!r:.60}. Hint: export the scorer again with this toolkit."
                )
            card = cls(**value)
            check_types(card)
            for name, least, most in (
                ("hidden_size", 1, MOST_WIDTH),
                ("width", 1, MOST_WIDTH),
                ("depth", 0, MOST_DEPTH),
            ):
                size = getattr(card, name)
                if not least <= size <= most:
                    bound = f"below {least}" if size < least else f"above {most}"
                    raise TypeError(f"{name} {size}, which is {bound}")
        except InputError:
            raise
        # A ValueError is no JSON, or a number of thousands of digits.
        except (AttributeError, TypeError, RecursionError, ValueError) as error:
            raise InputError(
                f"Expected a scorer card in {source}, found: {_shown(str(error))}. "
                "Hint: export the scorer again."
            ) from error
        if card.aggregator not in AGGREGATORS:
            raise InputError(
                f"Expected aggregator out of {', '.join(AGGREGATORS)} in {source}, "
                f"found {card.aggregator!r:.60}. Hint: export the scorer again."
            )
        BoundaryRule.from_dict(card.boundary)
        ConfidenceTerm.from_dict(card.confidence, source)
        return card

    def check_model(self, model: ModelIdentity, allow_mismatch: Collection[str] = ()) -> None:
        """Refuse a model that the scorer was not trained for.

        Raises:
            InputError: a field differs and is not in `allow_mismatch`; the message names it.
        """
        for name in allow_mismatch:
            if name not in IDENTITY_FIELDS[:2]:
                raise InputError(
                    f"Expected --allow-mismatch out of {', '.join(IDENTITY_FIELDS[:2])}, "
                    f"found {name!r}."
                )
        found = {
            "model_config_hash": model.config_hash,
            "tokenizer_hash": model.tokenizer_hash,
            "hidden_size": model.hidden_size,
        }
        # The hidden size first: where it differs, the hashes differ as well and say less.
        for name in reversed(IDENTITY_FIELDS):
            expected = getattr(self, name)
            if expected == found[name] or name in allow_mismatch:
                continue
            hint = "export a scorer for this model"
            if name != "hidden_size":
                hint += f", or pass --allow-mismatch {name} if you know that they agree"
            raise InputError(
                f"Expected {name} {_short(expected)} (scorer card, trained on {self.shown_model}), "
                f"found {_short(found[name])} (model {model.model}). Hint: {hint}."
            )

    def check_layers(self) -> None:
        """Refuse a scorer of other layers than the engine can see.

        Raises:
            InputError: the scorer reads another layer than the last.
        """
        if self.layer != LAST_LAYER:
            raise InputError(
                f"Expected a scorer of the layer {LAST_LAYER!r}, the only one that the engine "
                f"shows, found layer {self.layer!r:.60} (scorer card). Hint: train one on features "
                "of step-collect or step-train extract."
            )

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
        """Refuse tensors that are not a scorer of this card; `source` names their file in errors.

        Raises:
            InputError: a tensor is missing, unknown or of another shape.
        """
        expected: dict[str, tuple[int, ...]] = {}
        sizes = [self.hidden_size, *[self.width] * self.depth, 1]
        for number, (inputs, units) in enumerate(itertools.pairwise(sizes)):
            expected[f"net.{2 * number}.weight"] = (units, inputs)
            expected[f"net.{2 * number}.bias"] = (units,)
        for name in sorted(expected.keys() | shapes.keys()):
            if expected.get(name) != shapes.get(name):
                raise InputError(
                    f"Expected tensor {_shown(name)} of shape {expected.get(name)} (scorer card), "
                    f"found {shapes.get(name)} in {source}. Hint: export the scorer again."
                )


def read_card(path: Path | str) -> ScorerCard:
    """Read a scorer file's card, and see that its tensors fit it; they are not loaded, nor torch.

    Raises:
        InputError: the file is missing, is not safetensors, or holds no valid card.
    """
    if not Path(path).is_file():
        raise InputError(
            f"Expected a scorer file at {path}, found none. Hint: make one with scorer-export."
        )
    try:
        with safe_open(str(path), framework="np") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"Expected a safetensors file at {path}, found: {error}. "
            "Hint: export the scorer again; the file may be truncated."
        ) from error
    if CARD_KEY not in metadata:
        raise InputError(
            f"Expected a scorer card in the metadata of {path}, found none. "
            "Hint: make the file with scorer-export."
        )
    card = ScorerCard.from_json(metadata[CARD_KEY], str(path))
    card.check_shapes(shapes, str(path))
    return card


def _shown(text: str) -> str:
    """Return a card's text as it may stand in a message."""
    return text if text.isprintable() and len(text) <= 200 else f"{text!r:.200}"


def _short(value: Any) -> str:
    return _shown(value[:12] + "…" if isinstance(value, str) and len(value) > 16 else str(value))
