"""Metrics of scores against labels, overall and within question, with intervals.

Plain functions on numpy arrays. "Within question" compares only scores of one question: an AUROC
for each question that has both labels, then their mean, each such question counting once. Pooled
AUROC also rewards telling easy questions from hard ones, which is of no use for choosing among one
question's traces (arXiv 2609.03436). Intervals are 95 % intervals of a bootstrap over questions:
percentiles, expanded for few questions (Hesterberg, "What Teachers Should Know About the
Bootstrap", 2015, section 4.3).
Axes: S samples (steps or traces), G groups, Q questions, R resamples, B score bins.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    roc_auc_score,
)

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

THRESHOLD = 0.5
"""Step scores from here on count as "right" for F1 and accuracy."""

RESAMPLES = 2000
"""Bootstrap resamples of an interval."""

_INTERVAL_BINS = 2048


def auroc(label_S: Bools, score_S: Floats) -> float:
    """Return the area under the ROC curve: how often a right sample outscores a wrong one."""
    _check(label_S, score_S)
    return float(roc_auc_score(label_S, score_S))


def auprc(label_S: Bools, score_S: Floats) -> float:
    """Return the average precision of the right samples."""
    _check(label_S, score_S)
    return float(average_precision_score(label_S, score_S))


def f1(label_S: Bools, score_S: Floats) -> float:
    """Return F1 of the right samples at a threshold of 0.5; 0 where none is called right."""
    _check(label_S, score_S)
    return float(f1_score(label_S, score_S >= THRESHOLD, zero_division=0.0))


def accuracy(label_S: Bools, score_S: Floats) -> float:
    """Return the share of samples on their own side of 0.5."""
    _check(label_S, score_S)
    return float(accuracy_score(label_S, score_S >= THRESHOLD))


def brier(label_S: Bools, score_S: Floats) -> float:
    """Return the mean squared distance of scores, as probabilities, from labels."""
    _check(label_S, score_S)
    return float(brier_score_loss(label_S, score_S))


METRICS: dict[str, Callable[[Bools, Floats], float]] = {
    "auroc": auroc,
    "auprc": auprc,
    "f1": f1,
    "accuracy": accuracy,
    "brier": brier,
}
"""Pooled metrics by name: (labels [S], scores in [0, 1] [S]) -> value."""


def selection_score(label_S: Bools, score_S: Floats) -> float:
    """Return what early stopping maximises: 0.75 AUROC + 0.25 F1 (STEP, arXiv 2601.09093)."""
    return 0.75 * auroc(label_S, score_S) + 0.25 * f1(label_S, score_S)


def auroc_by_group(
    label_S: Bools, score_S: Floats, group_S: Ints, num_groups: int
) -> tuple[Floats, Ints]:
    """Return each group's AUROC [G], NaN without both labels, and its right/wrong pairs [G]."""
    order = np.lexsort((score_S, group_S))
    label, score, group = label_S[order], score_S[order], group_S[order]
    size_G = np.bincount(group, minlength=num_groups)
    right_G = np.bincount(group, weights=label, minlength=num_groups).astype(np.int64)
    first_G = np.cumsum(size_G) - size_G
    new = np.ones(len(order), dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    start = np.flatnonzero(new)
    ties = np.diff(np.append(start, len(order)))
    # Ranks from 0; equal scores share their mean rank.
    rank = np.repeat(start + (ties - 1) / 2, ties) - first_G[group]
    rank_sum_G = np.bincount(group, weights=rank * label, minlength=num_groups)
    pairs_G = right_G * (size_G - right_G)
    wins_G = rank_sum_G - right_G * (right_G - 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs_G > 0, wins_G / pairs_G, np.nan), pairs_G


def within_question(
    label_S: Bools, score_S: Floats, question_S: Ints, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Return the mean of the questions' own AUROCs, with its interval.

    Returns:
        "value", "low" and "high" (None where no question has both labels, the interval also where
        one has), and "questions": how many have both.
    """
    _check_finite(score_S)
    num_questions = int(question_S.max()) + 1 if len(question_S) else 0
    values, pairs = auroc_by_group(label_S, score_S, question_S, num_questions)
    values = values[pairs > 0]
    if not len(values):
        return {"value": None, "low": None, "high": None, "questions": 0}
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = _interval(values[draws].mean(axis=1), len(values))
    return {"value": float(values.mean()), "low": low, "high": high, "questions": len(values)}


def pooled_auroc(
    label_S: Bools, score_S: Floats, question_S: Ints, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Return the AUROC over all samples, with its interval over resampled questions.

    The value is exact. For the interval, scores are cut into 2,048 bins of equal size, so that a
    resample costs nothing: wins of question i's right samples over question j's wrong ones are
    counted once, [Q, Q].

    Returns:
        "value", "low" and "high"; all None with one label only.
    """
    _check_finite(score_S)
    if not len(label_S) or label_S.all() or not label_S.any():
        return {"value": None, "low": None, "high": None}
    value = auroc(label_S, score_S)
    _, question_S = np.unique(question_S, return_inverse=True)
    num_questions = int(question_S.max()) + 1
    edges = np.unique(np.quantile(score_S, np.linspace(0, 1, _INTERVAL_BINS + 1)[1:-1]))
    bin_S = np.searchsorted(edges, score_S, side="right")
    num_bins = len(edges) + 1
    cell_S = (label_S * num_questions + question_S) * num_bins + bin_S
    counts = np.bincount(cell_S, minlength=2 * num_questions * num_bins).astype(np.float64)
    wrong_QB, right_QB = counts.reshape(2, num_questions, num_bins)
    wins_QQ = right_QB @ (np.cumsum(wrong_QB, axis=1) - 0.5 * wrong_QB).T
    generator = np.random.default_rng(seed)
    weight_RQ = generator.multinomial(
        num_questions, np.full(num_questions, 1 / num_questions), size=resamples
    ).astype(np.float64)
    wins_R = ((weight_RQ @ wins_QQ) * weight_RQ).sum(axis=1)
    pairs_R = (weight_RQ @ right_QB.sum(axis=1)) * (weight_RQ @ wrong_QB.sum(axis=1))
    low, high = _interval(wins_R[pairs_R > 0] / pairs_R[pairs_R > 0], num_questions)
    return {"value": value, "low": low, "high": high}


def _interval(values_R: Floats, num_questions: int) -> tuple[float | None, float | None]:
    """Return the 95 % interval of resampled values; (None, None) for one question."""
    if num_questions < 2 or not len(values_R):
        return None, None
    widened = np.sqrt(num_questions / (num_questions - 1)) * t.ppf(0.975, num_questions - 1)
    tail = norm.cdf(-widened)
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return float(low), float(high)


def _check(label_S: Bools, score_S: Floats) -> None:
    if label_S.shape != score_S.shape or label_S.ndim != 1:
        raise ValueError(f"Expected labels and scores [S], found {label_S.shape}, {score_S.shape}.")
    if label_S.all() or not label_S.any():
        raise ValueError("Expected right and wrong samples, found one class only.")
    _check_finite(score_S)


def _check_finite(score_S: Floats) -> None:
    if not np.isfinite(score_S).all():
        raise ValueError("Expected finite scores, found NaN or infinity.")
