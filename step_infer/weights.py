"""Whether a model folder's weights are all there: an interrupted download has a part of them."""

import json
import struct
from pathlib import Path

from step_infer.errors import InputError

_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_INDEX = "model.safetensors.index.json"
_LENGTH = struct.Struct("<Q")
_MOST_HEADER_BYTES = 100_000_000  # safetensors' own bound


def check_weights(model: str) -> None:
    """Refuse a model folder whose weights are not there or were cut off; a hub id is left alone.

    Only the headers of safetensors files are read.

    Args:
        model: model folder, or hub id.

    Raises:
        InputError: there are no weights, a file that the index names is missing, or a safetensors
            file has another size than its header says.
    """
    folder = Path(model)
    if not folder.is_dir():
        return
    if not any(file for pattern in _PATTERNS for file in folder.glob(pattern)):
        raise _incomplete(
            f"weights (such as model.safetensors) in the model folder {model}", "none"
        )
    for name in _indexed(folder / _INDEX):
        if not (folder / name).exists():
            raise _incomplete(f"{name} in the model folder {model} ({_INDEX})", "none")
    for file in sorted(folder.glob("*.safetensors")):
        if not file.exists():
            raise _incomplete(f"a file at {file}", "a link to nothing")
        found = file.stat().st_size
        wanted = _whole_size(file)
        if wanted != found:
            size = "a whole safetensors file" if wanted is None else f"{wanted:,} bytes"
            raise _incomplete(f"{size} at {file}", f"{found:,} bytes")


def _indexed(index: Path) -> list[str]:
    """Return the files that an index names; none where there is no index that can be read."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _whole_size(file: Path) -> int | None:
    """Return the bytes that a safetensors file has by its header; None where it has no header."""
    try:
        with file.open("rb") as opened:
            (length,) = _LENGTH.unpack(opened.read(_LENGTH.size))
            if length > min(file.stat().st_size, _MOST_HEADER_BYTES):
                return None
            header = json.loads(opened.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        return _LENGTH.size + length + max(ends, default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError):
        return None


def _incomplete(expected: str, found: str) -> InputError:
    return InputError(
        f"Expected {expected}, found {found}. Hint: the download may be incomplete; do it again."
    )
