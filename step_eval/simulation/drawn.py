"""Traces drawn from distributions, for a simulation without recorded ones."""

from dataclasses import dataclass

import numpy as np

from step_eval.recorded.traces import PoolQuestion, PoolTrace, TracePool
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
class DrawnTraces:
    """The distributions that traces are drawn from, where none were recorded."""

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
            raise InputError(f"Expected --drawn.right-share in (0, 1), found {self.right_share}.")
        for name in ("right_tokens", "wrong_tokens", "step_tokens"):
            if getattr(self, name) <= 0:
                raise InputError(f"Expected {_option(name)} above 0, found {getattr(self, name)}.")


def _option(name: str) -> str:
    return "--drawn." + name.replace("_", "-")


def draw_pool(settings: DrawnTraces, count: int, size: int, seed: int) -> TracePool:
    """Draw `count` questions with `size` traces each."""
    rng = np.random.default_rng([seed, 1])
    a = settings.right_share * _RIGHT_SPREAD
    b = (1 - settings.right_share) * _RIGHT_SPREAD
    weights = np.arange(1, WRONG_ANSWERS + 1) ** -_WRONG_FOCUS
    weights /= weights.sum()
    questions = []
    for number in range(count):
        share = rng.beta(a, b)
        factor = np.exp(rng.normal(0, _QUESTION_SIGMA))
        right_N = rng.random(size) < share
        median_N = np.where(right_N, settings.right_tokens, settings.wrong_tokens) * factor
        tokens_N = np.ceil(median_N * np.exp(rng.normal(0, _TOKENS_SIGMA, size)))
        wrong_N = rng.choice(WRONG_ANSWERS, size, p=weights)
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
    return TracePool(tuple(questions), about)
