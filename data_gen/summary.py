"""What a traces directory holds, in numbers."""

from collections import defaultdict
from typing import Any

import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from data_gen.traces.directory import TraceDirectory
from data_gen.traces.groups import kept_vote
from step_infer.cli.progress import track

_COLUMNS = (
    "question_id",
    "trace_id",
    "ground_truth",
    "extracted_answer",
    "is_correct",
    "answer_group",
    "finish_reason",
    "num_steps",
)


def summarise(directory: TraceDirectory) -> dict[str, Any]:
    """Count and measure all traces of a directory, by the verdicts and groups that it keeps.

    Shares are over the traces, or questions, that have a ground truth; None where there is none.
    A trace without an answer, or whose answer could not be graded, is not right. Lengths are
    generated tokens; "wrong" ones are of traces graded wrong.

    Returns:
        JSON-ready numbers: `accuracy` (right traces), `graded_accuracy` (right among those graded
        right or wrong), `majority_accuracy` (questions whose majority vote is right),
        `any_accuracy` (questions with a right trace), counts, mean lengths and steps, seconds.
    """
    rows: list[dict[str, Any]] = []
    parts = range(directory.num_parts)
    for index in track(parts, len(parts), "parts summarised", delay_s=2):
        part = directory.part(index, (*_COLUMNS, "token_ids"))
        lengths = pc.list_value_length(part["token_ids"]).to_pylist()
        for row, length in zip(part.select(_COLUMNS).to_pylist(), lengths, strict=True):
            rows.append(row | {"tokens": length})
    by_question: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_question[row["question_id"]].append(row)
    known = [row for row in rows if row["ground_truth"] is not None]
    right = [row for row in known if row["is_correct"] is True]
    wrong = [row for row in known if row["is_correct"] is False]
    judged = [traces for traces in by_question.values() if traces[0]["ground_truth"] is not None]
    won = [_majority_is_right(traces) for traces in judged]
    tokens = sum(row["tokens"] for row in rows)
    seconds = directory.manifest.get("seconds", 0.0)
    return {
        "questions": len(by_question),
        "traces": len(rows),
        "accuracy": _share(len(right), len(known)),
        "graded_accuracy": _share(len(right), len(right) + len(wrong)),
        "majority_accuracy": _share(sum(won), len(won)),
        "any_accuracy": _share(
            sum(any(row["is_correct"] for row in traces) for traces in judged), len(judged)
        ),
        "right": len(right),
        "wrong": len(wrong),
        "no_answer": sum(row["extracted_answer"] is None for row in rows),
        "ungradable": sum(
            row["is_correct"] is None and row["extracted_answer"] is not None for row in known
        ),
        "cut_off": sum(row["finish_reason"] == "length" for row in rows),
        "mean_tokens": _mean([row["tokens"] for row in rows]),
        "mean_tokens_right": _mean([row["tokens"] for row in right]),
        "mean_tokens_wrong": _mean([row["tokens"] for row in wrong]),
        "boundaries_per_trace": _mean([row["num_steps"] for row in rows]),
        "feature_rows": directory.num_steps,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": _share(tokens, seconds),
    }


def _majority_is_right(traces: list[dict[str, Any]]) -> bool:
    outcome = kept_vote(sorted(traces, key=lambda row: row["trace_id"]))
    verdicts = {row["extracted_answer"]: row["is_correct"] for row in traces}
    return verdicts.get(outcome.answer) is True


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _mean(values: list[int]) -> float | None:
    return sum(values) / len(values) if values else None


_SHOWN = (
    ("questions", "questions", "{:,}"),
    ("traces", "traces", "{:,}"),
    ("accuracy", "right traces, of all with a ground truth", "{:.1%}"),
    ("graded_accuracy", "right traces, of those graded", "{:.1%}"),
    ("majority_accuracy", "questions right by majority vote", "{:.1%}"),
    ("any_accuracy", "questions with a right trace", "{:.1%}"),
    ("no_answer", "traces without an answer", "{:,}"),
    ("ungradable", "traces with an answer that cannot be graded", "{:,}"),
    ("cut_off", "traces cut off at their longest", "{:,}"),
    ("mean_tokens_right", "tokens a right trace", "{:,.0f}"),
    ("mean_tokens_wrong", "tokens a wrong trace", "{:,.0f}"),
    ("boundaries_per_trace", "step boundaries a trace", "{:.1f}"),
    ("feature_rows", "states stored", "{:,}"),
    ("seconds", "seconds of sampling", "{:,.1f}"),
    ("tokens_per_second", "tokens a second", "{:,.0f}"),
)


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Print a summary as a table, and a warning where most traces have no answer."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, label, form in _SHOWN:
        value = summary[name]
        table.add_row(label, "-" if value is None else form.format(value))
    console.print(table)
    if 2 * summary["no_answer"] > summary["traces"]:
        console.print(
            f"[bold]warning:[/] {summary['no_answer']:,} of {summary['traces']:,} traces have no "
            r"answer of the kind that was looked for. Hint: ask for it with --system (for one in "
            r"\boxed{}, by default), or look for another one with --answers.kind, such as auto.",
            highlight=False,
        )
