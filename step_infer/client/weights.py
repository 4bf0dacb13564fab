"""Whether a model folder's weights are all there: an interrupted download has a part of them."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from step_infer.errors import InputError

_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_INDEX = "model.safetensors.index.json"


def check_weights(model: str) -> None:
    """Refuse a model folder whose weights are not there or were cut off; a hub id is left alone.

    Only the headers of safetensors files are read.

    Args:
        model: model folder, or hub id.

    Raises:
        InputError: there are no weights, a file that the index names is missing, or a safetensors
            file is not one, or not all of it.
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
        try:
            with safe_open(str(file), framework="np"):  # it reads the header, and compares sizes
                pass
        except SafetensorError as error:
            size = f"{file.stat().st_size:,} bytes ({str(error).rpartition(': ')[2]})"
            raise _incomplete(f"a whole safetensors file at {file}", size) from error


def _indexed(index: Path) -> list[str]:
    """Return the files that an index names; none where there is no index that can be read."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _incomplete(expected: str, found: str) -> InputError:
    return InputError(
        f"Expected {expected}, found {found}. Hint: the download may be incomplete; do it again."
    )
