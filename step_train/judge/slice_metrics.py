"""All metrics of some steps, over all of them and within question, with intervals.

Most metrics come from sums over questions, so that a bootstrap over questions needs no sample
twice: a resample weighs the questions' sums. Axes: S samples, Q questions, R resamples, K sums of a
metric, B score bins.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from step_train.judge.metrics import (
    ECE_BINS,
    RESAMPLES,
    THRESHOLD,
    Bools,
    Floats,
    Ints,
    auprc_by_group,
    interval,
    pooled_auroc,
    question_mean,
    question_weights,
    score_bins,
    within_question,
)

_AUPRC_BINS = 512

SLICE_METRICS = ("auroc", "auprc", "f1", "accuracy", "brier", "ece")
"""What `slice_metrics` gives an interval for."""


def slice_metrics(
    label_S: Bools,
    score_S: Floats,
    question_S: Ints,
    resamples: int = RESAMPLES,
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
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
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
            if name == "auprc":  # the bins are for the interval alone
                value = float(auprc_by_group(label_S, score_S, np.zeros_like(question_S), 1)[0])
            values_R = combine(question_weights(count, resamples, seed) @ sums_QK)
            low, high = interval(values_R[np.isfinite(values_R)], count)
            found[name] = {"value": value, "low": low, "high": high}
        own_Q = combine(sums_QK)
        if name == "auprc":
            own_Q = auprc_by_group(label_S, score_S, question_S, count)
        found["each_question"][name] = question_mean(own_Q[both_Q], **options)
    return found


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
    sums = np.bincount(cell_S, minlength=count * 2 * bins).reshape(count, 2 * bins)

    def combine(sums: Floats) -> Floats:
        wrong, right = sums[..., :bins], sums[..., bins:]
        right_so_far = np.cumsum(right, axis=-1)
        precision = _ratio(right_so_far, right_so_far + np.cumsum(wrong, axis=-1))
        gained = np.where(right > 0, right * precision, 0.0)
        return _ratio(gained.sum(axis=-1), right_so_far[..., -1])

    return sums.astype(np.float64), combine


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
