"""The flags of `vllm serve`: what a user wrote, and what a CPU engine needs beside it.

vLLM's own parser is not asked: to import it takes some ten seconds, which a mistake would have to
wait for.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from step_infer.client.engine import (
    CPU_BATCH_TOKENS,
    CPU_BLOCK_SIZE,
    CPU_KV_BYTES,
    cpu_dtype,
)
from step_infer.client.prompt import context_length
from step_infer.errors import InputError

ADDITIONAL_CONFIG = "additional-config"


def take_config(flags: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take the user's --additional-config out of the flags; return the rest and its value.

    Raises:
        InputError: it is no JSON object, or is spread over several flags.
    """
    rest: list[str] = []
    config: dict[str, Any] = {}
    remaining = iter(flags)
    for flag in remaining:
        name, equals, value = flag.partition("=")
        name = name.replace("_", "-")
        if name.startswith(f"--{ADDITIONAL_CONFIG}."):
            raise InputError(
                f"Expected --{ADDITIONAL_CONFIG} as one JSON object, found {flag}. "
                f"Hint: --{ADDITIONAL_CONFIG} '{{\"NAME\": VALUE}}'."
            )
        if name != f"--{ADDITIONAL_CONFIG}":
            rest.append(flag)
            continue
        text = value if equals else next(remaining, "")
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError(
                f"Expected a JSON object after --{ADDITIONAL_CONFIG}, found {text!r:.60}. "
                f"Hint: --{ADDITIONAL_CONFIG} '{{\"NAME\": VALUE}}'."
            )
        config = found
    return rest, config


def flag_values(flags: Sequence[str]) -> dict[str, str]:
    """Return the long flags, named as vLLM's parser names them, with what follows each.

    Those of a `--config FILE` (YAML) are among them.

    Raises:
        InputError: that file cannot be read, or holds something else.
    """
    values: dict[str, str] = {}
    for flag, following in zip(flags, [*flags[1:], ""], strict=False):
        if flag.startswith("--"):
            name, equals, value = flag[2:].partition("=")
            values[_flag_name(name)] = value if equals else following
    return _config_values(values["config"]) | values if "config" in values else values


def _flag_name(name: str) -> str:
    return name.partition(".")[0].replace("_", "-")


def _config_values(path: str) -> dict[str, str]:
    """Return the flags of vLLM's configuration file; one that is false is its --no-NAME."""
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"Expected a YAML file after --config, found: {reason}. "
            "Hint: check the path and what the file holds."
        ) from error
    if not isinstance(found, dict):
        raise InputError(
            f"Expected a YAML file of flags and values after --config, found {found!r:.60} in "
            f"{path}. Hint: write one flag a line, as NAME: VALUE."
        )
    names = {name: _flag_name(str(name)) for name in found}
    return {
        f"no-{names[name]}" if value is False else names[name]: str(value)
        for name, value in found.items()
    }


def cpu_flags(model: str, values: dict[str, str]) -> list[str]:
    """Return what a CPU engine needs and the user did not set; as StepLLM does it."""
    defaults = {"block-size": str(CPU_BLOCK_SIZE), "kv-cache-memory-bytes": str(CPU_KV_BYTES)}
    dtype = cpu_dtype()
    if dtype is not None:
        defaults["dtype"] = dtype
    added = [
        text
        for name, value in defaults.items()
        if name not in values
        for text in (f"--{name}", value)
    ]
    if not values.keys() & {"enforce-eager", "no-enforce-eager"}:
        added.append("--enforce-eager")
    if "enable-chunked-prefill" in values:
        return added
    if "no-enable-chunked-prefill" not in values:
        added.append("--no-enable-chunked-prefill")
    if "max-num-batched-tokens" not in values:
        given = values.get("max-model-len", "")
        longest = int(given) if given.isdigit() else 0
        longest = longest or context_length(model, revision=values.get("revision")) or 0
        added += ["--max-num-batched-tokens", str(max(CPU_BATCH_TOKENS, longest))]
    return added
