"""A run's features in few coordinates: each state is read, projected and written once.

In the run directory, while it trains: projected/subspace.safetensors, and shards as those of a
traces directory, in order of the traces on disk. A killed run goes on with the shards it has.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from data_gen.traces.features import FeatureShard, write_shard
from step_infer.cli.progress import track
from step_infer.errors import InputError
from step_infer.storage.files import atomic_write
from step_train.data.feature_blocks import MEBIBYTE, EvaluationBatches, FeatureRows
from step_train.data.subspace import Subspace, fit_subspace
from step_train.data.trace_table import Ints, TraceTable
from step_train.data.training_data import TrainingData

_SHARD_BYTES = 16 * MEBIBYTE


@dataclass(frozen=True)
class Projection:
    """Where a run's projected features are, and how they are made."""

    path: Path
    """The folder."""
    data: TrainingData
    components: int
    memory_mib: int
    seed: int
    progress: bool = False

    def write(self) -> None:
        """Make what is missing. The first process of a run calls it.

        Raises:
            InputError: a state is not finite, or the folder cannot be written.
        """
        subspace = self._known()
        if subspace is None:
            for shard in self.path.glob("*.safetensors"):
                shard.unlink()
            data = self.data
            subspace = fit_subspace(
                data.rows,
                data.splits["train"],
                self.components,
                memory_mib=self.memory_mib,
                seed=self.seed,
                progress=self.progress,
            )
            with atomic_write(self._subspace) as file:
                file.write(save({"mean_H": subspace.mean_H, "weight_HK": subspace.weight_HK}))
        parts = self._parts()
        label = "projection: shards"
        tracked = track(parts, len(parts), label, shown=self.progress, delay_s=2)
        for number, part in enumerate(tracked):
            if not self._whole(number, part):
                self._write_shard(number, part, subspace)

    def open(self) -> tuple[Subspace, FeatureRows, dict[str, TraceTable]]:
        """Return the subspace, the projected features, and each split's traces in them.

        Raises:
            InputError: they are not there, or damaged.
        """
        subspace = self._known()
        if subspace is None:
            raise InputError(
                f"Expected the subspace in {self._subspace}, found none. "
                "Hint: give step-train fit the same command again."
            )
        table, parts = self._table(), self._parts()
        rows = FeatureRows([FeatureShard(self._shard(number)) for number in range(len(parts))])
        shard_N = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        row_start_N = np.concatenate([part.first_step_N for part in parts])
        splits = {}
        for name, split in self.data.splits.items():
            place_N = np.searchsorted(_place(table, table), _place(split, table))
            splits[name] = dataclasses.replace(
                split, shard_N=shard_N[place_N], row_start_N=row_start_N[place_N]
            )
        return subspace, rows, splits

    @property
    def _subspace(self) -> Path:
        return self.path / "subspace.safetensors"

    def _shard(self, number: int) -> Path:
        return self.path / f"shard-{number:05d}.safetensors"

    def _known(self) -> Subspace | None:
        try:
            return Subspace(**load(self._subspace.read_bytes()))
        except (OSError, SafetensorError, TypeError):
            return None

    def _table(self) -> TraceTable:
        """Return the traces of all splits, as they lie on disk."""
        splits = list(self.data.splits.values())
        names = ("question_N", "correct_N", "shard_N", "row_start_N", "steps_N")
        columns = {name: np.concatenate([getattr(s, name) for s in splits]) for name in names}
        table = TraceTable(splits[0].questions, **columns)
        order = np.argsort(_place(table, table))
        return dataclasses.replace(table, **{name: columns[name][order] for name in names})

    def _parts(self) -> list[TraceTable]:
        """Return the traces of each shard: whole traces, a shard's size or little more."""
        table = self._table()
        rows = max(1, _SHARD_BYTES // (4 * self.components))
        number_N = table.first_step_N // rows
        starts = np.flatnonzero(np.diff(number_N, prepend=-1))
        return [table.select(part) for part in np.split(np.arange(len(table)), starts[1:])]

    def _whole(self, number: int, part: TraceTable) -> bool:
        try:
            return FeatureShard(self._shard(number)).rows == part.num_steps
        except InputError:
            return False

    def _write_shard(self, number: int, part: TraceTable, subspace: Subspace) -> None:
        rows = self.data.rows
        batches = EvaluationBatches(rows, part)
        coordinates_SK = torch.cat([subspace.project(hidden_BH) for hidden_BH, _ in batches])
        if not torch.isfinite(coordinates_SK).all():
            rows.require_finite()
        traces = coordinates_SK.split(part.steps_N.tolist())
        write_shard(self._shard(number), traces, [range(len(trace)) for trace in traces])


def _place(table: TraceTable, whole: TraceTable) -> Ints:
    """Return a number for each trace that grows with its place on disk."""
    return table.shard_N * (int(whole.row_start_N.max()) + 1) + table.row_start_N
