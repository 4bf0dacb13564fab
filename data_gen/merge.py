"""Join the shards of one collection: `merge(CollectMergeConfig(...))`."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from data_gen.config import CollectMergeConfig
from data_gen.questions.load import shard_part
from data_gen.summary import print_summary, summarise
from data_gen.traces.directory import TraceDirectory
from data_gen.traces.table import TRACE_SCHEMA, write_table
from data_gen.traces.writer import TraceWriter, part_files
from step_infer.cli.progress import track
from step_infer.errors import InputError
from step_infer.storage.files import atomic_path, real_path
from step_infer.storage.run_directory import first_difference

_SHARD = "shard"
_DESCRIBED = (
    *("model", "identity", "boundary", "sampling", "seed", "system", "num_traces"),
    *("chat_template_kwargs", "prompt_date", "questions", "scorer", "engine"),
)
"""Fields of the manifest that are the same for all shards; where not, the first one's are kept."""


@dataclass(frozen=True)
class QuestionShard:
    """One finished run of a part of the questions."""

    directory: TraceDirectory
    index: int
    count: int

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the content, without which part of the questions it is."""
        return {k: v for k, v in self.directory.manifest["settings"].items() if k != _SHARD}


def merge(config: CollectMergeConfig, console: Console | None = None) -> dict[str, Any]:
    """Join shards into one traces directory, in their own order, however they are given.

    Feature shards are linked (copied to another file system). Nothing is listed before all is
    there, so a join that was killed starts again, and one that is done stays as it is.

    Args:
        config: the settings.
        console: where the summary goes; None is standard output.

    Returns:
        The summary of the whole (see `data_gen.summary.summarise`); its seconds are those of all
        engines together.

    Raises:
        InputError: no shards, one is unfinished, missing, given twice or of another run, or the
            output directory holds something else.
    """
    console = console or Console(soft_wrap=True)
    shards = read_shards(config.shards, config.out)
    manifests = [shard.directory.manifest for shard in shards]
    settings = shards[0].settings | {
        f"shard {shard.index}/{shard.count}": shard.directory.fingerprint for shard in shards
    }
    described = {name: manifests[0].get(name) for name in _DESCRIBED}
    described["merged"] = [
        {"run": str(shard.directory.path), "command": found["command"], "created": found["created"]}
        for shard, found in zip(shards, manifests, strict=True)
    ]
    with TraceWriter(config.out, settings, **described) as out:
        if not out.manifest["parts"]:
            seconds = sum(found["seconds"] for found in manifests)
            out.update(parts=_write_parts(shards, out), seconds=seconds)
        if not out.manifest["complete"]:
            summary = summarise(out.read())
            summary["skipped_lines"] = manifests[0]["summary"]["skipped_lines"]
            out.finish(summary=summary)
    summary = out.manifest["summary"]
    print_summary(summary, console)
    console.print(f"Traces: {config.out}")
    return summary


def read_shards(paths: Sequence[str], out: str) -> list[QuestionShard]:
    """Open the shards of one collection, and return them in order.

    Raises:
        InputError: they are not all the shards of one collection.
    """
    if not paths:
        raise InputError(
            "Expected directories of step-collect --shard to merge, found none. "
            "Hint: step-collect merge DIR... --out DIR."
        )
    if real_path(out) in map(real_path, paths):
        raise InputError(
            f"Expected --out to be a new directory, found one of the shards, {out}. "
            "Hint: choose another --out."
        )
    shards = [_read_shard(path) for path in paths]
    first = shards[0]
    by_index: dict[int, QuestionShard] = {}
    for shard in shards:
        _require_same_settings(first, shard)
        twin = by_index.setdefault(shard.index, shard)
        if twin is not shard:
            raise InputError(
                f"Expected each shard once, found {shard.index}/{shard.count} in "
                f"{twin.directory.path} and in {shard.directory.path}. "
                "Hint: leave one of them out."
            )
    missing = [f"{i}/{first.count}" for i in range(first.count) if i not in by_index]
    if missing:
        raise InputError(
            f"Expected all {first.count} shards, found {len(by_index)} of them; missing: "
            f"{', '.join(missing)}. Hint: collect them with --shard."
        )
    for shard in shards:
        if not shard.directory.complete:
            raise InputError(
                f"Expected finished shards, found {shard.directory.path} unfinished "
                f"({shard.directory.num_traces} traces so far). "
                "Hint: give its step-collect command again; it goes on where it stopped."
            )
    return [by_index[index] for index in range(first.count)]


def _read_shard(path: str) -> QuestionShard:
    directory = TraceDirectory(path)
    settings = directory.manifest.get("settings")
    if not isinstance(settings, dict) or _SHARD not in settings:
        raise InputError(
            f"Expected a directory of step-collect --shard at {path}, found traces without a "
            "shard. Hint: leave it out; it is whole already."
        )
    return QuestionShard(directory, *shard_part(settings[_SHARD]))


def _require_same_settings(first: QuestionShard, other: QuestionShard) -> None:
    before = first.settings | {"number of shards": first.count, "state type": _dtype(first)}
    after = other.settings | {"number of shards": other.count, "state type": _dtype(other)}
    name = first_difference(after, before)
    if name is not None:
        raise InputError(
            f"Expected shards with the same settings, found {name} {before.get(name)!r} in "
            f"{first.directory.path} and {after.get(name)!r} in {other.directory.path}. "
            "Hint: collect one of them again with the other's settings."
        )


def _dtype(shard: QuestionShard) -> str | None:
    """Return the type of the stored states, which the engine chose where no setting did."""
    parts = shard.directory.manifest["parts"]
    return str(shard.directory.shard(0).dtype) if parts and parts[0]["features"] else None


def _write_parts(shards: Sequence[QuestionShard], out: TraceWriter) -> list[dict[str, Any]]:
    """Write the parts of all shards, numbered anew, and return what the manifest lists."""
    parts: list[dict[str, Any]] = []
    sources = [
        (shard.directory, index) for shard in shards for index in range(shard.directory.num_parts)
    ]
    for directory, index in track(sources, len(sources), "parts", delay_s=2):
        source = directory.manifest["parts"][index]
        part_file, feature_file = part_files(len(parts))
        directory.verify_file(source["traces"])
        table = directory.part(index)
        features = None
        if source["features"] is not None:
            table = _with_shard(table, len(parts))
            _link(directory.shard(index).path, out.path / feature_file)
            features = source["features"] | {"file": feature_file}
        write_table(out.path / part_file, table)
        listed = out.listed(part_file, len(table))
        parts.append({"traces": listed, "features": features})
    return parts


def _with_shard(table: pa.Table, shard: int) -> pa.Table:
    """Return a part's table with another number of its feature shard."""
    column = table.schema.get_field_index("shard")
    numbers = pa.array([shard] * len(table), pa.int32())
    return table.set_column(column, TRACE_SCHEMA.field("shard"), numbers)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where it cannot have one."""
    try:
        os.link(real_path(source), target)
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
