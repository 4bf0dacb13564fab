"""Which model a scorer belongs to: hashes of the model's configuration and vocabulary."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step_infer.errors import InputError
from step_infer.storage.files import read_json

# Keys of config.json that change without changing what the model computes.
_VOLATILE_KEYS = frozenset(
    {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "auto_map"}
)


@dataclass(frozen=True)
class ModelIdentity:
    """What a scorer needs to know of the model whose hidden states it reads."""

    model: str
    """Path or hub id, as the user gave it."""
    config_hash: str
    """SHA-256 of the canonical config.json, without keys that do not change the computation."""
    tokenizer_hash: str
    """SHA-256 of the vocabulary: every token with its id."""
    hidden_size: int
    """Width H of the last layer."""
    revision: str | None = None
    """Branch, tag or commit of a hub id, as the user gave it."""


def _digest(value: Any) -> str:
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
    """Return the hash of a config.json's content (64 hexadecimal digits)."""
    return _digest({key: value for key, value in config.items() if key not in _VOLATILE_KEYS})


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
    vocabulary = tokenizer.get_vocab()
    return ModelIdentity(model, config_hash(config), _digest(vocabulary), hidden_size, revision)
