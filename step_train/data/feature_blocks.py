"""Reading hidden states for training: whole blocks from memory-mapped shards, shuffled, sliced.

Traces are shuffled over all shards, then gathered block by block in the order in which they lie on
disk; batches are random rows of a block. No Python runs for a single step, at most two blocks are
in memory, and the next one is read while the last is used. Axes: R rows of a block, B rows of a
batch, H hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_gen.traces.features import FeatureShard
from step_infer.errors import InputError
from step_train.data.trace_table import Ints, TraceTable

MEBIBYTE = 2**20
_EVALUATION_BYTES, _EVALUATION_ROWS = 8 * MEBIBYTE, 8192

Block = tuple[Tensor, Tensor]
EvaluationBatch = tuple[Tensor, Tensor]


class TrainingBatch(NamedTuple):
    """A process's share of a batch; what else is known of a step is looked up by its number."""

    hidden_BH: Tensor
    """States as they are stored."""
    step_B: Tensor
    """Number of each row in its split's [S] arrays (`TraceTable`), int64."""
    rows: int
    """Rows of the whole batch, over all processes."""


class FeatureRows:
    """All shards of a directory as one array of rows, numbered through."""

    def __init__(self, shards: Sequence[FeatureShard]) -> None:
        """Open the shards' memory maps.

        Raises:
            InputError: the shards differ in hidden size or number format.
        """
        first = shards[0]
        for shard in shards:
            if shard.hidden_size != first.hidden_size or shard.dtype != first.dtype:
                raise InputError(
                    f"Expected hidden size {first.hidden_size} in {first.dtype} ({first.path}), "
                    f"found {shard.hidden_size} in {shard.dtype} ({shard.path}). "
                    "Hint: features of one scorer come from one model."
                )
        self.hidden_size = first.hidden_size
        self.dtype = first.dtype
        self.row_bytes = first.hidden_size * first.dtype.itemsize
        self._shards = shards
        self._first_row = np.cumsum([0, *(shard.rows for shard in shards)])

    def of_traces(self, table: TraceTable) -> Ints:
        """Return the row of each trace's first step [N].

        Raises:
            InputError: a trace's rows lie outside its shard.
        """
        rows_N = np.array([shard.rows for shard in self._shards])[table.shard_N]
        end_N = table.row_start_N + table.steps_N
        if (end_N > rows_N).any():
            bad = int(np.flatnonzero(end_N > rows_N)[0])
            raise InputError(
                f"Expected the rows of every trace, {end_N[bad]} or more, in "
                f"{self._shards[table.shard_N[bad]].path}, found {rows_N[bad]}. "
                "Hint: the traces table and the features do not belong together."
            )
        return self._first_row[table.shard_N] + table.row_start_N

    def gather(self, rows: Ints, out: Tensor) -> None:
        """Copy rows, given in ascending order, into `out` [R, H]."""
        bounds = np.searchsorted(rows, self._first_row)
        for shard, first, start, stop in zip(
            self._shards, self._first_row, bounds, bounds[1:], strict=False
        ):
            if start == stop:
                continue
            local = rows[start:stop] - first
            if local[-1] - local[0] == stop - start - 1:  # no gap
                out[start:stop].copy_(shard.hidden(int(local[0]), int(local[-1]) + 1))
            else:
                torch.index_select(shard.hidden(), 0, torch.from_numpy(local), out=out[start:stop])

    def require_finite(self) -> None:
        """Look at every state; reads all.

        Raises:
            InputError: one is not finite; the message names the first one's file and row.
        """
        chunk = max(1, _EVALUATION_BYTES // self.row_bytes)
        for shard in self._shards:
            for start in range(0, shard.rows, chunk):
                bad = ~torch.isfinite(shard.hidden(start, min(start + chunk, shard.rows)))
                if bad.any():
                    row = start + int(bad.any(dim=1).nonzero()[0])
                    raise InputError(
                        f"Expected finite hidden states, found NaN or infinity in {shard.path}, "
                        f"row {row}. Hint: collect or extract the features again, in bfloat16 or "
                        "float32."
                    )


def buffer(rows: int, like: FeatureRows) -> Tensor:
    """Return an uninitialised block [R, H]."""
    # Through numpy: torch.empty fills memory with NaN in deterministic mode.
    raw = np.empty((rows, like.row_bytes), dtype=np.uint8)
    return torch.from_numpy(raw).view(like.dtype)


@dataclass
class TrainingBatches:
    """An epoch of shuffled batches each time it is iterated.

    A share of the last batch may be empty. The order depends on seed and epoch alone. With several
    processes, all make the same global batches and each takes its rows of them, so
    that the result does not depend on their number.
    """

    rows: FeatureRows
    table: TraceTable
    batch_size: int
    """Rows B of a global batch."""
    memory_bytes: int
    """Bound on the blocks in memory."""
    seed: int
    epoch: Callable[[], int]
    """Returns the number of the epoch that is about to start."""
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise InputError(
                f"Expected a batch size that {self.world_size} devices can share evenly, "
                f"found {self.batch_size}. Hint: change --batch-size or --devices."
            )
        total = self.table.num_steps
        self._whole = total * self.rows.row_bytes <= self.memory_bytes
        per_block = self.memory_bytes // (2 * self.rows.row_bytes * self.batch_size)
        self.block_rows = total if self._whole else per_block * self.batch_size
        if not self.block_rows:
            needed = 2 * self.rows.row_bytes * self.batch_size / MEBIBYTE
            raise InputError(
                f"Expected memory for two batches ({needed:.1f} MiB), "
                f"found {self.memory_bytes / MEBIBYTE:.1f} MiB. "
                "Hint: raise --memory-mib or lower --batch-size."
            )
        self._first_row_N = self.rows.of_traces(self.table)
        self._buffers: list[Tensor] = []
        self._loaded: Tensor | None = None
        # For all epochs: to end a thread when an epoch's iterator is dropped takes a while in which
        # an interrupt would be lost.
        self._reader = ThreadPoolExecutor(1, "feature-blocks")

    def __len__(self) -> int:
        return -(-self.table.num_steps // self.batch_size)

    def __iter__(self) -> Iterator[TrainingBatch]:
        epoch = self.epoch()
        order_N = np.random.default_rng([self.seed, epoch]).permutation(len(self.table))
        ends_N = np.cumsum(self.table.steps_N[order_N])
        blocks = range(0, self.table.num_steps, self.block_rows)
        coming = self._reader.submit(self._block, order_N, ends_N, 0)
        for number, start in enumerate(blocks):
            hidden_RH, step_R = coming.result()
            if start + self.block_rows < self.table.num_steps:
                coming = self._reader.submit(self._block, order_N, ends_N, number + 1)
            generator = np.random.default_rng([self.seed, epoch, number])
            yield from self._batches(hidden_RH, step_R, generator)

    def _block(self, order_N: Ints, ends_N: Ints, number: int) -> Block:
        start = number * self.block_rows
        stop = min(start + self.block_rows, self.table.num_steps)
        # Traces that the block holds, some steps of the first and last perhaps elsewhere.
        first, last = np.searchsorted(ends_N, [start, stop - 1], side="right")
        chosen = order_N[first : last + 1]
        low = np.maximum(ends_N[first : last + 1] - self.table.steps_N[chosen], start)
        skip = low - (ends_N[first : last + 1] - self.table.steps_N[chosen])
        count = np.minimum(ends_N[first : last + 1], stop) - low
        on_disk = np.argsort(chosen)
        chosen, skip, count = chosen[on_disk], skip[on_disk], count[on_disk]
        # Of every row of the block: how far it is in its trace, and so its number and its place.
        step_R = np.repeat(skip - (np.cumsum(count) - count), count) + np.arange(stop - start)
        number_R = torch.from_numpy(step_R + np.repeat(self.table.first_step_N[chosen], count))
        if self._loaded is not None:
            return self._loaded, number_R
        rows = step_R + np.repeat(self._first_row_N[chosen], count)
        if len(self._buffers) <= number % 2:
            self._buffers.append(buffer(self.block_rows, self.rows))
        hidden_RH = self._buffers[number % 2][: stop - start]
        self.rows.gather(rows, hidden_RH)
        if self._whole:
            self._loaded = hidden_RH
        return hidden_RH, number_R

    def _batches(
        self, hidden_RH: Tensor, step_R: Tensor, generator: np.random.Generator
    ) -> Iterator[TrainingBatch]:
        shuffled = torch.from_numpy(generator.permutation(len(step_R)))
        for batch in shuffled.split(self.batch_size):
            mine = batch[self.rank :: self.world_size]
            yield TrainingBatch(hidden_RH.index_select(0, mine), step_R[mine], len(batch))


@dataclass
class EvaluationBatches:
    """All steps of a split in order, as (hidden [B, H], number of each step in the split [B]).

    Several processes take turns.
    """

    rows: FeatureRows
    table: TraceTable
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        # No process may be left without a batch: all of them meet after the last one.
        share = self.table.num_steps // self.world_size
        most = min(_EVALUATION_BYTES // self.rows.row_bytes, _EVALUATION_ROWS)
        self._chunk = max(1, min(most, share))
        self._first_row_N = self.rows.of_traces(self.table)

    def _starts(self) -> range:
        return range(self.rank * self._chunk, self.table.num_steps, self.world_size * self._chunk)

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[EvaluationBatch]:
        for start in self._starts():
            step_S = np.arange(start, min(start + self._chunk, self.table.num_steps))
            trace = self.table.traces_of(step_S)
            rows = self._first_row_N[trace] + step_S - self.table.first_step_N[trace]
            hidden_BH = buffer(len(rows), self.rows)
            self.rows.gather(rows, hidden_BH)
            yield hidden_BH, torch.from_numpy(step_S)
