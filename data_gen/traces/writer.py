"""Fill a traces directory part by part, so that a killed run can go on without a trace lost.

The shard is written first, then the part, then the manifest that lists both.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from data_gen.traces.directory import TraceDirectory
from data_gen.traces.features import write_shard
from data_gen.traces.manifest import KIND
from data_gen.traces.table import TRACE_SCHEMA, write_part, write_table
from step_infer.cli.progress import track
from step_infer.errors import InputError
from step_infer.storage.files import sha256_file
from step_infer.storage.run_directory import RunDirectory

_OURS = re.compile(r"\.?(part-\d{5,}(-regrouped)?\.parquet|shard-\d{5,}\.safetensors)(\..*\.tmp)?")


class TraceWriter(RunDirectory):
    """Fills a traces directory part by part; use it as a context manager.

    Holds the directory from the start, so that there is one writer at a time.
    """

    def __init__(self, path: Path | str, settings: dict[str, Any], **manifest: Any) -> None:
        """Start a directory, or go on with one that was started with the same settings.

        Args:
            path: the directory; made where it is missing.
            settings: what decides the content, JSON-ready; must agree to go on.
            manifest: more fields for a new manifest, JSON-ready.

        Raises:
            InputError: the directory cannot be written, is in use, holds something else, or was
                started with other settings (the message names the first that differs).
        """
        super().__init__(path, KIND)
        self.claim()
        try:
            if self.manifest and self.read().num_parts:
                _require_same_maker(self.manifest, manifest, self.path)
                self.require_settings(settings)
            else:  # nothing is written yet: any settings will do
                self.begin(settings, seconds=0.0, parts=[], **manifest)
            self._remove_orphans()
            _probe(self.path / "traces", self.path / "features")
        except BaseException:
            self.close()
            raise

    def read(self) -> TraceDirectory:
        """Return a reader of what has been written."""
        return TraceDirectory(self.path)

    def add_part(
        self,
        rows: Sequence[dict[str, Any]],
        hidden: Sequence[Tensor] | None,
        **manifest: Any,
    ) -> None:
        """Write whole traces as the next part, with their features where there are any.

        Sets `shard`, `row_start` and `num_steps` of each row.

        Args:
            rows: one dictionary a trace, with the table's columns.
            hidden: for each trace its states at `boundary_positions` [S_i, H]; None without.
            manifest: fields of the manifest to set in the same write.
        """
        parts = self.manifest["parts"]
        index = len(parts)
        part_file, shard_file = part_files(index)
        positions = [row["boundary_positions"] for row in rows]
        steps = [len(trace_positions) for trace_positions in positions]
        starts: Sequence[int | None] = [None] * len(rows)
        if hidden is not None:
            starts = write_shard(self.path / shard_file, hidden, positions)
        placed = [
            row
            | {
                "shard": None if hidden is None else index,
                "row_start": start,
                "num_steps": count,
            }
            for row, start, count in zip(rows, starts, steps, strict=True)
        ]
        write_part(self.path / part_file, placed)
        listed = {
            "traces": self.listed(part_file, len(rows)),
            "features": None if hidden is None else self.listed(shard_file, sum(steps)),
        }
        self.update(parts=[*parts, listed], **manifest)

    def regroup(self, changed: Mapping[str, Sequence[int | None]]) -> None:
        """Write the parts anew in which the groups of some questions' answers have changed.

        Args:
            changed: for each such question the column `answer_group` of its rows, in their order.
        """
        numbers = {question_id: iter(column) for question_id, column in changed.items()}
        parts = range(len(self.manifest["parts"]) if changed else 0)
        for index in track(parts, len(parts), "parts regrouped", delay_s=2):
            found = self.read().part(index)
            before = found["answer_group"].to_pylist()
            after = [
                next(numbers[question_id]) if question_id in numbers else number
                for question_id, number in zip(
                    found["question_id"].to_pylist(), before, strict=True
                )
            ]
            if after != before:
                self._replace_groups(index, found, after)

    def _replace_groups(self, index: int, table: pa.Table, numbers: Sequence[int | None]) -> None:
        parts = list(self.manifest["parts"])
        old_file, (new_file, _) = parts[index]["traces"]["file"], part_files(index)
        # Under another name, so that the manifest's checksum is right whenever a run is killed.
        if new_file == old_file:
            new_file = new_file.replace(".parquet", "-regrouped.parquet")
        field = TRACE_SCHEMA.field("answer_group")
        column = pa.array(numbers, field.type)
        place = table.schema.get_field_index(field.name)
        write_table(self.path / new_file, table.set_column(place, field, column))
        parts[index] = parts[index] | {"traces": self.listed(new_file, len(table))}
        self.update(parts=parts)
        (self.path / old_file).unlink()

    def listed(self, file: str, rows: int) -> dict[str, Any]:
        """Return what the manifest says of a file of so many rows that has been written."""
        path = self.path / file
        size = path.stat().st_size
        return {"file": file, "rows": rows, "bytes": size, "sha256": sha256_file(path)}

    def _remove_orphans(self) -> None:
        """Remove parts and shards that a killed run wrote but did not list."""
        listed = {
            part[kind]["file"]
            for part in self.manifest["parts"]
            for kind in ("traces", "features")
            if part[kind]
        }
        for folder in ("traces", "features"):
            for path in (self.path / folder).glob("*"):
                if _OURS.fullmatch(path.name) and f"{folder}/{path.name}" not in listed:
                    path.unlink()


def part_files(index: int) -> tuple[str, str]:
    """Return the files of a part and of its shard, below the directory."""
    return f"traces/part-{index:05d}.parquet", f"features/shard-{index:05d}.safetensors"


def _require_same_maker(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    if ("merged" in found) != ("merged" in wanted):
        what = "joined shards (step-collect merge)" if "merged" in found else "traces of one run"
        raise InputError(
            f"Expected an empty directory or one of the same command at {path}, found {what}. "
            "Hint: choose another output directory."
        )


def _probe(*folders: Path) -> None:
    """Find out now, rather than hours later, that a folder cannot be written."""
    for folder in folders:
        try:
            folder.mkdir(exist_ok=True)
            probe = folder / ".probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise InputError(
                f"Expected a writable output directory at {folder}, found: {error.strerror}. "
                "Hint: choose another path or change its permissions."
            ) from error
