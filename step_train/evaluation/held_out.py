"""How good step scores are on held-out questions: by progress, and as trace scores.

Axes: N traces, S steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from step_eval.statistics import COVERAGE, DRAWS, INTERVAL_KIND, Floats, within_question_aurocs
from step_infer.scorer.aggregate import AGGREGATORS
from step_train.data.trace_table import TENTHS, TraceTable
from step_train.evaluation.metrics import (
    pair_ranking,
    pooled_auroc,
    reliability,
    within_question,
)
from step_train.evaluation.slice_metrics import slice_metrics

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
"""Parts of a trace's steps after which its trace score is judged."""

CHOICE_FRACTIONS = (0.25, 0.5, 0.75)
"""Where the trace aggregator is chosen: pruning happens on the way, not at the end."""

DEFINITIONS = {
    "questions": "held out: no trace of them was used for fitting or selection",
    "auroc": "over all samples of all questions",
    "within_question": "mean of the questions' own AUROCs, each question with right and wrong "
    "samples counts once",
    "each_question": "mean of the questions' own figures, over the questions with right and wrong "
    "samples",
    "intervals": f"{100 * COVERAGE:.0f} % bootstrap over questions, {INTERVAL_KIND}",
    "ece": "expected calibration error, 15 bins of equal width",
    "progress": "step number divided by the number of the trace's steps, in tenths; known only "
    "once a trace has ended",
    "pairs": "how often the right one of two traces of one question has the higher score, each "
    "pair counts once",
    "trace_score": "aggregate of the first 25/50/75/100 % of a trace's step scores, rounded up",
}
"""What the numbers mean; travels with them."""


def evaluate(
    table: TraceTable, score_S: Floats, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Judge the step scores of a split's traces.

    Args:
        table: the split's traces.
        score_S: a step score in [0, 1] for each of their steps [S], in the table's order.
        draws: bootstrap draws of each interval.
        seed: the bootstrap's seed.

    Returns:
        JSON-ready data: "data" (counts), "steps" (`slice_metrics` of all steps), "by_progress" and
        "by_step" (the same for each tenth of a trace, and for ranges of step numbers),
        "reliability" (the calibration curve), "trace_score" (by aggregator and percentage) and
        "definitions". What these traces do not show is None.
    """
    options: dict[str, Any] = {"draws": draws, "seed": seed}
    return {
        "data": table.summary(),
        **by_part(table, lambda mask_S: _slice(mask_S, table, score_S, options)),
        "reliability": reliability(table.label_S, score_S),
        "trace_score": {
            name: {
                f"{fraction:.0%}": trace_metrics(table, trace_score_N, options)
                for fraction, trace_score_N in zip(
                    FRACTIONS, trace_scores(table, score_S, name), strict=True
                )
            }
            for name in AGGREGATORS
        },
        "definitions": DEFINITIONS,
    }


def step_ranges(most_steps: int) -> list[tuple[int, int]]:
    """Return ranges of step numbers from 1, each twice as long as the one before it: 1, 2, 3-4."""
    ranges = [(1, 1)]
    while ranges[-1][1] < most_steps:
        last = ranges[-1][1]
        ranges.append((last + 1, min(2 * last, most_steps)))
    return ranges


def trace_metrics(
    table: TraceTable, trace_score_N: Floats, options: dict[str, Any]
) -> dict[str, Any]:
    """Return AUROC over all traces and within question, and the ranking of pairs, of scores [N]."""
    samples = (table.correct_N, trace_score_N, table.question_N)
    return {
        "auroc": pooled_auroc(*samples, **options),
        "within_question": within_question(*samples, **options),
        "pairs": pair_ranking(*samples, **options),
    }


def trace_scores(
    table: TraceTable,
    score_S: Floats,
    aggregator: str,
    fractions: Sequence[float] = FRACTIONS,
) -> list[npt.NDArray[np.float64]]:
    """Return, for each fraction, every trace's score [N] over that part of its steps."""
    aggregate = AGGREGATORS[aggregator]
    scores = score_S.astype(np.float64).tolist()
    ends = [np.ceil(fraction * table.steps_N).astype(np.int64) for fraction in fractions]
    starts = table.first_step_N.tolist()
    return [
        np.array(
            [
                aggregate(scores[start : start + count])
                for start, count in zip(starts, counts.tolist(), strict=True)
            ]
        )
        for counts in ends
    ]


def choose_aggregator(table: TraceTable, score_S: Floats) -> tuple[str, dict[str, float | None]]:
    """Choose the trace aggregator by within-question AUROC at 25, 50 and 75 % of the traces.

    Args:
        table: traces of the validation questions; never the test questions.
        score_S: their step scores [S].

    Returns:
        The aggregator's name ("mean" where no question can tell) and each one's mean AUROC.
    """
    found: dict[str, float | None] = {}
    for name in AGGREGATORS:
        within_FQ = [
            within_question_aurocs(table.correct_N, trace_score_N, table.question_N)
            for trace_score_N in trace_scores(table, score_S, name, CHOICE_FRACTIONS)
        ]
        # The same traces at each of them: all questions have a value, or none.
        found[name] = float(np.mean(within_FQ)) if len(within_FQ[0]) else None
    ranked = {name: value for name, value in found.items() if value is not None}
    return (max(ranked, key=lambda name: ranked[name]) if ranked else "mean"), found


def by_part(
    table: TraceTable, judge: Callable[[npt.NDArray[np.bool_]], dict[str, Any]]
) -> dict[str, Any]:
    """Judge all steps ("steps"), each tenth ("by_progress") and ranges of steps ("by_step").

    Args:
        table: the split's traces.
        judge: returns the figures of the steps that a mask [S] chooses.
    """
    return {
        "steps": judge(np.ones(table.num_steps, dtype=bool)),
        "by_progress": [
            {"from": tenth / TENTHS, "to": (tenth + 1) / TENTHS} | judge(table.tenth_S == tenth)
            for tenth in range(TENTHS)
        ],
        "by_step": [
            {"first": first, "last": last} | judge(table.steps_between(first, last))
            for first, last in step_ranges(int(table.steps_N.max()))
        ],
    }


def _slice(
    mask_S: npt.NDArray[np.bool_], table: TraceTable, score_S: Floats, options: dict[str, Any]
) -> dict[str, Any]:
    return slice_metrics(
        table.label_S[mask_S], score_S[mask_S], table.question_S[mask_S], **options
    )
