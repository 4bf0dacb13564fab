"""Reading checkpoints without running anything that a pickle may hold."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from step_infer.errors import InputError
from step_train.record import RECORD_KEY, RECORD_SCHEMA_VERSION

_DAMAGED = (UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError, SafetensorError)
"""What torch.load raises; it also reads safetensors, by their name."""


def load_plain(path: Path, what: str) -> Any:
    """Read a file of tensors and plain data that torch.save wrote.

    Raises:
        InputError: it is missing, damaged, or holds anything else; `what` names what is wanted.
    """
    if not path.is_file():
        raise InputError(f"Expected {what} at {path}, found none.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise InputError(
            f"Expected {what} of tensors and plain data at {path}, found something else or a "
            f"damaged file ({type(error).__name__}). Hint: a file that needs more is not opened, "
            "as it could run code; save its state dict alone."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of step-train fit.

    Raises:
        InputError: it is missing, unreadable, or not ours.
    """
    saved = load_plain(path, "a checkpoint of step-train fit")
    record = saved.get(RECORD_KEY) if isinstance(saved, dict) else None
    if not isinstance(record, dict):
        raise InputError(
            f"Expected a checkpoint of step-train fit (with the key {RECORD_KEY!r}) at {path}, "
            "found another one. Hint: train a scorer with step-train fit, or import a published "
            "one with --from-pt."
        )
    if record.get("schema_version") != RECORD_SCHEMA_VERSION:
        raise InputError(
            f"Expected schema_version {RECORD_SCHEMA_VERSION} of the checkpoint {path}, "
            f"found {record.get('schema_version')}. Hint: train again with this toolkit."
        )
    return saved
