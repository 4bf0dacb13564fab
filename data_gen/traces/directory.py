"""A traces directory: table parts and feature shards, kept together by a manifest.

DIR/manifest.json; DIR/traces/part-00000.parquet …; DIR/features/shard-00000.safetensors …
Part i and shard i hold the same traces. A part that the manifest does not list does not exist.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data_gen.traces.features import FeatureShard
from data_gen.traces.manifest import read_trace_manifest
from data_gen.traces.table import KEY_COLUMNS, load_parts, read_part
from step_infer.errors import InputError
from step_infer.storage.files import sha256_file

if TYPE_CHECKING:
    from datasets import Dataset


class TraceDirectory:
    """Reads a traces directory: only what its manifest lists."""

    def __init__(self, path: Path | str) -> None:
        """Open a directory.

        Raises:
            InputError: it has no manifest, or the manifest is not that of a traces directory.
        """
        self.path = Path(path)
        self.manifest = read_trace_manifest(path)

    @property
    def num_parts(self) -> int:
        """How many parts there are."""
        return len(self.manifest["parts"])

    @property
    def num_traces(self) -> int:
        """How many traces all parts hold."""
        return sum(part["traces"]["rows"] for part in self.manifest["parts"])

    @property
    def num_steps(self) -> int:
        """How many rows all feature shards hold."""
        return sum(part["features"]["rows"] for part in self.manifest["parts"] if part["features"])

    @property
    def complete(self) -> bool:
        """Whether the run that fills the directory came to its end."""
        return bool(self.manifest.get("complete"))

    @property
    def fingerprint(self) -> str:
        """A hash of the content, from the checksums in the manifest."""
        sums = [
            [listed["sha256"] for listed in (part["traces"], part["features"]) if listed]
            for part in self.manifest["parts"]
        ]
        return hashlib.sha256(json.dumps(sums).encode()).hexdigest()

    def part_paths(self) -> list[Path]:
        """Return the parts' files, in order."""
        return [self._part_path(index) for index in range(self.num_parts)]

    def _part_path(self, index: int) -> Path:
        return self.path / self.manifest["parts"][index]["traces"]["file"]

    def part(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part, or some of its columns, into memory."""
        return read_part(self._part_path(index), columns)

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Read some columns of all parts into memory."""
        if not self.manifest["parts"]:
            raise InputError(
                f"Expected traces in {self.path}, found none. "
                "Hint: give the command that makes it again; it goes on where it stopped."
            )
        return pa.concat_tables(self.part(i, columns) for i in range(self.num_parts))

    def dataset(
        self, columns: Sequence[str] | None = None, cache_dir: Path | str | None = None
    ) -> "Dataset":
        """Open the table of all parts as a memory-mapped data set; see `load_parts`."""
        if not self.manifest["parts"]:
            raise InputError(
                f"Expected traces in {self.path}, found none. "
                "Hint: give the command that makes it again; it goes on where it stopped."
            )
        return load_parts(self.part_paths(), columns, cache_dir)

    def shard(self, index: int) -> FeatureShard:
        """Open the feature shard of a part.

        Raises:
            InputError: the directory was made without features, or the shard is damaged.
        """
        listed = self.manifest["parts"][index]["features"]
        if listed is None:
            raise InputError(
                f"Expected features in {self.path}, found none. "
                "Hint: collect with --features true, or add them with step-train extract."
            )
        path = self.path / listed["file"]
        if path.is_file() and path.stat().st_size != listed["bytes"]:
            raise InputError(
                f"Expected {listed['bytes']} bytes (manifest) in {path}, found "
                f"{path.stat().st_size}. Hint: the copy is not whole, or remove the directory and "
                "make it again."
            )
        shard = FeatureShard(path)
        if shard.rows != listed["rows"]:
            raise InputError(
                f"Expected {listed['rows']} rows (manifest) in {shard.path}, found {shard.rows}. "
                "Hint: remove the directory and make it again."
            )
        return shard

    def shards(self) -> list[FeatureShard]:
        """Open all feature shards, in order."""
        return [self.shard(index) for index in range(self.num_parts)]

    def keys(self) -> Iterator[tuple[str, int]]:
        """Yield (question_id, trace_id) of every trace."""
        for index in range(self.num_parts):
            part = self.part(index, KEY_COLUMNS)
            yield from zip(*(part[name].to_pylist() for name in KEY_COLUMNS), strict=True)

    def verify(self) -> None:
        """Compare every listed file with its size and checksum; reads all bytes.

        Raises:
            InputError: a file is missing or differs; the message names it.
        """
        for part in self.manifest["parts"]:
            for listed in filter(None, (part["traces"], part["features"])):
                self.verify_file(listed)

    def verify_file(self, listed: dict[str, Any]) -> None:
        """Compare one file with its size and checksum, as the manifest's parts list it.

        Raises:
            InputError: it is missing or differs.
        """
        path = self.path / listed["file"]
        if not path.is_file():
            raise InputError(
                f"Expected {path} (manifest), found no such file. Hint: the copy is not whole, or "
                "remove the directory and make it again."
            )
        if path.stat().st_size != listed["bytes"] or sha256_file(path) != listed["sha256"]:
            raise InputError(
                f"Expected {listed['bytes']} bytes with checksum {listed['sha256'][:12]}… "
                f"(manifest) in {path}, found other content. "
                "Hint: remove the directory and make it again."
            )
