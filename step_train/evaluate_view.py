"""An evaluation as text for people: baselines and votes; `card_view` has the scorer's own part."""

from typing import Any

from rich.console import Console
from rich.table import Table

from step_train.card_view import interval_text


def print_baselines(baselines: dict[str, Any], console: Console) -> None:
    """Print each baseline's within-question AUROC, and the scorer's gain over it half-way."""
    table = Table(title="Baselines, within question (95 % interval)", title_justify="left")
    table.add_column("traces ranked by")
    for header in ("AUROC at 50%", "at 100%", "scorer's gain at 50%"):
        table.add_column(header, justify="right", no_wrap=True)
    missing = []
    for name, entry in baselines.items():
        if name == "definitions":
            continue
        if "not_computed" in entry:
            missing.append(f"{entry['label']} ({entry['not_computed']})")
            continue
        at = entry["trace_score"]
        table.add_row(
            entry["label"],
            interval_text(at["50%"]["within_question"]),
            interval_text(at["100%"]["within_question"]),
            interval_text(entry["gain"]["50%"], signed=True),
        )
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
    table = Table(title="Right votes (95 % interval)", title_justify="left")
    for header in ("traces", *names, "n*"):
        table.add_column(header, justify="right", no_wrap=True)
    for voters, entry in by_traces.items():
        table.add_row(
            voters, *(interval_text(entry[name]) for name in names), str(entry["questions"])
        )
    console.print(table)
    console.print(f"* questions with so many traces; mean of {votes['draws']} draws of traces")
    for name, reason in votes["not_computed"].items():
        console.print(f"Not computed: vote by {name} ({reason})")
