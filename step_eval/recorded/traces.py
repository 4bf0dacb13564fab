"""Questions, each with a pool of possible traces, to be replayed or simulated.

They come from recorded traces (`recorded.files`) or are drawn (`step_eval.simulation.drawn`).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from step_infer.client.kinds import AnswerOptions


@dataclass(frozen=True)
class PoolTrace:
    """One possible trace of a question, run to its end."""

    tokens: int
    """Generated tokens T."""
    positions: tuple[int, ...]
    """Step boundaries, as indices of generated tokens [S]."""
    answer: str | None
    """The final answer, one form for all equal answers; None without one."""
    right: bool
    cut: bool = False
    """Whether it ended for its length."""
    scores: tuple[float | None, ...] = ()
    """Step scores [S], or empty where nothing scored it."""
    text: np.ndarray | None = None
    """Numbers [T] that are equal where two traces of the question wrote the same tokens up to
    there; None where that is not known."""
    confidences: tuple[float | None, ...] = ()
    """Mean token confidence up to and with each boundary [S], or empty where not recorded."""
    confidence: float | None = None
    """Mean token confidence of the whole trace."""


@dataclass(frozen=True)
class PoolQuestion:
    """A question and its pool."""

    question_id: str
    prompt_tokens: int
    traces: tuple[PoolTrace, ...]
    truth: str | None = None
    """The right answer, where it is known."""


@dataclass(frozen=True)
class TracePool:
    """Questions with their pools, and where they come from."""

    questions: tuple[PoolQuestion, ...]
    source: str
    """One line for the reader of a report."""
    aggregator: str | None = None
    """The trace aggregator of the scorer that made the scores."""
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    """The answer kind by which equal answers have one form."""

    @property
    def scored(self) -> bool:
        """Whether the traces carry step scores."""
        return any(trace.scores for question in self.questions for trace in question.traces)

    @property
    def confident(self) -> bool:
        """Whether the traces carry confidences."""
        return any(trace.confidences for question in self.questions for trace in question.traces)

    @property
    def mean_response_tokens(self) -> float:
        """Mean over traces of generated tokens."""
        lengths = [trace.tokens for question in self.questions for trace in question.traces]
        return sum(lengths) / len(lengths)

    @property
    def mean_tokens(self) -> float:
        """Mean over traces of prompt and response tokens."""
        lengths = [q.prompt_tokens + t.tokens for q in self.questions for t in q.traces]
        return sum(lengths) / len(lengths)

    def scaled(self, factor: float) -> "TracePool":
        """Return the pool with responses `factor` times as long, boundaries in proportion."""
        if factor == 1:
            return self
        questions = tuple(
            dataclasses.replace(
                question, traces=tuple(_scaled(trace, factor) for trace in question.traces)
            )
            for question in self.questions
        )
        return dataclasses.replace(self, questions=questions)


def _scaled(trace: PoolTrace, factor: float) -> PoolTrace:
    tokens = max(round(trace.tokens * factor), 1)
    kept = [
        (position, index)
        for index, old in enumerate(trace.positions)
        if (position := round((old + 1) * factor) - 1) < tokens - 1
    ]
    # Below the spacing of the boundaries several fall on one token; the last of them stays.
    last = {max(position, 0): index for position, index in kept}
    return dataclasses.replace(
        trace,
        tokens=tokens,
        positions=tuple(last),
        text=None if trace.text is None else trace.text[_places(tokens, factor, trace.tokens)],
        scores=tuple(trace.scores[index] for index in last.values()) if trace.scores else (),
        confidences=tuple(trace.confidences[i] for i in last.values()) if trace.confidences else (),
    )


def _places(tokens: int, factor: float, most: int) -> np.ndarray:
    return np.minimum((np.arange(tokens) / factor).astype(int), most - 1)


def pick(question: PoolQuestion, count: int, repeat: int, seed: Sequence[int]) -> list[int]:
    """Choose `count` traces of a question's pool for one repeat, as indices in running order.

    The first repeat takes the pool's first traces in their order; others draw without replacement,
    and any draws with replacement what the pool cannot give.
    """
    size = len(question.traces)
    if repeat == 0 and count <= size:
        return list(range(count))
    rng = np.random.default_rng([*seed, repeat])
    chosen = rng.permutation(size)[:count]
    more = rng.choice(size, max(count - size, 0))
    return [int(index) for index in (*chosen, *more)]


def shared_beginnings(texts: Sequence[np.ndarray]) -> list[tuple[int | None, int]]:
    """Say of each text which earlier one it begins like, and for how long.

    Args:
        texts: numbers [T] each, as in `PoolTrace.text`.

    Returns:
        The number of the earlier text with which it has the most first tokens in common, the first
        such, and how many these are; (None, 0) where it has none with any. That is all that
        `texts_that_share` needs to know of texts.
    """
    found: list[tuple[int | None, int]] = []
    for number, text in enumerate(texts):
        best: tuple[int | None, int] = (None, 0)
        for earlier in range(number):
            length = min(len(text), len(texts[earlier]))
            unequal = np.flatnonzero(text[:length] != texts[earlier][:length])
            common = int(unequal[0]) if len(unequal) else length
            if common > best[1]:
                best = (earlier, common)
        found.append(best)
    return found


def texts_that_share(
    lengths: Sequence[int], shared: Sequence[tuple[int | None, int]]
) -> list[np.ndarray]:
    """Return made-up texts [T] of these lengths that begin alike as `shared_beginnings` says."""
    texts: list[np.ndarray] = []
    fresh = 0
    for length, (earlier, common) in zip(lengths, shared, strict=True):
        text = np.arange(fresh, fresh + length, dtype=np.int64)
        if earlier is not None:
            text[:common] = texts[earlier][:common]
        texts.append(text)
        fresh += length
    return texts
