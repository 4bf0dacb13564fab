"""What a sweep's fits say: paired differences to the paper's recipe, with intervals.

Axes: Q questions, K seeds, F fractions of a trace, D bootstrap draws.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from step_eval.statistics import (
    COVERAGE,
    DRAWS,
    INTERVAL_KIND,
    Floats,
    interval,
    question_draws,
)
from step_infer.errors import InputError
from step_train.evaluation.held_out import CHOICE_FRACTIONS
from step_train.fit.sweep_config import PAPER, Changes

Scores = dict[str, Any]
"""Outcome of one fit (`step_train.fit.sweep.fit_scores`)."""

DEFINITIONS = {
    "value": "AUROC within question of the trace score (each fit's own aggregator, chosen on its "
    "validation questions), mean over 25, 50 and 75 % of the steps, questions and seeds",
    "val": "validation questions, other ones for each seed: the winner is chosen by these alone",
    "test": "test questions, the same for all fits: reported, and used for nothing else",
    "difference": "to the paper's recipe with the same seed on the same question",
    "intervals": f"{100 * COVERAGE:.0f} % bootstrap over questions and seeds, {INTERVAL_KIND}; the "
    "variants are not corrected for their number",
}
"""What the numbers mean; travels with them."""


def compare(
    found: dict[str, list[Scores]],
    settings: dict[str, Changes],
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare variants with the paper's recipe.

    Args:
        found: each variant's outcomes, one a seed, in the same order of seeds.
        settings: what each variant changes.
        draws: bootstrap draws of each interval.
        seed: the bootstrap's seed.

    Returns:
        "winner" (the best on validation questions), "variants" (for each: its settings, "val",
        "test", the differences "val_difference" and "test_difference" with "includes_zero", and
        the values at 25, 50 and 75 % on test questions) and "definitions".
    """
    rows = []
    for name, outcomes in found.items():
        row: dict[str, Any] = {"name": name, "settings": settings[name]}
        for split in ("val", "test"):
            own = _values(outcomes, split)
            row[split] = _estimate(own.mean(axis=2), draws, seed)
            if name != PAPER:
                _require_same_questions(name, outcomes, found[PAPER], split)
                difference = (own - _values(found[PAPER], split)).mean(axis=2)
                row[f"{split}_difference"] = _difference(difference, draws, seed)
            else:
                row[f"{split}_difference"] = dict.fromkeys(
                    ("value", "low", "high", "includes_zero")
                )
        at_F = np.nanmean(_values(outcomes, "test"), axis=(0, 1))
        row["test_at"] = {f"{f:.0%}": float(v) for f, v in zip(CHOICE_FRACTIONS, at_F, strict=True)}
        row["epochs"] = float(np.mean([outcome["epochs"] for outcome in outcomes]))
        row["aggregators"] = ", ".join(outcome["aggregator"] for outcome in outcomes)
        rows.append(row)
    winner = max(rows, key=lambda row: row["val"]["value"])["name"]
    return {"winner": winner, "variants": rows, "definitions": DEFINITIONS}


def gain(found: dict[str, list[Scores]], name: str, split: str) -> float:
    """Return a variant's mean paired difference to the paper's recipe."""
    difference = _values(found[name], split) - _values(found[PAPER], split)
    return float(np.nanmean(difference.mean(axis=2)))


def _values(outcomes: list[Scores], split: str) -> Floats:
    """Return AUROCs [K, Q, F] over the union of questions; NaN where a seed has not the question.

    Raises:
        InputError: no question has right and wrong traces.
    """
    names = sorted({question for outcome in outcomes for question in outcome[split]})
    if not names:
        raise InputError(
            f"Expected {split} questions with right and wrong traces, found none. "
            "Hint: collect more questions, or more traces a question."
        )
    nothing = [np.nan] * len(CHOICE_FRACTIONS)
    return np.array([[o[split].get(question, nothing) for question in names] for o in outcomes])


def _require_same_questions(
    name: str, outcomes: list[Scores], reference: list[Scores], split: str
) -> None:
    for own, other in zip(outcomes, reference, strict=True):
        if own[split].keys() != other[split].keys():
            raise InputError(
                f"Expected the {split} questions of variant {PAPER!r} in variant {name!r}, found "
                "others. Hint: its traces must be of the same questions."
            )


def _estimate(values_KQ: Floats, draws: int, seed: int) -> dict[str, Any]:
    """Return the mean over all that is there, with its interval over questions and seeds."""
    there = np.isfinite(values_KQ)
    filled = np.where(there, values_KQ, 0.0)
    num_seeds, num_questions = values_KQ.shape
    question_DQ = question_draws(num_questions, draws, seed).astype(np.float64)
    seed_DK = question_draws(num_seeds, draws, seed + 1).astype(np.float64)
    total_D = np.einsum("dk,kq,dq->d", seed_DK, filled, question_DQ, optimize=True)
    count_D = np.einsum("dk,kq,dq->d", seed_DK, there * 1.0, question_DQ, optimize=True)
    means_D = total_D[count_D > 0] / count_D[count_D > 0]
    return asdict(interval(filled.sum() / there.sum(), means_D, num_questions))


def _difference(values_KQ: Floats, draws: int, seed: int) -> dict[str, Any]:
    found = _estimate(values_KQ, draws, seed)
    shown = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
    return found | {"includes_zero": not shown}


def print_sweep(result: dict[str, Any], console: Console) -> None:
    """Print the comparison as a table, best on validation questions first."""
    counts = result["data"]["questions"]
    console.print(
        f"AUROC within question of the trace score, mean of 25/50/75 % of the steps; "
        f"{result['data']['seeds']} seeds; {counts['val']} validation and {counts['test']} test "
        "questions"
    )
    table = Table(
        "variant", title="Against the paper's recipe (95 % interval)", title_justify="left"
    )
    for header in ("validation", "difference", "test", "difference", "on test"):
        table.add_column(header, justify="right")
    for row in sorted(result["variants"], key=lambda row: -row["val"]["value"]):
        difference = row["test_difference"]
        verdict = "-"
        if difference["value"] is not None:
            better = "better" if difference["value"] > 0 else "worse"
            verdict = "includes zero" if difference["includes_zero"] else better
        table.add_row(
            row["name"] + (" (winner)" if row["name"] == result["winner"] else ""),
            f"{row['val']['value']:.4f}",
            _signed(row["val_difference"]),
            f"{row['test']['value']:.4f}",
            _signed(difference),
            verdict,
        )
    console.print(table)
    console.print(
        f"Winner, chosen on validation questions alone: {result['winner']}. "
        "Intervals are not corrected for the number of variants."
    )


def _signed(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return "-"
    if entry["low"] is None:
        return f"{entry['value']:+.4f}"
    return f"{entry['value']:+.4f} ({entry['low']:+.4f} to {entry['high']:+.4f})"
