"""Vote rules by name: how much each trace of a question counts."""

import re
from collections.abc import Callable, Sequence

from step_infer.errors import InputError

Weights = Callable[[Sequence[float | None]], list[float]]
"""From trace scores [N] (None where a trace was not scored) to weights [N], none below 0."""

_SCORE = re.compile(r"score(?:\^(\d+(?:\.\d+)?))?")
SHOWN_VOTES = ("uniform", "score", "score^4", "best")
"""Rules that a report compares on the same traces."""


LOWEST_CONFIDENCE = "lowest-confidence"
"""Vote by the lowest group confidence in the place of the score (DeepConf)."""


def uniform(scores: Sequence[float | None]) -> list[float]:
    """Return one vote for each trace (self-consistency)."""
    return [1.0] * len(scores)


def best(scores: Sequence[float | None]) -> list[float]:
    """Return one vote for the first trace of the highest score, or one for each if none has one."""
    known = [score for score in scores if score is not None]
    if not known:
        return uniform(scores)
    winner = scores.index(max(known))
    return [float(index == winner) for index in range(len(scores))]


def score_power(power: float) -> Weights:
    """Return the rule that weighs a trace by its score to a power; 1 where it has no score."""

    def weights(scores: Sequence[float | None]) -> list[float]:
        return [1.0 if score is None else max(score, 0.0) ** power for score in scores]

    return weights


def vote_rule(name: str) -> Weights:
    """Return the rule "uniform", "score" (STEP, section 3.3), "score^POWER" or "best".

    "lowest-confidence" is the rule "score" on other values.

    Raises:
        InputError: there is no such rule.
    """
    if name == "uniform":
        return uniform
    if name == "best":
        return best
    match = _SCORE.fullmatch("score" if name == LOWEST_CONFIDENCE else name)
    if match is None:
        raise InputError(
            f"Expected a vote out of uniform, score, score^POWER, best, {LOWEST_CONFIDENCE}, "
            f"found {name!r}."
        )
    return score_power(float(match[1] or 1))
