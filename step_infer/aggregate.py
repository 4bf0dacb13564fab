"""From a trace's step scores to one trace score."""

from collections.abc import Callable, Sequence

EMA_DECAY = 0.8
"""Weight that the exponential mean keeps of its past at each step."""


def mean(step_scores: Sequence[float]) -> float:
    """Return the mean of all step scores (STEP, arXiv 2601.09093, section 3.3)."""
    return sum(step_scores) / len(step_scores)


def last(step_scores: Sequence[float]) -> float:
    """Return the newest step score."""
    return step_scores[-1]


def minimum(step_scores: Sequence[float]) -> float:
    """Return the lowest step score."""
    return min(step_scores)


def exponential_mean(step_scores: Sequence[float]) -> float:
    """Return the exponential moving mean, which starts at the first step score."""
    value = step_scores[0]
    for score in step_scores[1:]:
        value = EMA_DECAY * value + (1 - EMA_DECAY) * score
    return value


AGGREGATORS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": mean,
    "last": last,
    "min": minimum,
    "ema": exponential_mean,
}
"""Trace aggregators by the name that scorer cards and settings use. Scores: [S], S >= 1."""
