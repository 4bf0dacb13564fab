"""All metrics of some steps, over all of them and within question, with intervals.

Most metrics come from sums over questions, so that a bootstrap over questions needs no sample
twice: a draw weighs the questions' sums. Axes: S samples, Q questions, D bootstrap draws, K sums of
a metric, B score bins.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from step_eval.statistics import DRAWS, Bools, Floats, Ints, interval, question_draws
from step_train.evaluation.metrics import (
    ECE_BINS,
    THRESHOLD,
    auprc_by_question,
    mean_figure,
    pooled_auroc,
    score_bins,
    within_question,
)

_AUPRC_BINS = 256
_PART = 1 << 18  # entries of draws x sums

SLICE_METRICS = ("auroc", "auprc", "f1", "accuracy", "brier", "ece")
"""What `slice_metrics` gives an interval for."""


def slice_metrics(
    label_S: Bools,
    score_S: Floats,
    question_S: Ints,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge scores of some steps, or of any other samples.

    Returns:
        "samples" (how many); each of `SLICE_METRICS` over all samples as {"value", "low", "high"};
        "within_question", the mean of the questions' own AUROCs (`metrics.within_question`); and
        "each_question" with the same mean of every other metric, over the questions that have both
        labels. A figure that these samples do not have is None: all but accuracy, Brier score and
        calibration error need both labels.
    """
    options: dict[str, Any] = {"draws": draws, "seed": seed}
    found: dict[str, Any] = {
        "samples": len(label_S),
        "auroc": pooled_auroc(label_S, score_S, question_S, **options),
        "within_question": within_question(label_S, score_S, question_S, **options),
        "each_question": {},
    }
    ids, question_S = np.unique(question_S, return_inverse=True)
    count = len(ids)
    right_Q = np.bincount(question_S, weights=label_S, minlength=count)
    both_Q = (right_Q > 0) & (right_Q < np.bincount(question_S, minlength=count))
    two_labels = bool(label_S.any() and not label_S.all())
    for name in SLICE_METRICS[1:]:
        sums_QK, combine = _SUMS[name](label_S, score_S, question_S, count)
        usable = len(label_S) > 0 and (two_labels or name in _ONE_LABEL_IS_ENOUGH)
        found[name] = {"value": None, "low": None, "high": None}
        if usable:
            value = float(combine(sums_QK.sum(axis=0)))
            drawn_D = _drawn(sums_QK, combine, question_draws(count, draws, seed))
            if name == "auprc":  # its bins are for the interval alone, and shift it a little
                exact = float(auprc_by_question(label_S, score_S, np.zeros_like(question_S), 1)[0])
                value, drawn_D = exact, np.minimum(drawn_D + (exact - value), 1.0)
            found[name] = asdict(interval(value, drawn_D[np.isfinite(drawn_D)], count))
        own_Q = combine(sums_QK)
        if name == "auprc":
            own_Q = auprc_by_question(label_S, score_S, question_S, count)
        found["each_question"][name] = mean_figure(own_Q[both_Q], **options)
    return found


def _drawn(sums_QK: Floats, combine: "Combine", times_DQ: Floats) -> Floats:
    """Return the metric in each draw [D]; some draws at a time stay in the processor's cache."""
    parts = np.array_split(times_DQ, max(1, len(times_DQ) * sums_QK.shape[1] // _PART))
    return np.concatenate([combine(part.astype(sums_QK.dtype) @ sums_QK) for part in parts])


Combine = Callable[[Floats], Floats]
Sums = tuple[Floats, Callable[[Floats], Floats]]
"""Sums of each question [Q, K], and what makes the metric of sums [..., K]: [...]."""


def _by_question(columns_SK: Floats, question_S: Ints, count: int) -> Floats:
    return np.stack(
        [np.bincount(question_S, weights=column, minlength=count) for column in columns_SK.T],
        axis=1,
    )


def _f1(label_S: Bools, score_S: Floats, question_S: Ints, count: int) -> Sums:
    called_S = score_S >= THRESHOLD
    columns = np.stack([called_S & label_S, called_S, label_S], axis=1).astype(np.float64)

    def combine(sums: Floats) -> Floats:
        return _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2])

    return _by_question(columns, question_S, count), combine


def _mean_of(values_S: Floats, question_S: Ints, count: int) -> Sums:
    columns = np.stack([values_S, np.ones(len(values_S))], axis=1)
    return _by_question(columns, question_S, count), lambda sums: _ratio(sums[..., 0], sums[..., 1])


def _accuracy(label_S: Bools, score_S: Floats, question_S: Ints, count: int) -> Sums:
    return _mean_of((score_S >= THRESHOLD) == label_S, question_S, count)


def _brier(label_S: Bools, score_S: Floats, question_S: Ints, count: int) -> Sums:
    return _mean_of((score_S - label_S) ** 2, question_S, count)


def _ece(label_S: Bools, score_S: Floats, question_S: Ints, count: int) -> Sums:
    cell_S = question_S * ECE_BINS + score_bins(score_S)
    gap = np.bincount(cell_S, weights=score_S - label_S, minlength=count * ECE_BINS)
    size_Q = np.bincount(question_S, minlength=count)
    sums = np.column_stack([gap.reshape(count, ECE_BINS), size_Q])
    return sums, lambda sums: _ratio(np.abs(sums[..., :-1]).sum(axis=-1), sums[..., -1])


def _auprc(label_S: Bools, score_S: Floats, question_S: Ints, count: int) -> Sums:
    edges = np.empty(0)
    if len(score_S):
        edges = np.unique(np.quantile(score_S, np.linspace(0, 1, _AUPRC_BINS + 1)[1:-1]))
    bins = len(edges) + 1
    # Bin 0 has the highest scores.
    bin_S = bins - 1 - np.searchsorted(edges, score_S, side="right")
    cell_S = (question_S * 2 + label_S) * bins + bin_S
    counts = np.bincount(cell_S, minlength=count * 2 * bins).reshape(count, 2, bins)
    right_QB, so_far_QB = counts[:, 1], np.cumsum(counts, axis=2)
    # The sums up to a bin are sums over questions too. Single precision is off by some 1e-7.
    sums = np.hstack([right_QB, so_far_QB[:, 1], so_far_QB.sum(axis=1)]).astype(np.float32)

    def combine(sums: Floats) -> Floats:
        right, right_so_far, so_far = np.split(sums, 3, axis=-1)
        gained = np.einsum("...b,...b->...", right, right_so_far / np.maximum(so_far, 1))
        return _ratio(gained, right_so_far[..., -1])

    return sums, combine


def _ratio(part: Floats, whole: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.divide(part, whole)


_SUMS: dict[str, Callable[[Bools, Floats, Ints, int], Sums]] = {
    "auprc": _auprc,
    "f1": _f1,
    "accuracy": _accuracy,
    "brier": _brier,
    "ece": _ece,
}
_ONE_LABEL_IS_ENOUGH = ("accuracy", "brier", "ece")
