"""Recorded traces without their text, in one small Parquet file.

What a replay needs of a trace: its length, boundaries, step scores, confidences and answer. Made by
`step-eval record`; read by `step-eval replay` and `step-eval simulate`. A part of step-collect's
traces table can be read as well.
"""

import dataclasses
from pathlib import Path
from typing import Any

from step_infer.aggregate import AGGREGATORS
from step_infer.errors import InputError
from step_infer.files import atomic_path, check_output
from step_infer.simulate_world import PoolQuestion, PoolTrace, World

_AGGREGATOR = b"step_infer.aggregator"
_SOURCE = b"step_infer.source"
_COLUMNS = (
    "question_id",
    "trace_id",
    "ground_truth",
    "finish_reason",
    "extracted_answer",
    "is_correct",
    "boundary_positions",
    "step_scores",
    "step_confidences",
    "mean_token_confidence",
)
_LENGTHS = {"prompt_tokens": "prompt_token_ids", "num_tokens": "token_ids"}
"""Columns of lengths, and the lists that they count in step-collect's table."""


def write_table(path: Path | str, world: World) -> None:
    """Write the traces of a world as one file, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "question_id": question.question_id,
            "trace_id": number,
            "prompt_tokens": question.prompt_tokens,
            "num_tokens": trace.tokens,
            "ground_truth": question.truth,
            "finish_reason": "length" if trace.cut else "stop",
            "extracted_answer": trace.answer,
            "is_correct": trace.right,
            "boundary_positions": trace.positions,
            "step_scores": trace.scores or None,
            "step_confidences": trace.confidences or None,
            "mean_token_confidence": trace.confidence,
        }
        for question in world.questions
        for number, trace in enumerate(question.traces)
    ]
    schema = pa.schema(
        [
            ("question_id", pa.string()),
            ("trace_id", pa.int32()),
            ("prompt_tokens", pa.int32()),
            ("num_tokens", pa.int32()),
            ("ground_truth", pa.string()),
            ("finish_reason", pa.string()),
            ("extracted_answer", pa.string()),
            ("is_correct", pa.bool_()),
            ("boundary_positions", pa.list_(pa.int32())),
            ("step_scores", pa.list_(pa.float32())),
            ("step_confidences", pa.list_(pa.float32())),
            ("mean_token_confidence", pa.float32()),
        ],
        {_AGGREGATOR: (world.aggregator or "").encode(), _SOURCE: world.source.encode()},
    )
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, compression="zstd")


def record(
    traces: Path | str,
    out: Path | str,
    scorer: Path | str | None = None,
    aggregator: str | None = None,
) -> str:
    """Write recorded traces to one file, and say in a line what it holds.

    Raises:
        InputError: the traces or the scorer cannot be used, there is no such aggregator, or `out`
            is one of the inputs.
    """
    from step_infer.simulate_traces import read_world

    if aggregator is not None and aggregator not in AGGREGATORS:
        raise InputError(
            f"Expected --aggregator out of {', '.join(AGGREGATORS)}, found {aggregator!r}."
        )
    check_output(out, traces, scorer)
    world = read_world(traces, scorer)
    write_table(out, dataclasses.replace(world, aggregator=aggregator or world.aggregator))
    count = sum(len(question.traces) for question in world.questions)
    return (
        f"{out}: {count:,} traces of {len(world.questions)} questions, "
        f"{'with' if world.scored else 'without'} step scores"
    )


def read_table(path: Path | str) -> World:
    """Read a file of `write_table`, or a part of step-collect's traces table.

    Raises:
        InputError: it is neither, or holds no trace.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        found = pq.read_schema(path)
        lengths = {name: name if name in found.names else old for name, old in _LENGTHS.items()}
        table = pq.read_table(path, columns=[*_COLUMNS, *lengths.values()])
        for name, column in lengths.items():
            if column != name:
                table = table.append_column(name, pc.list_value_length(table[column]))
        rows = table.drop_columns([c for n, c in lengths.items() if c != n]).to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(
            f"Expected recorded traces of step-eval record or step-collect at {path}, found: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if not rows:
        raise InputError(f"Expected recorded traces in {path}, found none.")
    by_question: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["trace_id"]):
        by_question.setdefault(row["question_id"], []).append(row)
    order = dict.fromkeys(row["question_id"] for row in rows)
    questions = tuple(
        PoolQuestion(
            question_id,
            by_question[question_id][0]["prompt_tokens"],
            tuple(pool_trace(row) for row in by_question[question_id]),
            by_question[question_id][0]["ground_truth"],
        )
        for question_id in order
    )
    metadata = found.metadata or {}
    source = metadata.get(_SOURCE, b"").decode()
    about = f"recorded traces of {path}" + (f" ({source})" if source else "")
    return World(questions, about, metadata.get(_AGGREGATOR, b"").decode() or None)


def pool_trace(row: dict[str, Any]) -> PoolTrace:
    """Return the trace of a row, whose number of tokens stands under `num_tokens`."""
    return PoolTrace(
        row["num_tokens"],
        tuple(row["boundary_positions"]),
        "right" if row["is_correct"] else row["extracted_answer"],
        bool(row["is_correct"]),
        row["finish_reason"] == "length",
        tuple(row["step_scores"] or ()),
        confidences=tuple(row["step_confidences"] or ()),
        confidence=row["mean_token_confidence"],
    )
