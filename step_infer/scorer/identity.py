"""Which model a scorer belongs to: hashes of the model's configuration and vocabulary."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step_infer.errors import InputError
from step_infer.storage.files import read_json

# What of a config.json says which network it is, by the names of many model families. All else says
# how it is loaded, trained, quantised or ended, and differs between copies of one model.
_DEFINING_KEYS = (
    "model_type",
    "hidden_size",
    "n_embd",
    "num_hidden_layers",
    "n_layer",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "n_inner",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "q_lora_rank",
    "kv_lora_rank",
)
_ROPE_BASE = 10_000  # where none is written


@dataclass(frozen=True)
class ModelIdentity:
    """What a scorer needs to know of the model whose hidden states it reads."""

    model: str
    """Path or hub id, as the user gave it."""
    config_hash: str
    """SHA-256 of what in config.json defines the network (see `config_hash`)."""
    tokenizer_hash: str
    """SHA-256 of the vocabulary: every token with its id, but for unused places of a GGUF file."""
    hidden_size: int
    """Width H of the last layer."""
    revision: str | None = None
    """Branch, tag or commit of a hub id, as the user gave it."""


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value's canonical text (64 hexadecimal digits)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def model_file(model: str, name: str, revision: str | None = None) -> Path:
    """Return the local path of a model's file: from its folder, or from the hub (or its cache).

    Args:
        model: model folder or Hugging Face id.
        name: the file's name.
        revision: branch, tag or commit of a hub id; None is the main one.

    Raises:
        InputError: neither a folder that holds the file nor a hub id that can be reached.
    """
    folder = Path(model)
    if folder.is_dir():
        if (folder / name).is_file():
            return folder / name
        raise InputError(
            f"Expected {name} in the model folder {model}, found none. "
            "Hint: give a Hugging Face model folder."
        )
    if not model or model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise InputError(
            f"Expected a model folder or a hub id, found no folder at {model!r}. "
            "Hint: check the path."
        )
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    try:
        if not isinstance(try_to_load_from_cache(model, name, revision=revision), str):
            # Asked once: the download alone tries for half a minute where there is no network.
            get_hf_file_metadata(hf_hub_url(model, name, revision=revision))
        return Path(hf_hub_download(model, name, revision=revision))
    except Exception as error:  # the hub client raises many types; all mean "not to be had"
        raise InputError(
            f"Expected a model folder or a reachable hub id, found {model!r}"
            f"{'' if revision is None else f' at revision {revision!r}'} "
            f"({type(error).__name__}). Hint: check the path, or download the model first."
        ) from error


def config_hash(config: dict[str, Any]) -> str:
    """Return a hash of what defines the network in a config.json: its family, shape and RoPE base.

    It is the same for a hub folder, a copy that Transformers saved again, one converted from GGUF,
    and a quantised one: their files differ in defaults written out or not, special tokens, number
    formats and version notes, and the step scores hardly.

    Args:
        config: the file's content. Of a model of several modalities, that of the text counts.

    Returns:
        64 hexadecimal digits.
    """
    text = config.get("text_config") or config
    found = {key: text[key] for key in _DEFINING_KEYS if text.get(key) is not None}
    heads = found.get("num_attention_heads")
    if isinstance(heads, int) and heads > 0:
        found.setdefault("num_key_value_heads", heads)
        if isinstance(found.get("hidden_size"), int):
            found.setdefault("head_dim", found["hidden_size"] // heads)
    rope = text.get("rope_parameters") or {}
    rope = rope.get("full_attention") or rope  # a base for each kind of layer
    base = text.get("rope_theta") or rope.get("rope_theta")
    if base is not None and base != _ROPE_BASE:
        found["rope_theta"] = float(base)
    return digest(found)


def _without_padding(vocabulary: dict[str, int]) -> dict[str, int]:
    # Converters from GGUF name the unused rows of the embedding [PADn] with the row's number.
    return {token: row for token, row in vocabulary.items() if token != f"[PAD{row}]"}


def identify(model: str, revision: str | None = None) -> ModelIdentity:
    """Read a model's identity from its config.json and tokenizer.json.

    Args:
        model: model folder or Hugging Face id.
        revision: branch, tag or commit of a hub id; None is the main one.

    Raises:
        InputError: a file is missing, or the configuration names no hidden size.
    """
    from tokenizers import Tokenizer

    config = read_json(model_file(model, "config.json", revision))
    if not isinstance(config, dict):
        raise InputError(
            f"Expected an object in the config.json of {model}, found {config!r:.40}. "
            "Hint: download the model again."
        )
    text_config = config.get("text_config") or config
    hidden_size = text_config.get("hidden_size") or text_config.get("n_embd")
    if not isinstance(hidden_size, int):
        raise InputError(
            f"Expected hidden_size in the config.json of {model}, found none. "
            "Hint: use a language model that vLLM can generate with."
        )
    try:
        tokenizer = Tokenizer.from_file(str(model_file(model, "tokenizer.json", revision)))
    except InputError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"Expected a tokenizer.json in {model}, found: {error}. "
            "Hint: the download may be incomplete; do it again."
        ) from error
    vocabulary = _without_padding(tokenizer.get_vocab())
    return ModelIdentity(model, config_hash(config), digest(vocabulary), hidden_size, revision)
