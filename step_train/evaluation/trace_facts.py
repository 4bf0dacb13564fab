"""What the traces table knows of the traces of a split besides their labels.

Axes: N traces, S steps of all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_gen.traces.directory import TraceDirectory
from step_eval.statistics import Floats
from step_infer.errors import InputError
from step_train.data.trace_table import Ints, TraceTable


@dataclass(frozen=True)
class StepFacts:
    """Facts of each step, in the order of a table's [S] arrays."""

    tokens_S: Ints
    """Generated tokens up to and including the boundary."""
    confidence_S: Floats | None
    """Mean token confidence so far; None where a trace was collected without it."""


def read_step_facts(directory: TraceDirectory, table: TraceTable) -> StepFacts:
    """Read token counts and confidences at the boundaries of a split's traces.

    Raises:
        InputError: the traces table does not fit the split.
    """
    tokens, confidences, unknown = [], [], 0
    columns = ("boundary_positions", "step_confidences")
    for _, rows in rows_of_traces(directory, table, columns):
        tokens.append(pc.list_flatten(rows["boundary_positions"]).to_numpy() + 1)
        unknown += rows["step_confidences"].null_count
        confidences.append(pc.list_flatten(rows["step_confidences"]).to_numpy())
    tokens_S = np.concatenate(tokens).astype(np.int64)
    confidence_S = None if unknown else np.concatenate(confidences).astype(np.float64)
    for values_S in (tokens_S, confidence_S):
        if values_S is not None and len(values_S) != table.num_steps:
            raise InputError(
                f"Expected {table.num_steps} steps in the traces table of {directory.path}, "
                f"found {len(values_S)}. Hint: collect or extract the traces again."
            )
    return StepFacts(tokens_S, confidence_S)


def read_confidences(directory: TraceDirectory, table: TraceTable) -> Floats:
    """Return the mean token confidence so far at the steps of a split's traces [S].

    Raises:
        InputError: it is not known of every step.
    """
    confidence_S = read_step_facts(directory, table).confidence_S
    if confidence_S is None or not np.isfinite(confidence_S).all():
        raise InputError(
            f"Expected the token confidence at every step of {directory.path}, found none at "
            "some. Hint: collect the traces with --confidence true, or use a scorer without it."
        )
    return confidence_S


def rows_of_traces(
    directory: TraceDirectory, table: TraceTable, columns: tuple[str, ...]
) -> Iterator[tuple[Ints, pa.Table]]:
    """Yield, part by part, the numbers of a split's traces and some of their columns.

    Together they come in the order of the table.
    """
    for part in np.unique(table.shard_N).tolist():
        mine = np.flatnonzero(table.shard_N == part)
        rows: Any = directory.part(part, (*columns, "row_start", "num_steps"))
        with_steps = np.flatnonzero(rows["num_steps"].to_numpy() > 0)
        start = rows["row_start"].to_numpy()[with_steps]
        order = np.argsort(start)
        place = np.searchsorted(start[order], table.row_start_N[mine])
        yield mine, rows.take(with_steps[order][place])
