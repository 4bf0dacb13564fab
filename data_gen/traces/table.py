"""The traces table: one row a trace, in Parquet parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from step_infer.errors import InputError
from step_infer.storage.files import atomic_path

if TYPE_CHECKING:
    from datasets import Dataset

TRACE_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("trace_id", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("ground_truth", pa.string()),
        pa.field("prompt_token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("extracted_answer", pa.string()),
        pa.field("is_correct", pa.bool_()),
        pa.field("answer_group", pa.int32()),
        pa.field("boundary_positions", pa.list_(pa.int32()), nullable=False),
        pa.field("step_scores", pa.list_(pa.float32())),
        pa.field("trace_score", pa.float32()),
        pa.field("step_confidences", pa.list_(pa.float32())),
        pa.field("mean_token_confidence", pa.float32()),
        pa.field("shard", pa.int32()),
        pa.field("row_start", pa.int64()),
        pa.field("num_steps", pa.int32(), nullable=False),
    ]
)
"""Columns of the table. `shard` and `row_start` say where a trace's features begin (null without
features), `num_steps` how many rows they take; `is_correct` is null without a ground truth, an
answer or a verdict; `answer_group` numbers the groups of equal answers of a question from 0, in the
order in which the table has their first traces, null without an answer; positions count generated
tokens from 0. Of the token confidence (see
`step_infer.row_scorer`) `step_confidences` is the mean from the first token up to and including
each boundary, `mean_token_confidence` that of the whole trace; null where not recorded."""

ANSWER_COLUMNS = ("extracted_answer", "answer_group")
"""A trace's answer, and its group of equal ones: both are null, or none."""

KEY_COLUMNS = ("question_id", "trace_id")
"""Columns that name a trace."""


def write_part(path: Path | str, rows: Sequence[dict[str, Any]]) -> None:
    """Write whole traces as one Parquet part, atomically.

    Args:
        path: the part's file.
        rows: one dictionary a trace; columns that may be null can be left out.

    Raises:
        InputError: a value does not fit its column, or an answer has no group.
    """
    unknown = {name for row in rows for name in row} - set(TRACE_SCHEMA.names)
    if unknown:
        raise InputError(
            f"Expected columns of the traces table, found {sorted(unknown)}. "
            "Hint: leave out those that TRACE_SCHEMA lacks."
        )
    try:
        table = pa.Table.from_pylist(list(rows), schema=TRACE_SCHEMA)
        table.validate(full=True)
        for field in TRACE_SCHEMA:
            empty = table[field.name].null_count
            if empty and not field.nullable:
                raise InputError(
                    f"Expected a value in every row of column {field.name!r}, found none in "
                    f"{empty} of {len(rows)} rows. Hint: fill it in every row."
                )
        answered, grouped = (pc.is_valid(table[name]) for name in ANSWER_COLUMNS)
        if not answered.equals(grouped):
            raise InputError(
                "Expected an answer_group in every row with an extracted_answer, and in no other, "
                f"found {pc.sum(answered).as_py() or 0} answers and "
                f"{pc.sum(grouped).as_py() or 0} groups. Hint: AnswerGroups.add numbers them."
            )
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"Expected rows of the traces table, found: {error}. "
            "Hint: TRACE_SCHEMA has the type of each column."
        ) from error
    write_table(path, table)


def write_table(path: Path | str, table: pa.Table) -> None:
    """Write a table as one Parquet part, atomically."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_part(path: Path | str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a part, or some of its columns, into memory.

    Raises:
        InputError: the file is missing, is no Parquet file, or lacks a column.
    """
    wanted = list(TRACE_SCHEMA.names if columns is None else columns)
    try:
        file = pq.ParquetFile(path, memory_map=True)
        found = file.schema_arrow.names
        missing = [name for name in wanted if name not in found]
        if missing:
            raise InputError(
                f"Expected column {missing[0]!r} in {path}, found none. "
                "Hint: make it again with this version of the toolkit."
            )
        return file.read(columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"Expected a Parquet file at {path}, found: {error}. "
            "Hint: the copy may not be whole; copy or make it again."
        ) from error


def load_parts(
    paths: Sequence[Path | str],
    columns: Sequence[str] | None = None,
    cache_dir: Path | str | None = None,
) -> "Dataset":
    """Open parts as one memory-mapped data set, in the order given.

    The first call converts them into `cache_dir`, by default the cache of `datasets`; the next is
    fast.
    """
    from datasets import Dataset

    return Dataset.from_parquet(
        [str(path) for path in paths],
        columns=None if columns is None else list(columns),
        cache_dir=None if cache_dir is None else str(cache_dir),
    )
