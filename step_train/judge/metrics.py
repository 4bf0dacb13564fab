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
from functools import lru_cache
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

ECE_BINS = 15
"""Bins of equal width for calibration (Guo et al., arXiv 1706.04599, section 2)."""

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


def ece(label_S: Bools, score_S: Floats, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error: how far a bin's scores are from its share of right.

    Bins of equal width over [0, 1], weighed by their samples (arXiv 1706.04599, equation 3).
    """
    _check(label_S, score_S)
    bin_S = score_bins(score_S, bins)
    gap_B = np.bincount(bin_S, weights=score_S - label_S, minlength=bins)
    return float(np.abs(gap_B).sum() / len(label_S))


def score_bins(score_S: Floats, bins: int = ECE_BINS) -> Ints:
    """Return the bin of each score, out of `bins` of equal width; 1 is in the last one."""
    return np.clip((score_S * bins).astype(np.int64), 0, bins - 1)


def reliability(label_S: Bools, score_S: Floats, bins: int = ECE_BINS) -> list[dict[str, Any]]:
    """Return the reliability curve: each bin that has samples, with its ends and means.

    Returns:
        Bins in order: "from", "to", "samples", "score" (mean) and "right" (share of right samples).
    """
    bin_S = score_bins(score_S, bins)
    count_B = np.bincount(bin_S, minlength=bins)
    score_B = np.bincount(bin_S, weights=score_S, minlength=bins)
    right_B = np.bincount(bin_S, weights=label_S, minlength=bins)
    return [
        {
            "from": index / bins,
            "to": (index + 1) / bins,
            "samples": int(count),
            "score": float(score_B[index] / count),
            "right": float(right_B[index] / count),
        }
        for index, count in enumerate(count_B)
        if count
    ]


METRICS: dict[str, Callable[[Bools, Floats], float]] = {
    "auroc": auroc,
    "auprc": auprc,
    "f1": f1,
    "accuracy": accuracy,
    "brier": brier,
    "ece": ece,
}
"""Pooled metrics by name: (labels [S], scores in [0, 1] [S]) -> value."""


def selection_score(label_S: Bools, score_S: Floats) -> float:
    """Return what early stopping maximises: 0.75 AUROC + 0.25 F1 (STEP, arXiv 2601.09093)."""
    return 0.75 * auroc(label_S, score_S) + 0.25 * f1(label_S, score_S)


def auroc_by_group(
    label_S: Bools, score_S: Floats, group_S: Ints, num_groups: int
) -> tuple[Floats, Ints]:
    """Return each group's AUROC [G], NaN without both labels, and its right/wrong pairs [G]."""
    order, start, ties = _runs(score_S, group_S)
    label, group = label_S[order], group_S[order]
    size_G = np.bincount(group, minlength=num_groups)
    right_G = np.bincount(group, weights=label, minlength=num_groups).astype(np.int64)
    first_G = np.cumsum(size_G) - size_G
    # Ranks from 0; equal scores share their mean rank.
    rank = np.repeat(start + (ties - 1) / 2, ties) - first_G[group]
    rank_sum_G = np.bincount(group, weights=rank * label, minlength=num_groups)
    pairs_G = right_G * (size_G - right_G)
    wins_G = rank_sum_G - right_G * (right_G - 1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs_G > 0, wins_G / pairs_G, np.nan), pairs_G


def auprc_by_group(label_S: Bools, score_S: Floats, group_S: Ints, num_groups: int) -> Floats:
    """Return each group's average precision [G], NaN without right samples."""
    # Highest score first within each group.
    order, start, ties = _runs(-score_S, group_S)
    label, group = label_S[order].astype(np.float64), group_S[order]
    size_G = np.bincount(group, minlength=num_groups)
    right_G = np.bincount(group, weights=label, minlength=num_groups)
    first_G, first_right_G = np.cumsum(size_G) - size_G, np.cumsum(right_G) - right_G
    group, end = group[start], start + ties
    right_so_far = np.append(0, np.cumsum(label))
    precision = (right_so_far[end] - first_right_G[group]) / (end - first_G[group])
    gained = right_so_far[end] - right_so_far[start]
    sum_G = np.bincount(group, weights=gained * precision, minlength=num_groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sum_G / np.where(right_G > 0, right_G, np.nan)


def _runs(score_S: Floats, group_S: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the order by group and score, and each run of equal scores: its start and length."""
    order = np.lexsort((score_S, group_S))
    score, group = score_S[order], group_S[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    start = np.flatnonzero(new)
    return order, start, np.diff(np.append(start, len(order)))


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
    return question_mean(values[pairs > 0], resamples, seed)


def question_mean(values_Q: Floats, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Return the mean of a figure that each question has, with its interval.

    Returns:
        As `within_question`.
    """
    count = len(values_Q)
    if not count:
        return {"value": None, "low": None, "high": None, "questions": 0}
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    low, high = interval(values_Q[draws].mean(axis=1), count)
    return {"value": float(values_Q.mean()), "low": low, "high": high, "questions": count}


def pair_ranking(
    label_S: Bools, score_S: Floats, question_S: Ints, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Return how often the right one of two samples of one question has the higher score.

    Each pair counts once, so that questions with many pairs weigh more than in `within_question`;
    a tie counts half.

    Returns:
        "value", "low", "high" (None as in `within_question`) and "pairs".
    """
    _check_finite(score_S)
    num_questions = int(question_S.max()) + 1 if len(question_S) else 0
    values, pairs = auroc_by_group(label_S, score_S, question_S, num_questions)
    values, pairs = values[pairs > 0], pairs[pairs > 0]
    if not len(pairs):
        return {"value": None, "low": None, "high": None, "pairs": 0}
    times_RQ = question_weights(len(pairs), resamples, seed)
    wins = values * pairs
    low, high = interval((times_RQ @ wins) / (times_RQ @ pairs), len(pairs))
    total = int(pairs.sum())
    return {"value": float(wins.sum() / total), "low": low, "high": high, "pairs": total}


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
    weight_RQ = question_weights(num_questions, resamples, seed)
    wins_R = ((weight_RQ @ wins_QQ) * weight_RQ).sum(axis=1)
    pairs_R = (weight_RQ @ right_QB.sum(axis=1)) * (weight_RQ @ wrong_QB.sum(axis=1))
    low, high = interval(wins_R[pairs_R > 0] / pairs_R[pairs_R > 0], num_questions)
    return {"value": value, "low": low, "high": high}


@lru_cache(maxsize=8)
def question_weights(num_questions: int, resamples: int, seed: int) -> Floats:
    """Return how often each question is drawn in each resample [R, Q]; not to be written to."""
    shares = np.full(num_questions, 1 / num_questions)
    drawn = np.random.default_rng(seed).multinomial(num_questions, shares, size=resamples)
    return drawn.astype(np.float64)


def interval(values_R: Floats, num_questions: int) -> tuple[float | None, float | None]:
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
