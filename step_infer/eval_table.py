"""The comparison on the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from step_infer.eval_format import HEADINGS, change, number, number_range
from step_infer.eval_statistics import FEW_QUESTIONS

_MOST_IDS = 8


def print_results(results: dict[str, Any], console: Console) -> None:
    """Print a run's results: figures of each method, differences, what got worse."""
    methods = results["methods"]
    comparisons = list(results["comparisons"].values())
    table = Table(title="Means per question, with 95 % intervals", title_justify="left")
    table.add_column("")
    for method in methods.values():
        table.add_column(f"{method['label']}\n[dim]vote {method['vote']}[/dim]", justify="right")
    for comparison in comparisons:
        label, base = (methods[comparison[key]]["label"] for key in ("method", "baseline"))
        table.add_column(f"{label} against {base}", justify="right")
        table.add_column("", justify="left")
    for metric, heading in HEADINGS.items():
        cells = [heading]
        for method in methods.values():
            found = method["metrics"][metric]
            ends = number_range(metric, found["low"], found["high"])
            cells.append(f"{number(metric, found['value'])}\n[dim]{ends}[/dim]")
        for comparison in comparisons:
            difference = comparison["differences"][metric]
            value, ends = change(metric, difference)
            verdict = difference["verdict"]
            colour = {"better": "green", "worse": "red"}.get(verdict, "dim")
            cells.append(f"{value}\n[dim]{ends}[/dim]")
            shown = verdict.replace("no difference shown", "not shown")
            cells.append(f"[{colour}]{shown}[/{colour}]")
        table.add_row(*cells)
    console.print(table)
    if comparisons:
        console.print(
            '"not shown": the interval of the difference holds zero, so these questions show no '
            "difference.",
            style="dim",
        )
    if any(method["questions"] < FEW_QUESTIONS for method in methods.values()):
        console.print(
            f"Fewer than {FEW_QUESTIONS} questions: the intervals are rough, and may be too narrow."
        )
    _print_counts(results, console)


def _print_counts(results: dict[str, Any], console: Console) -> None:
    asked = results["questions"]["asked"] * results["questions"]["repeats"]
    for name, method in results["methods"].items():
        done = len(results["latency"][name])
        if done < asked:
            console.print(f"{method['label']}: {done} of {asked} questions answered so far.")
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
        fates = results["methods"][comparison["method"]]["fates"]
        if fates["known"]:
            console.print(
                f"Of {fates['pruned']:,} pruned traces, {fates['known']:,} have a twin under "
                f"{base} with the same start: {fates['would_be_right']:,} of those would have been "
                "right."
            )


def _some(names: list[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - _MOST_IDS} more" if len(names) > _MOST_IDS else ""
    return f" ({', '.join(names[:_MOST_IDS])}{more})"
