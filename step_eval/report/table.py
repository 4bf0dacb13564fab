"""The comparison on the terminal."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from step_eval.report.words import (
    HEADINGS,
    branch_rows,
    change,
    decided_rows,
    number,
    number_range,
    replica_words,
    stop_rule_rows,
    unfinished,
    vote_words,
)
from step_eval.statistics import FEW_QUESTIONS

_MOST_IDS = 8
_UNBOUNDED = 10_000  # columns


def print_results(results: dict[str, Any], console: Console) -> None:
    """Print a run's results: figures of each method, differences, what got worse."""
    comparisons = list(results["comparisons"].values())
    for table in _tables(results, console):
        console.print(table)
    if comparisons:
        console.print(
            '"not shown": the interval of the difference holds zero, or there is one question '
            "alone, so these questions show no difference.",
            style="dim",
        )
    if any(method["questions"] < FEW_QUESTIONS for method in results["methods"].values()):
        console.print(
            f"Fewer than {FEW_QUESTIONS} questions: the intervals are rough, and may be too narrow."
        )
    if results["replicas"]:
        console.print(f"Replicas: {replica_words(results['replicas'])}.", highlight=False)
    _print_counts(results, console)
    _print_decided(results, console)
    for row in branch_rows(results):
        console.print(row, highlight=False)


def tables_that_fit(
    console: Console, names: Sequence[str], make: Callable[[Sequence[str]], Table]
) -> list[Table]:
    """Return a table of all figures, or several of some figures each, so that each fits.

    Args:
        console: whose width counts.
        names: of the figures, in their order.
        make: gives the table of some of them.
    """
    tables: list[Table] = []
    for count in (len(names), 4, 3, 2):
        tables = [make(names[i : i + count]) for i in range(0, len(names), count)]
        if all(_fits(table, console) for table in tables):
            break
    return tables


def _fits(table: Table, console: Console) -> bool:
    wide = console.options.update(max_width=_UNBOUNDED)
    return console.measure(table, options=wide).maximum <= console.width


def _tables(results: dict[str, Any], console: Console) -> list[Table]:
    """Return the figures in one table, or, where that is too wide, with a row for each method."""
    table = _by_figure(results)
    if _fits(table, console) or len(results["methods"]) < 3:
        return [table]
    kinds = [_by_method, *([_differences] if results["comparisons"] else [])]
    names = list(HEADINGS)
    return [
        table for kind in kinds for table in tables_that_fit(console, names, partial(kind, results))
    ]


_TITLE = "Means per question, with 95 % intervals"


def _by_figure(results: dict[str, Any]) -> Table:
    """Return the table with a row for each figure, and a column for each method and difference."""
    methods = results["methods"]
    table = Table(title=_TITLE, title_justify="left")
    table.add_column("")
    for method in methods.values():
        table.add_column(
            f"{method['label']}\n[dim]vote {vote_words(method)}[/dim]", justify="right"
        )
    for comparison in results["comparisons"].values():
        table.add_column(_against(results, comparison), justify="right")
        table.add_column("", justify="left")
    for metric, heading in HEADINGS.items():
        cells = [heading, *(_figure(metric, method) for method in methods.values())]
        for comparison in results["comparisons"].values():
            cells += _difference(metric, comparison)
        table.add_row(*cells)
    return table


def _by_method(results: dict[str, Any], figures: Sequence[str]) -> Table:
    """Return the table with a row for each method."""
    table = Table(title=_TITLE, title_justify="left")
    table.add_column("Method\n[dim]vote[/dim]")
    for name in figures:
        table.add_column(HEADINGS[name].replace(" ", "\n", 1), justify="right")
    for method in results["methods"].values():
        name = f"{method['label']}\n[dim]{vote_words(method)}[/dim]"
        table.add_row(name, *(_figure(metric, method) for metric in figures))
    return table


def _differences(results: dict[str, Any], figures: Sequence[str]) -> Table:
    """Return the table of differences with a row for each method."""
    base = results["methods"][results["baseline"]]["label"]
    table = Table(title=f"Differences to {base}, with 95 % intervals", title_justify="left")
    table.add_column("")
    for name in figures:
        table.add_column(HEADINGS[name].replace(" ", "\n", 1), justify="right")
    for comparison in results["comparisons"].values():
        cells = ["\n".join(_difference(metric, comparison)) for metric in figures]
        label = results["methods"][comparison["method"]]["label"]
        name = "\n".join([label, *(f"[dim]{w}[/dim]" for w in _questions(comparison).split(", "))])
        table.add_row(name, *cells)
    return table


def _against(results: dict[str, Any], comparison: dict[str, Any]) -> str:
    label, base = (results["methods"][comparison[key]]["label"] for key in ("method", "baseline"))
    return f"{label} against {base}\n[dim]on {_questions(comparison)}[/dim]"


def _questions(comparison: dict[str, Any]) -> str:
    """Return on what two methods are compared: "6 questions", or "6 questions, 12 pairs"."""
    count, pairs = comparison["questions"], comparison["pairs"]
    words = f"{count} question{'s' if count > 1 else ''}"
    return words if pairs == count else f"{words}, {pairs} pairs"


def _figure(metric: str, method: dict[str, Any]) -> str:
    found = method["metrics"][metric]
    ends = number_range(metric, found["low"], found["high"])
    return f"{number(metric, found['value'])}\n[dim]{ends}[/dim]"


def _difference(metric: str, comparison: dict[str, Any]) -> list[str]:
    """Return a difference over its interval, and what it shows."""
    difference = comparison["differences"][metric]
    value, ends = change(metric, difference)
    verdict = difference["verdict"]
    colour = {"better": "green", "worse": "red"}.get(verdict, "dim")
    shown = verdict.replace("no difference shown", "not shown")
    return [f"{value}\n[dim]{ends}[/dim]", f"[{colour}]{shown}[/{colour}]"]


def _print_counts(results: dict[str, Any], console: Console) -> None:
    for line in unfinished(results):
        console.print(f"{line} answered so far.")
    for method in results["methods"].values():
        if method["vote"] != method["vote_wanted"]:
            console.print(
                f"{method['label']}: nothing was recorded for the vote {method['vote_wanted']}; "
                "each trace has one vote."
            )
        if method["ungradable"]:
            console.print(
                f"{method['label']}: {method['ungradable']} answers could not be compared with "
                "the truth and count as wrong."
            )
    for comparison in results["comparisons"].values():
        label = results["methods"][comparison["method"]]["label"]
        base = results["methods"][comparison["baseline"]]["label"]
        lost = [row["question_id"] for row in comparison["lost"]]
        console.print(
            f"Right under {base} and wrong under {label}: {len(lost)}{_some(lost)}; the other way "
            f"round: {len(comparison['gained'])}."
        )
        totals = results["methods"][comparison["method"]]["stop_totals"]
        if totals["known"]:
            console.print(
                f"Of {totals['pruned']:,} pruned traces, {totals['known']:,} have a twin under "
                f"{base} with the same start: {totals['would_be_right']:,} of those would have "
                "been right."
            )


def _print_decided(results: dict[str, Any], console: Console) -> None:
    for row in decided_rows(results):
        console.print(
            f"{row['label']} against {row['base']}, on {row['questions']} questions: "
            f"{row['changed']}; {row['seconds']}; {row['tokens']}; {row['accuracy']}.",
            highlight=False,
        )
    for row in stop_rule_rows(results):
        console.print(
            f"Had {row['label']} stopped when {row['rule']}, on its own records: {row['changed']}; "
            f"{row['seconds']}; {row['accuracy']}.",
            highlight=False,
        )


def _some(names: list[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - _MOST_IDS} more" if len(names) > _MOST_IDS else ""
    return f" ({', '.join(names[:_MOST_IDS])}{more})"
