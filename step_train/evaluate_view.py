"""An evaluation as text for people: baselines and votes; `card_view` has the scorer's own part."""

from typing import Any

from rich.console import Console
from rich.table import Table

from step_train.card_view import interval_text


def print_baselines(baselines: dict[str, Any], console: Console) -> None:
    """Print each baseline's within-question AUROC, and the scorer's gain over it half-way."""
    table = Table(title="Baselines half-way, within question (95 %)", title_justify="left")
    table.add_column("traces ranked by", no_wrap=True)
    for header in ("AUROC", "scorer's gain"):
        table.add_column(header, justify="right", no_wrap=True)
    missing = []
    for name, entry in baselines.items():
        if name == "definitions":
            continue
        if "not_computed" in entry:
            missing.append(f"{entry['label']} ({entry['not_computed']})")
            continue
        table.add_row(
            entry["label"],
            interval_text(entry["trace_score"]["50%"]["within_question"]),
            interval_text(entry["gain"]["50%"], signed=True),
        )
    if table.row_count:
        console.print(table)
    if missing:
        console.print(f"Not computed: {'; '.join(missing)}")


def print_votes(votes: dict[str, Any], console: Console) -> None:
    """Print how often a vote of N traces is right, by what weighs the votes."""
    by_traces = votes["by_traces"]
    if not by_traces:
        console.print("Votes: no question has 4 traces.")
        return
    names = [name for name in next(iter(by_traces.values())) if name != "questions"]
    table = Table(title="Right votes, % (95 % interval)", title_justify="left")
    for header in ("traces", *names, "n*"):
        table.add_column(header, justify="right", no_wrap=True)
    for voters, entry in by_traces.items():
        table.add_row(voters, *(_percent(entry[name]) for name in names), str(entry["questions"]))
    console.print(table)
    console.print(f"* questions with so many traces; mean of {votes['draws']} draws of traces")
    for name, reason in votes["not_computed"].items():
        console.print(f"Not computed: vote by {name} ({reason})")


def _percent(entry: dict[str, Any]) -> str:
    text = f"{entry['value']:.0%}".rstrip("%")
    if entry["low"] is None:
        return text
    return f"{text} ({100 * entry['low']:.0f}-{100 * entry['high']:.0f})"
