"""Step scores of a made-up scorer that ranks the traces of a question as well as it is told.

A step's logit is normal noise, half of its variance shared by all steps of the trace, plus a signal
that says whether the trace is right and grows in proportion to the part of the trace that is done.
With this the AUROC grows over a trace as real scorers' do. The signal's strength is found by
bisection, so that the within-question AUROC of the trace scores at a given progress, on these very
traces, is the one asked for.
"""

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from step_eval.recorded.traces import PoolQuestion, TracePool
from step_eval.statistics import within_question_aurocs
from step_infer.errors import InputError
from step_infer.scorer.aggregate import AGGREGATORS

Scores = list[list[list[float]]]
"""Step scores by question, trace and step."""

_SHARED = 0.5
"""Part of the noise's variance that all steps of a trace share."""
_STRONGEST = 40.0
_ROUNDS = 14


def tuned_scores(
    pool: TracePool, target: float, at: float, aggregator: str, seed: int
) -> tuple[Scores, float]:
    """Return step scores with a within-question AUROC of `target` at progress `at`.

    The noise depends on the seed alone: scorers of other AUROC differ in the signal only. Noise
    that ranks better than `target` by chance, on few traces, is left as it is.

    Args:
        pool: the traces, with boundaries.
        target: AUROC in [0.5, 1).
        at: part of each trace that is done, in (0, 1].
        aggregator: from step scores to a trace score.
        seed: of the noise.

    Returns:
        The scores, and the AUROC that was reached.

    Raises:
        InputError: no question has right and wrong traces with a step by then.
    """
    noise = [_noise(question, [seed, 2, index]) for index, question in enumerate(pool.questions)]
    done = [
        [(np.array(trace.positions) + 1) / trace.tokens for trace in question.traces]
        for question in pool.questions
    ]

    def made(strength: float) -> Scores:
        return [
            [
                _sigmoid(noise_S + (strength if trace.right else -strength) * done_S).tolist()
                for trace, noise_S, done_S in zip(question.traces, *rows, strict=True)
            ]
            for question, *rows in zip(pool.questions, noise, done, strict=True)
        ]

    def reached(strength: float) -> float:
        value = within_auroc(pool, made(strength).__getitem__, at, aggregator)
        if value is None:
            raise InputError(
                "Expected a question with right and wrong traces that have a step boundary in "
                f"their first {at:.0%}, found none. Hint: take other traces, or leave out made-up "
                "scorers (--auroc '[]')."
            )
        return value

    low, high = 0.0, _STRONGEST
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < target else (low, middle)
    return made(high), reached(high)


def within_auroc(
    pool: TracePool, scores_of: Callable[[int], Sequence], at: float, aggregator: str
) -> float | None:
    """Return the mean over questions of the AUROC of trace scores at progress `at`.

    Args:
        pool: the traces.
        scores_of: question number -> step scores of each of its traces, None where not finite.
        at: part of each trace that is done, in (0, 1].
        aggregator: from step scores to a trace score.
    """
    aggregate = AGGREGATORS[aggregator]
    right: list[bool] = []
    scores: list[float] = []
    numbers: list[int] = []
    for number, question in enumerate(pool.questions):
        for trace, steps in zip(question.traces, scores_of(number), strict=True):
            count = bisect.bisect_right(trace.positions, at * trace.tokens - 1 + 1e-9)
            finite = [score for score in steps[:count] if score is not None]
            if finite:
                right.append(trace.right)
                scores.append(aggregate(finite))
                numbers.append(number)
    values_Q = within_question_aurocs(
        np.array(right, dtype=bool), np.array(scores), np.array(numbers, dtype=np.int64)
    )
    return float(values_Q.mean()) if len(values_Q) else None


def _noise(question: PoolQuestion, seed: Sequence[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        np.sqrt(_SHARED) * rng.normal()
        + np.sqrt(1 - _SHARED) * rng.normal(size=len(trace.positions))
        for trace in question.traces
    ]


def _sigmoid(logit_S: np.ndarray) -> np.ndarray:
    # Kept inside (0, 1): a score of exactly 0 would take a trace its vote.
    return 1 / (1 + np.exp(-np.clip(logit_S, -30, 30)))
