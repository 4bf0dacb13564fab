"""Models without weights: the shapes of real ones, to measure time with random numbers.

A shape is the `config.json` of a Hugging Face model. Engines read it with `load_format="dummy"`.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch

from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.card import ScorerCard
from step_infer.scorer.identity import digest, identify
from step_infer.scorer.network import StepScorer, load_scorer, save_scorer
from step_infer.storage.files import atomic_write, read_json

FOLDER = Path(__file__).parent / "shapes"
NO_WEIGHTS: dict[str, Any] = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,  # then no token ends a response
}
"""Engine arguments of a model without weights."""


def shape_names() -> list[str]:
    """Return the names of the shapes that come with this package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read_shape(name: str | Path) -> dict[str, Any]:
    """Return a shape by its name, or from a config.json or a folder that holds one.

    Raises:
        InputError: there is no such shape, or the file is no model configuration.
    """
    path = Path(name)
    if str(name) in shape_names():
        path = FOLDER / f"{name}.json"
    elif path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise InputError(
            f"Expected a shape out of {', '.join(shape_names())}, or a config.json, found "
            f"{str(name)!r}. Hint: --shape takes a model folder as well."
        )
    shape = read_json(path)
    if not isinstance(shape, dict) or not isinstance(shape.get("hidden_size"), int):
        raise InputError(
            f"Expected a model configuration with hidden_size in {path}, found none. "
            "Hint: give --shape the config.json of a language model."
        )
    return {**shape, "eos_token_id": None}


def model_folder(shape: dict[str, Any]) -> Path:
    """Return the folder of a shape in the user's cache.

    One place for all runs: the path is part of the key by which vLLM finds a compiled model again.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "step_infer" / "shapes" / digest(shape)[:16] / "model"


def kv_bytes_per_token(shape: dict[str, Any]) -> int | None:
    """Return the bytes of KV cache that a token takes; None where the shape does not tell.

    Of models with one key and one value vector per KV head and layer, in the model's own format.
    """
    found = shape.get("text_config") or shape
    try:
        heads = found["num_attention_heads"]
        width = found.get("head_dim") or found["hidden_size"] // heads
        values = 2 * found["num_hidden_layers"] * found.get("num_key_value_heads", heads) * width
        return int(values) * (4 if found.get("dtype") == "float32" else 2)
    except KeyError:
        return None


def write_model(folder: Path | str, shape: dict[str, Any]) -> None:
    """Write what an engine reads of a model without weights: configuration and a tokenizer.

    The tokenizer knows one word: its texts mean nothing.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    files = {
        "config.json": json.dumps(shape, indent=2),
        "tokenizer.json": Tokenizer(WordLevel({"?": 0}, unk_token="?")).to_str(),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "?"}
        ),
    }
    for name, text in files.items():
        with atomic_write(Path(folder) / name, "w") as file:
            file.write(text)


def write_scorer(
    path: Path | str,
    model: Path | str,
    name: str,
    rule: BoundaryRule,
    aggregator: str = "mean",
    like: Path | str | None = None,
) -> None:
    """Write a scorer for a model of `write_model`, of random weights or of another scorer's size.

    Args:
        path: the scorer's file, outside the model's folder.
        model: the model's folder.
        name: what the card calls the model.
        rule: boundary rule of the card.
        aggregator: trace aggregator of the card.
        like: a scorer file whose weights are taken; None makes random ones of the usual size.

    Raises:
        InputError: `like` reads states of another width.
    """
    identity = identify(str(model))
    torch.manual_seed(0)
    net, width, depth, deciding = StepScorer(identity.hidden_size), 512, 1, {}
    if like is not None:
        net, card = load_scorer(like)
        width, depth, deciding = card.width, card.depth, card.deciding
        if card.hidden_size != identity.hidden_size:
            raise InputError(
                f"Expected a scorer of states of width {identity.hidden_size} ({name}), found "
                f"{card.hidden_size} in {like}. Hint: leave --scorer out for one of random weights."
            )
    card = ScorerCard(
        base_model=name,
        model_config_hash=identity.config_hash,
        tokenizer_hash=identity.tokenizer_hash,
        hidden_size=identity.hidden_size,
        boundary=rule.to_dict(),
        width=width,
        depth=depth,
        aggregator=aggregator,
        deciding=deciding,
    )
    save_scorer(path, net, card)
