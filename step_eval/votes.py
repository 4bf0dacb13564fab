"""Vote rules by name: how much each trace of a question counts."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from step_eval.records import TraceRecord
from step_infer.client.branching import shared_weights
from step_infer.client.trace import UNSCORED, Trace
from step_infer.errors import InputError

Weights = Callable[[Sequence[float | None]], list[float]]
"""From a number of each trace [N] (None where it has none) to weights [N], none below 0."""

_POWER = re.compile(r"score(?:\^(\d+(?:\.\d+)?))?")
_TOP = re.compile(r"score-top-([1-9]\d*)")
_TRACE_FIELDS = {
    "score": "trace_score",
    "mean_confidence": "mean_token_confidence",
    "lowest_confidence": "lowest_group_confidence",
}
"""Fields of `TraceRecord` that votes go by, as `Trace` calls them."""
UNIFORM = "uniform"
CONFIDENCE = "confidence"
"""Vote by the mean token confidence in the place of the score."""
LOWEST_CONFIDENCE = "lowest-confidence"
"""Vote by the lowest group confidence in the place of the score (DeepConf)."""
SHARED = "score-shared"
"""Vote by score, each weight shared among the traces that branched from one another."""
RULES = (
    f"uniform, score, score^POWER, score-top-K, {SHARED}, best, {CONFIDENCE}, {LOWEST_CONFIDENCE}"
)
SHOWN_VOTES = (
    UNIFORM,
    "score",
    "score^4",
    "score-top-5",
    SHARED,
    "best",
    CONFIDENCE,
    LOWEST_CONFIDENCE,
)
"""Rules that a report compares on the same traces."""


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


def number_power(power: float, missing: float) -> Weights:
    """Return the rule that weighs a trace by its number to a power, or by that of `missing`."""

    def weights(numbers: Sequence[float | None]) -> list[float]:
        return [max(missing if n is None else n, 0.0) ** power for n in numbers]

    return weights


def score_top(count: int) -> Weights:
    """Return the rule by which only the traces of the highest scores vote, weighted by score.

    Between equal scores the first trace goes; if no trace has a score, each has one vote.
    """

    def weights(scores: Sequence[float | None]) -> list[float]:
        known = {index: score for index, score in enumerate(scores) if score is not None}
        if not known:
            return uniform(scores)
        chosen = sorted(known, key=lambda index: (-known[index], index))[:count]
        return [max(known[i], 0.0) if i in chosen else 0.0 for i in range(len(scores))]

    return weights


@dataclass(frozen=True)
class _Rule:
    """All that is to be known of a vote rule."""

    weights: Weights
    signal: str | None = "score"
    """The number of a trace that it goes by, a field of `TraceRecord`; None: by none."""
    most: float = math.inf
    """The most that a vote can weigh; infinity where other traces decide it, or nothing."""
    shared: bool = False
    """Whether the traces of one family share their weights (`shared_weights`)."""


_NAMED = {
    UNIFORM: _Rule(uniform, None, 1.0),
    SHARED: _Rule(number_power(1.0, missing=UNSCORED), shared=True),
    "best": _Rule(best),
    CONFIDENCE: _Rule(number_power(1.0, missing=1.0), "mean_confidence"),
    LOWEST_CONFIDENCE: _Rule(number_power(1.0, missing=1.0), "lowest_confidence"),
}


def _find(name: str) -> _Rule:
    """Return the rule of one of the names in `RULES`.

    Raises:
        InputError: there is no such rule.
    """
    if name in _NAMED:
        return _NAMED[name]
    if (top := _TOP.fullmatch(name)) is not None:
        return _Rule(score_top(int(top[1])))
    power = _POWER.fullmatch(name)
    if power is None:
        raise InputError(f"Expected a vote out of {RULES}, found {name!r}.")
    # Scores are at most 1.
    return _Rule(number_power(float(power[1] or 1), missing=UNSCORED), most=1.0)


def vote_rule(name: str) -> Weights:
    """Return the rule of one of the names in `RULES`; "score" is that of STEP (section 3.3).

    It weighs the numbers that `vote_signal` names; `voter_weights` also knows of families.

    Raises:
        InputError: there is no such rule.
    """
    return _find(name).weights


def voter_weights(
    name: str, voters: Sequence[TraceRecord], traces: Iterable[TraceRecord]
) -> list[float]:
    """Return the weights of a question's voters by a rule.

    Args:
        name: of the rule.
        voters: the traces that vote [V].
        traces: all traces of the question.

    Raises:
        InputError: there is no such rule.
    """
    rule = _find(name)
    weights = rule.weights(
        [None if rule.signal is None else getattr(trace, rule.signal) for trace in voters]
    )
    if not rule.shared:
        return weights
    parents = {trace.trace_id: trace.parent for trace in traces}
    return shared_weights([trace.trace_id for trace in voters], weights, parents)


def most_weight(name: str) -> float:
    """Return the most that a vote can weigh; infinity where other traces decide it, or nothing.

    Raises:
        InputError: there is no such rule.
    """
    return _find(name).most


def trace_weigher(name: str) -> Callable[[Trace], float]:
    """Return what weighs an ended trace's vote by a rule, while others still run.

    Raises:
        InputError: there is no such rule.
    """
    rule, signal = vote_rule(name), vote_signal(name)
    field = None if signal is None else _TRACE_FIELDS[signal]
    return lambda trace: rule([None if field is None else getattr(trace, field)])[0]


def score_weigher(name: str) -> Callable[[float], float] | None:
    """Return what weighs a trace score by a rule; None where the rule does not go by it.

    Raises:
        InputError: there is no such rule.
    """
    rule = vote_rule(name)
    return (lambda score: rule([score])[0]) if vote_signal(name) == "score" else None


def has_signal(vote_by: str, traces: Iterable[TraceRecord]) -> bool:
    """Return whether any trace has the number that a rule goes by, or a family where it shares."""
    rule = _find(vote_by)
    field = "parent" if rule.shared else rule.signal
    return field is None or any(getattr(trace, field) is not None for trace in traces)


def vote_signal(name: str) -> str | None:
    """Return the number of a trace that a rule goes by: None, or a field of `TraceRecord`.

    Raises:
        InputError: there is no such rule.
    """
    return _find(name).signal
