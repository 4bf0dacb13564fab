"""An evaluation, a training's outcome and a scorer card as text for people."""

import itertools
from typing import Any

from rich.console import Console
from rich.table import Table

from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.card import ScorerCard
from step_train.evaluation.acceptance import ranks_above_chance
from step_train.run_directory import IMPORTED


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


NOT_EARNED = (
    "this scorer has not earned its place: its interval of within-question AUROC at half of the "
    "trace is not above 0.5"
)
"""Said of a scorer that was exported by force."""


def print_card(card: ScorerCard, source: str, console: Console) -> None:
    """Print a card: what the scorer is, for which model, how trained, how good."""
    facts = _facts(f"Scorer card of {source}")
    facts.add_row("base model", card.base_model)
    facts.add_row("model config hash", card.model_config_hash)
    facts.add_row("tokenizer hash", card.tokenizer_hash)
    facts.add_row("reads", f"layer {card.layer}, {card.norm}, H = {card.hidden_size}")
    facts.add_row("network", _network(card))
    facts.add_row("boundary", _boundary(card.boundary))
    term = card.confidence_term
    facts.add_row(
        "token confidence",
        "not read"
        if term is None
        else f"{term.weight:+.3f} on the logit for each nat above {term.mean:.2f}",
    )
    facts.add_row("trace score", f"{card.aggregator} of the step scores")
    for label, value in _training(card.training):
        facts.add_row(label, value)
    facts.add_row("calibration", _plain(card.calibration) if card.calibration else "none fitted")
    facts.add_row("earned its place", _earned(card))
    facts.add_row("made with", ", ".join(f"{k} {v}" for k, v in card.versions.items()))
    console.print(facts)
    if "data" in card.metrics:
        print_metrics(card.metrics, card.aggregator, console)
    elif IMPORTED in card.training:
        console.print("No held-out metrics: imported, never evaluated here.")
    else:
        console.print("No held-out metrics: not the best checkpoint of a complete run.")


def _network(card: ScorerCard) -> str:
    sizes = [card.hidden_size, *[card.width] * card.depth, 1]
    return ", ReLU, ".join(f"Linear({a}, {b})" for a, b in itertools.pairwise(sizes))


def _earned(card: ScorerCard) -> str:
    if IMPORTED in card.training:
        return "not known: imported, never evaluated here"
    if ranks_above_chance(card.metrics, card.aggregator, force=True):
        return "yes: within-question AUROC at half of the trace lies above 0.5"
    return f"NO: {NOT_EARNED}"


def print_metrics(metrics: dict[str, Any], aggregator: str, console: Console) -> None:
    """Print held-out metrics: of steps by trace progress, and of trace scores."""
    data, steps = metrics["data"], metrics["steps"]
    console.print(
        f"Test: {data['questions']} questions, {data['traces']} traces "
        f"({data['right_traces']} right), {data['steps']} steps; "
        + ", ".join(
            f"{name} {interval_text(steps[name])}"
            for name in ("auprc", "f1", "accuracy", "brier", "ece")
        )
    )
    table = Table(title="AUROC (95 % interval)", title_justify="left")
    table.add_column("scores of", no_wrap=True)
    for header in ("all questions", "within question", "n*"):
        table.add_column(header, justify="right", no_wrap=True)
    _row(table, "all steps", steps)
    for part in metrics["by_progress"]:
        _row(table, f"steps, {part['from']:.0%} to {part['to']:.0%}", part)
    for percent, entry in metrics["trace_score"][aggregator].items():
        _row(table, f"traces, {aggregator} at {percent}", entry)
    console.print(table)
    console.print("* questions with right and wrong samples; within question, each counts once")
    pairs = metrics["trace_score"][aggregator]
    console.print(
        "Right one of two traces of a question ranked first: "
        + ", ".join(f"{at} {interval_text(entry['pairs'])}" for at, entry in pairs.items())
    )


def _row(table: Table, label: str, entry: dict[str, Any]) -> None:
    within = entry["within_question"]
    table.add_row(
        label, interval_text(entry["auroc"]), interval_text(within), str(within["questions"])
    )


def interval_text(entry: dict[str, Any], signed: bool = False) -> str:
    """Return a figure with its interval, as far as there are any; `signed` for differences."""
    if entry["value"] is None:
        return "-"
    sign, between = ("+", " to ") if signed else ("", "-")
    text = f"{entry['value']:{sign}.3f}"
    if entry["low"] is None:
        return text
    return f"{text} ({entry['low']:{sign}.3f}{between}{entry['high']:{sign}.3f})"


def _facts(title: str) -> Table:
    table = Table("field", "value", title=title, show_header=False, title_justify="left")
    table.columns[1].overflow = "fold"
    return table


def _boundary(boundary: dict[str, Any]) -> str:
    rule = BoundaryRule.from_dict(boundary)
    if rule.stride:
        text = f"every {rule.stride} tokens"
    else:
        count = len(rule.token_ids.union(*(ids for s, ids in rule.line_ends.items() if s)))
        pattern = "" if rule.pattern is None else f" {rule.pattern!r}"
        text = f"{rule.kind}{pattern}, {count} token ids"
    return f"{text}, thinking ends at {rule.think_end}"


def _training(training: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in training.items():
        if name == "splits":
            rows += [(f"{split} split", _plain(counts)) for split, counts in value.items()]
        elif value is not None:
            rows.append((name.replace("_", " "), _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_plain(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
