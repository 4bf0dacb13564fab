"""The traces that a simulation runs: questions, each with a pool of possible traces.

A pool comes from recorded traces (`recorded.files`) or from distributions (`draw_world`).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from step_eval.simulation.schedule import SimulatedTrace
from step_infer.errors import InputError

WRONG_ANSWERS = 8
"""Different wrong answers of a drawn question."""
_WRONG_FOCUS = 1.0
"""The K-th most frequent of them has a weight of K^-FOCUS."""
_RIGHT_SPREAD = 2.0
"""Concentration of the part of right traces over questions (Beta distribution): small numbers make
questions that are easy or hopeless, large ones make all alike."""
_TOKENS_SIGMA = 0.35
"""Spread of the logarithm of a trace's length, of right and wrong traces alike."""
_QUESTION_SIGMA = 0.25
"""Spread of the logarithm of a question's own factor on all its lengths."""


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
class World:
    """Questions to simulate, and where they come from."""

    questions: tuple[PoolQuestion, ...]
    source: str
    """One line for the reader of a report."""
    aggregator: str | None = None
    """The trace aggregator of the scorer that made the scores."""

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

    def scaled(self, factor: float) -> "World":
        """Return the world with responses `factor` times as long, boundaries in proportion."""
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


def block_contents(
    traces: Sequence[PoolTrace], prompt_tokens: int, block_size: int
) -> list[list[int]] | None:
    """Number each trace's full blocks, prompt included, by all text up to the block's end.

    Returns:
        The numbers [N][blocks]; None where the text of a trace is not known.
    """
    numbers: dict[tuple[int, bytes], int] = {}
    found = []
    for trace in traces:
        if trace.text is None:
            return None
        text = np.concatenate([np.full(prompt_tokens, -1), trace.text])
        chain, number = [], -1
        for start in range(0, len(text) - block_size + 1, block_size):
            key = (number, text[start : start + block_size].tobytes())
            number = numbers.setdefault(key, len(numbers))
            chain.append(number)
        found.append(chain)
    return found


@dataclass(frozen=True)
class Distributions:
    """A world drawn from distributions."""

    prompt_tokens: int = 100
    """Tokens of a prompt."""
    right_share: float = 0.5
    """Mean over questions of the part of right traces."""
    right_tokens: float = 1000
    """Median length of right traces in tokens."""
    wrong_tokens: float = 1300
    """Median length of wrong traces in tokens."""
    max_tokens: int = 32768
    """Traces are cut at this length, and then have no answer."""
    step_tokens: float = 60
    """Mean distance of step boundaries in tokens (exponential, at least 1)."""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "max_tokens"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"Expected {_option(name)} of at least 1, found {getattr(self, name)}."
                )
        if not 0 < self.right_share < 1:
            raise InputError(f"Expected --world.right-share in (0, 1), found {self.right_share}.")
        for name in ("right_tokens", "wrong_tokens", "step_tokens"):
            if getattr(self, name) <= 0:
                raise InputError(f"Expected {_option(name)} above 0, found {getattr(self, name)}.")


def _option(name: str) -> str:
    return "--world." + name.replace("_", "-")


def draw_world(settings: Distributions, count: int, pool: int, seed: int) -> World:
    """Draw `count` questions with `pool` traces each."""
    rng = np.random.default_rng([seed, 1])
    a = settings.right_share * _RIGHT_SPREAD
    b = (1 - settings.right_share) * _RIGHT_SPREAD
    weights = np.arange(1, WRONG_ANSWERS + 1) ** -_WRONG_FOCUS
    weights /= weights.sum()
    questions = []
    for number in range(count):
        share = rng.beta(a, b)
        factor = np.exp(rng.normal(0, _QUESTION_SIGMA))
        right_N = rng.random(pool) < share
        median_N = np.where(right_N, settings.right_tokens, settings.wrong_tokens) * factor
        tokens_N = np.ceil(median_N * np.exp(rng.normal(0, _TOKENS_SIGMA, pool)))
        wrong_N = rng.choice(WRONG_ANSWERS, pool, p=weights)
        traces = []
        for right, length, wrong in zip(right_N, tokens_N, wrong_N, strict=True):
            tokens = min(int(length), settings.max_tokens)
            cut = tokens == settings.max_tokens
            gaps = 1 + rng.exponential(
                max(settings.step_tokens - 1, 0), int(2 * tokens / settings.step_tokens) + 8
            )
            ends = np.cumsum(gaps).astype(int) - 1
            answer = None if cut else "right" if right else f"wrong {wrong + 1}"
            positions = tuple(int(end) for end in np.unique(ends[ends < tokens - 1]))
            traces.append(PoolTrace(tokens, positions, answer, bool(right) and not cut, cut))
        questions.append(PoolQuestion(f"drawn-{number}", settings.prompt_tokens, tuple(traces)))
    about = (
        f"{count} questions drawn from distributions: on average "
        f"{settings.right_share:.0%} of traces right, median {settings.right_tokens:,.0f} tokens "
        f"(right) and {settings.wrong_tokens:,.0f} (wrong), a step every "
        f"{settings.step_tokens:,.0f} tokens"
    )
    return World(tuple(questions), about)


def simulated_traces(
    traces: Sequence[PoolTrace],
    prompt_tokens: int,
    scores: Sequence[Sequence[float | None]] | None = None,
    contents: Sequence[Sequence[int]] | None = None,
) -> list[SimulatedTrace]:
    """Return the traces of a question as the simulation takes them.

    Args:
        traces: the chosen traces.
        prompt_tokens: tokens of their prompt.
        scores: step scores that stand for their own; those that are not finite are left out.
        contents: what `block_contents` returns.
    """
    out = []
    for index, trace in enumerate(traces):
        own = trace.scores if scores is None else scores[index]
        steps = [
            (position, score)
            for position, score in zip(trace.positions, own, strict=False)
            if score is not None
        ]
        out.append(
            SimulatedTrace(
                "question",
                prompt_tokens,
                trace.tokens,
                [position for position, _ in steps],
                [score for _, score in steps],
                trace.cut,
                None if contents is None else contents[index],
            )
        )
    return out


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
