"""Feature shards: hidden states at step boundaries, as memory-mapped safetensors files.

Axes: S steps of all traces of a shard, H hidden size.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from step_infer.errors import InputError
from step_infer.storage.files import atomic_path

FEATURE_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
"""Number formats of stored states, by name."""

INDEX_BYTES = 8
"""Bytes a step besides its state: trace_index and position, 4 each."""


def write_shard(
    path: Path | str, hidden: Sequence[Tensor], positions: Sequence[Sequence[int]]
) -> list[int]:
    """Write the features of a part's traces as one shard, atomically.

    Args:
        path: the shard's file.
        hidden: for each trace its states [S_i, H], all of one float type and one H.
        positions: for each trace the boundary positions [S_i], indices into its generated tokens.

    Returns:
        For each trace the row of its first step in the shard.

    Raises:
        InputError: shapes or types disagree, or a state is not finite.
    """
    _check(hidden, positions)
    starts: list[int] = []
    rows = 0
    for trace_SH in hidden:
        starts.append(rows)
        rows += len(trace_SH)
    counts = torch.tensor([len(trace_SH) for trace_SH in hidden])
    tensors = {
        "hidden": torch.cat(list(hidden)).contiguous(),
        "trace_index": torch.repeat_interleave(
            torch.arange(len(hidden), dtype=torch.int32), counts
        ),
        "position": torch.tensor([p for trace in positions for p in trace], dtype=torch.int32),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
    return starts


def _check(hidden: Sequence[Tensor], positions: Sequence[Sequence[int]]) -> None:
    if not hidden or len(hidden) != len(positions):
        raise InputError(
            f"Expected states and positions of the same traces, at least one, "
            f"found {len(hidden)} and {len(positions)}. Hint: give one entry a trace in both lists."
        )
    width, dtype = hidden[0].shape[-1], hidden[0].dtype
    if dtype not in FEATURE_DTYPES.values():
        raise InputError(
            f"Expected states in {', '.join(FEATURE_DTYPES)}, found {dtype}. "
            "Hint: convert them first, such as with .bfloat16()."
        )
    for index, (trace_SH, trace_positions) in enumerate(zip(hidden, positions, strict=True)):
        if trace_SH.shape != (len(trace_positions), width) or trace_SH.dtype != dtype:
            raise InputError(
                f"Expected states [{len(trace_positions)}, {width}] {dtype} of trace {index}, "
                f"found {list(trace_SH.shape)} {trace_SH.dtype}. "
                "Hint: give one row a position, and one dtype for all traces."
            )
        if not torch.isfinite(trace_SH).all():
            raise InputError(
                f"Expected finite states of trace {index}, found NaN or infinity in {dtype}. "
                "Hint: let the engine run, and the features be stored, in bfloat16 or float32."
            )


class FeatureShard:
    """One shard, read through a memory map: only the rows asked for are loaded.

    Can be sent to another process, where it opens the file anew.
    """

    def __init__(self, path: Path | str) -> None:
        """Open a shard.

        Raises:
            InputError: the file is missing, is no feature shard, or its tensors disagree.
        """
        self.path = Path(path)
        self._file: Any = None
        try:
            file = self._open()
            shape = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"Expected a feature shard at {path}, found: {error}. "
                "Hint: collect or extract again."
            ) from error
        rows = shape.get("hidden", [0])[0]
        expected = {"hidden": [rows, *shape.get("hidden", [])[1:]]}
        expected |= {"trace_index": [rows], "position": [rows]}
        if shape != expected or len(shape["hidden"]) != 2:
            raise InputError(
                f"Expected tensors hidden [S, H], trace_index [S] and position [S] in {path}, "
                f"found {shape}. Hint: collect or extract again."
            )
        self.rows: int = rows
        """Steps S in the shard."""
        self.hidden_size: int = shape["hidden"][1]
        """Width H of a state."""

    def _open(self) -> Any:
        # A memory map must not be shared over a fork, nor travel in a pickle.
        if self._file is None or self._file[0] != os.getpid():
            self._file = (os.getpid(), safe_open(str(self.path), framework="pt"))
        return self._file[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    @property
    def dtype(self) -> torch.dtype:
        """The stored states' type."""
        return self.hidden(0, 0).dtype

    def hidden(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the states of rows start..stop [S, H], in their stored type."""
        return self._rows("hidden", start, stop)

    def trace_index(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return each row's trace [S] int32: the row number of the trace within its part."""
        return self._rows("trace_index", start, stop)

    def position(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return each row's boundary [S] int32: an index into the trace's generated tokens."""
        return self._rows("position", start, stop)

    def _rows(self, name: str, start: int, stop: int | None) -> Tensor:
        return self._open().get_slice(name)[start : self.rows if stop is None else stop]


def feature_bytes(steps: float, hidden_size: int, dtype: torch.dtype) -> int:
    """Return how many bytes so many steps take in shards, headers left out."""
    return int(steps * (hidden_size * dtype.itemsize + INDEX_BYTES))
