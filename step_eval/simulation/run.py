"""`step-eval simulate`: from settings to simulation.json, simulation.html and a table."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from step_eval.methods.registry import base_name
from step_eval.recorded.files import read_pool
from step_eval.report.table import tables_that_fit
from step_eval.report.words import number, number_range
from step_eval.simulation.check import check
from step_eval.simulation.config import SimulateConfig, method_label
from step_eval.simulation.drawn import draw_pool
from step_eval.simulation.report import (
    break_even_words,
    check_rows,
    check_words,
    shown_headings,
    write_simulation_report,
)
from step_eval.simulation.sweep import break_even, summaries, sweep
from step_eval.simulation.timing import read_timing
from step_infer.errors import InputError
from step_infer.storage.files import write_json
from step_infer.storage.run_directory import run_manifest

RESULTS_NAME = "simulation.json"
REPORT_NAME = "simulation.html"
_MOST_ROWS = 60
_DRAWN_QUESTIONS = 200


def simulate_all(config: SimulateConfig, console: Console | None = None) -> dict[str, Any]:
    """Simulate every configuration, write the results and the report, print the table.

    Raises:
        InputError: an input cannot be used.
    """
    console = console or Console(soft_wrap=True)
    if config.traces is not None:
        pool = read_pool(config.traces, config.scorer)
    else:
        count = _DRAWN_QUESTIONS if config.limit is None else config.limit
        size = max(config.num_traces) * config.repeats
        pool = draw_pool(config.drawn, count, size, config.seed)
    for method in config.method_names:
        config.stop_rule(method)  # refused before anything runs
    if "least-confident" in map(base_name, config.method_names) and not pool.confident:
        raise InputError(
            "Expected recorded traces with confidences (--traces) for the method least-confident, "
            f"found none in {pool.source}. Hint: leave the method out, or choose other --traces."
        )
    if config.check is not None and not pool.scored:
        raise InputError(
            f"Expected step scores with --traces for --check, found none in {pool.source}. "
            "Hint: give --scorer, or collect with step-collect --scorer."
        )
    if config.limit is not None:
        pool = dataclasses.replace(pool, questions=pool.questions[: config.limit])
    timing = read_timing(config.timing)
    checked = None if config.check is None else check(config.check, pool, timing)
    errors = Console(stderr=True, soft_wrap=True)

    def on_task(done: int, count: int) -> None:
        errors.print(f"simulated {done} of {count} scorers and lengths", highlight=False)

    cells = sweep(config, pool, timing, on_task)
    results = {
        **run_manifest(kind="step-eval simulate"),
        "source": pool.source,
        "mean_tokens": pool.mean_tokens,
        "questions": len(pool.questions),
        "settings": dataclasses.asdict(config),
        "timing": dataclasses.asdict(timing),
        "cells": summaries(cells, pool, config.repeats),
        "break_even": break_even(cells, pool, config.repeats),
        "check": checked,
    }
    out = Path(config.out)
    write_json(out / RESULTS_NAME, results)
    write_simulation_report(out / REPORT_NAME, results)
    _print(results, console)
    console.print(f"Report: {out / REPORT_NAME}", highlight=False)
    return results


def _print(results: dict[str, Any], console: Console) -> None:
    console.print(results["source"], highlight=False)
    shown = results["cells"][:_MOST_ROWS]
    headings = shown_headings(shown, results["timing"]["unit"])

    def make(figures: Sequence[str]) -> Table:
        return _means(shown, {name: headings[name] for name in figures})

    for table in tables_that_fit(console, list(headings), make):
        console.print(table)
    if len(shown) < len(results["cells"]):
        console.print(f"{len(results['cells']) - len(shown)} more rows in the report.")
    for row in results["break_even"]:
        words = break_even_words(row)
        console.print(
            f"Break-even AUROC, {row['num_traces']} traces{_length(row)}, "
            f"KV budget {row['kv_budget']:g}: {words['words']} (95 %: {words['range']})",
            highlight=False,
        )
    if results["check"] is not None:
        errors = Table(title="Predicted and measured", title_justify="left")
        for heading in ("Mean per question", "Method", "Predicted", "Measured", "Error"):
            errors.add_column(heading)
        for words in check_rows(results["check"]):
            errors.add_row(*words.values())
        console.print(errors)
        for sentence in check_words(results["check"]):
            console.print(sentence, highlight=False)


def _means(cells: Sequence[dict[str, Any]], headings: Mapping[str, str]) -> Table:
    """Return the table of some figures by their headings, a row for each cell of the sweep."""
    table = Table(title="Means per question, simulated", title_justify="left")
    for heading in ("Method", "Scorer", "N", "KV"):
        table.add_column(heading)
    for heading in headings.values():
        table.add_column(heading.replace(" ", "\n", 1), justify="right")
    for cell in cells:
        row = [method_label(cell["method"]), cell["label"], f"{cell['num_traces']}{_length(cell)}"]
        row.append(f"{cell['kv_budget']:g}")
        for name in headings:
            found = cell["figures"][name]
            value = number(name, found["value"])
            if name == "accuracy":
                value += f"\n[dim]{number_range(name, found['low'], found['high'])}[/dim]"
            row.append(value)
        table.add_row(*row)
    return table


def _length(row: dict[str, Any]) -> str:
    """Return the length scale as it is added to the number of traces; nothing for 1."""
    return "" if row["length_scale"] == 1 else f" x {row['length_scale']:g} length"
