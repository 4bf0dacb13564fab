"""What a scorer has to beat: cheap scores of the same steps, judged in the same way.

Axes: N traces, S steps, Q questions.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from step_eval.statistics import DRAWS, Bools, Floats, auroc_by_question
from step_train.data.trace_table import TraceTable
from step_train.evaluation.held_out import FRACTIONS, by_part, trace_metrics, trace_scores
from step_train.evaluation.metrics import mean_figure, pooled_auroc, within_question
from step_train.evaluation.trace_facts import StepFacts

LABELS = {
    "length": "trace length so far",
    "step": "step number",
    "confidence": "token confidence so far",
    "question": "question only",
    "shuffled": "shuffled labels",
    "logistic": "logistic regression",
}
"""Baselines by name, as people read them."""

DEFINITIONS = {
    "length": "minus the tokens generated so far: a short trace is taken to be right",
    "step": "minus the number of the step",
    "confidence": "mean token confidence from the first token to the boundary (DeepConf)",
    "question": "a probe on the prompt's last hidden state: the same for all traces of a question",
    "shuffled": "the scorer's own recipe, trained on labels shuffled among the traces, several "
    "times: what it gets by chance, on either side of 0.5; value is the mean of the shuffles, "
    "deviation that of their values, low and high the widest of their intervals",
    "logistic": "logistic regression on the same states, each dimension standardised",
    "gain": "the scorer's within-question AUROC minus the baseline's, paired by question",
    "length_note": "at a given part of a trace, its length so far tells how long it will be, which "
    "nobody knows of a running trace: by_step shows what is known in time",
}


@dataclass(frozen=True)
class Baseline:
    """A score for each step, or why there is none."""

    name: str
    """One of `LABELS`."""
    score_S: Floats | None
    """Higher means more likely right [S]; any scale."""
    repeats: tuple[Floats, ...] = ()
    """The same of further runs that differ by chance; figures are the mean of all runs."""
    aggregator: str = "last"
    """How its step scores make a trace score."""
    not_computed: str = ""
    """Why there are no scores."""


def known_baselines(table: TraceTable, facts: StepFacts) -> list[Baseline]:
    """Return the baselines that need no training: length, step number, token confidence."""
    if facts.confidence_S is None:
        confidence = Baseline("confidence", None, not_computed="not recorded with these traces")
    else:
        confidence = Baseline("confidence", facts.confidence_S)
    return [
        Baseline("length", -facts.tokens_S.astype(np.float64)),
        Baseline("step", -table.step_S.astype(np.float64)),
        confidence,
    ]


def compare(
    table: TraceTable,
    score_S: Floats,
    aggregator: str,
    baselines: Sequence[Baseline],
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge baselines as `held_out.evaluate` judges a scorer, and the scorer's gain over each.

    Args:
        table: the split's traces.
        score_S: the scorer's step scores.
        aggregator: the scorer's trace aggregator.
        baselines: scores of the same steps.
        draws: bootstrap draws of each interval.
        seed: the bootstrap's seed.

    Returns:
        By name "label" and, where it was computed, AUROC of "steps", "by_progress" and "by_step",
        "trace_score" by percentage and the scorer's "gain" at each; else "not_computed", the
        reason. "definitions" says what the names mean.
    """
    options: dict[str, Any] = {"draws": draws, "seed": seed}
    scorer = trace_scores(table, score_S, aggregator)
    found: dict[str, Any] = {"definitions": DEFINITIONS}
    for baseline in baselines:
        entry: dict[str, Any] = {"label": LABELS[baseline.name]}
        if baseline.score_S is None:
            found[baseline.name] = entry | {"not_computed": baseline.not_computed}
            continue
        runs = [
            _judge(table, values_S, baseline.aggregator, scorer, options)
            for values_S in (baseline.score_S, *baseline.repeats)
        ]
        if baseline.repeats:
            entry |= {"label": f"{entry['label']}, mean of {len(runs)}", "runs": len(runs)}
        found[baseline.name] = entry | mean_of_runs(runs)
    return found


def _judge(
    table: TraceTable,
    values_S: Floats,
    aggregator: str,
    scorer: Sequence[Floats],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Judge one run of a baseline, and the gain of the scorer's trace scores over it."""
    judge = functools.partial(_auroc, table=table, values_S=values_S, options=options)
    whole = trace_scores(table, values_S, aggregator)
    return {
        **by_part(table, judge),
        "trace_score": {
            f"{fraction:.0%}": trace_metrics(table, score_N, options)
            for fraction, score_N in zip(FRACTIONS, whole, strict=True)
        },
        "gain": {
            f"{fraction:.0%}": _gain(table, scorer_N, score_N, options)
            for fraction, scorer_N, score_N in zip(FRACTIONS, scorer, whole, strict=True)
        },
    }


def mean_of_runs(runs: Sequence[Any]) -> Any:
    """Return figures of one shape with their mean over runs for "value".

    "deviation" is added, the standard deviation of the runs' values, and the interval is the widest
    of the runs'. One run is returned as it is.
    """
    first = runs[0]
    if len(runs) == 1:
        return first
    if isinstance(first, list):
        return [mean_of_runs(entries) for entries in zip(*runs, strict=True)]
    if not isinstance(first, dict):
        return first
    if first.get("value") is None and "value" in first:
        return first
    if "value" in first:
        values = [run["value"] for run in runs]
        merged = first | {
            "value": float(np.mean(values)),
            "deviation": float(np.std(values, ddof=1)),
        }
        if first["low"] is not None:
            ends = {
                "low": min(run["low"] for run in runs),
                "high": max(run["high"] for run in runs),
            }
            merged |= ends
        return merged
    return {name: mean_of_runs([run[name] for run in runs]) for name in first}


def _auroc(
    mask_S: Bools, table: TraceTable, values_S: Floats, options: dict[str, Any]
) -> dict[str, Any]:
    samples = (table.label_S[mask_S], values_S[mask_S], table.question_S[mask_S])
    return {
        "samples": int(mask_S.sum()),
        "auroc": pooled_auroc(*samples, **options),
        "within_question": within_question(*samples, **options),
    }


def _gain(
    table: TraceTable, scorer_N: Floats, baseline_N: Floats, options: dict[str, Any]
) -> dict[str, Any]:
    count = len(table.questions)
    scorer_Q, pairs_Q = auroc_by_question(table.correct_N, scorer_N, table.question_N, count)
    baseline_Q, _ = auroc_by_question(table.correct_N, baseline_N, table.question_N, count)
    return mean_figure((scorer_Q - baseline_Q)[pairs_Q > 0], **options)
