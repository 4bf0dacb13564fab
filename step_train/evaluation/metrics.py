"""Metrics of scores against labels, and what a training report says of them.

Plain functions on numpy arrays. AUROC and all intervals are those of `step_eval.statistics`; here
stand the metrics that only training needs, and JSON-ready figures: dictionaries of "value", "low"
and "high" (None where the samples do not have them).
Axes: S samples (steps or traces), Q questions, D bootstrap draws, B score bins.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, f1_score

from step_eval.statistics import (
    DRAWS,
    Bools,
    Floats,
    Ints,
    auroc,
    auroc_by_question,
    auroc_with_interval,
    interval,
    question_draws,
    question_mean,
    require_finite,
    require_two_labels,
    sorted_runs,
    within_question_aurocs,
)

THRESHOLD = 0.5
"""Step scores from here on count as "right" for F1 and accuracy."""

ECE_BINS = 15
"""Bins of equal width for calibration (Guo et al., arXiv 1706.04599, section 2)."""


def auprc(label_S: Bools, score_S: Floats) -> float:
    """Return the average precision of the right samples."""
    require_two_labels(label_S, score_S)
    return float(average_precision_score(label_S, score_S))


def f1(label_S: Bools, score_S: Floats) -> float:
    """Return F1 of the right samples at a threshold of 0.5; 0 where none is called right."""
    require_two_labels(label_S, score_S)
    return float(f1_score(label_S, score_S >= THRESHOLD, zero_division=0.0))


def accuracy(label_S: Bools, score_S: Floats) -> float:
    """Return the share of samples on their own side of 0.5."""
    require_two_labels(label_S, score_S)
    return float(accuracy_score(label_S, score_S >= THRESHOLD))


def brier(label_S: Bools, score_S: Floats) -> float:
    """Return the mean squared distance of scores, as probabilities, from labels."""
    require_two_labels(label_S, score_S)
    return float(brier_score_loss(label_S, score_S))


def ece(label_S: Bools, score_S: Floats, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error: how far a bin's scores are from its share of right.

    Bins of equal width over [0, 1], weighed by their samples (arXiv 1706.04599, equation 3).
    """
    require_two_labels(label_S, score_S)
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


def auprc_by_question(
    label_S: Bools, score_S: Floats, question_S: Ints, num_questions: int
) -> Floats:
    """Return each question's average precision [Q], NaN without right samples."""
    # Highest score first within each question.
    order, start, ties = sorted_runs(-score_S, question_S)
    label, question = label_S[order].astype(np.float64), question_S[order]
    size_Q = np.bincount(question, minlength=num_questions)
    right_Q = np.bincount(question, weights=label, minlength=num_questions)
    first_Q, first_right_Q = np.cumsum(size_Q) - size_Q, np.cumsum(right_Q) - right_Q
    question, end = question[start], start + ties
    right_so_far = np.append(0, np.cumsum(label))
    precision = (right_so_far[end] - first_right_Q[question]) / (end - first_Q[question])
    gained = right_so_far[end] - right_so_far[start]
    sum_Q = np.bincount(question, weights=gained * precision, minlength=num_questions)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sum_Q / np.where(right_Q > 0, right_Q, np.nan)


def mean_figure(values_Q: Floats, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Return the mean of a figure that each question has, with its interval.

    Returns:
        "value", "low" and "high" (None without questions, the interval also for one), and
        "questions": how many there are.
    """
    figure: dict[str, Any] = {"value": None, "low": None, "high": None}
    if len(values_Q):
        figure = asdict(question_mean(values_Q, draws, seed))
    return figure | {"questions": len(values_Q)}


def within_question(
    label_S: Bools, score_S: Floats, question_S: Ints, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Return the mean of the questions' own AUROCs as `mean_figure` does.

    Questions without both labels have none.
    """
    return mean_figure(within_question_aurocs(label_S, score_S, question_S), draws, seed)


def pair_ranking(
    label_S: Bools, score_S: Floats, question_S: Ints, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Return how often the right one of two samples of one question has the higher score.

    Each pair counts once, so that questions with many pairs weigh more than in `within_question`;
    a tie counts half.

    Returns:
        "value", "low", "high" (None as in `within_question`) and "pairs".
    """
    require_finite(score_S)
    num_questions = int(question_S.max()) + 1 if len(question_S) else 0
    values_Q, pairs_Q = auroc_by_question(label_S, score_S, question_S, num_questions)
    values_Q, pairs_Q = values_Q[pairs_Q > 0], pairs_Q[pairs_Q > 0]
    if not len(pairs_Q):
        return {"value": None, "low": None, "high": None, "pairs": 0}
    times_DQ = question_draws(len(pairs_Q), draws, seed).astype(np.float64)
    wins_Q, total = values_Q * pairs_Q, int(pairs_Q.sum())
    drawn_D = (times_DQ @ wins_Q) / (times_DQ @ pairs_Q.astype(np.float64))
    return asdict(interval(wins_Q.sum() / total, drawn_D, len(pairs_Q))) | {"pairs": total}


def pooled_auroc(
    label_S: Bools, score_S: Floats, question_S: Ints, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Return the AUROC over all samples, with its interval over questions.

    Returns:
        "value", "low" and "high"; all None with one label only.
    """
    require_finite(score_S)
    if not len(label_S) or label_S.all() or not label_S.any():
        return {"value": None, "low": None, "high": None}
    return asdict(auroc_with_interval(label_S, score_S, question_S, draws, seed))
