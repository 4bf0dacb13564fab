"""From a trace's step scores to one trace score."""

import operator
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

NEVER_RISE = frozenset({"min"})
"""Those whose value a further step score can only lower or leave."""


class RunningScore:
    """An aggregate kept score by score, in constant time each; its value is the aggregator's."""

    __slots__ = ("_add", "_count", "_is_mean", "_state")

    def __init__(self, aggregator: str) -> None:
        self._add = _RUNNING[aggregator]
        self._is_mean = aggregator == "mean"
        self._count = 0
        self._state = 0.0

    def add(self, score: float) -> None:
        """Take one more step score in."""
        self._state = self._add(self._state, score) if self._count else score
        self._count += 1

    @property
    def value(self) -> float | None:
        """The aggregate so far; None before the first score."""
        if not self._count:
            return None
        return self._state / self._count if self._is_mean else self._state


_RUNNING: dict[str, Callable[[float, float], float]] = {
    "mean": operator.add,
    "last": lambda _, score: score,
    "min": min,
    "ema": lambda value, score: EMA_DECAY * value + (1 - EMA_DECAY) * score,
}
