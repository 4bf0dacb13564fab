"""Slim-SC (arXiv 2509.13990): of two running traces that think the same, one is stopped.

When a trace completes a thought, it is compared with the latest thought of every other running
trace of the question; above a cosine similarity, one of the closest pair is stopped: a random one,
or the one whose own thoughts are less diverse. All of it happens in the client, on stock vLLM.
A thought is a step (`BoundaryRule`) or, where steps are short, some of them together; the authors
cut at phrases that open a new one.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from step_infer.errors import InputError
from step_infer.thought_encoder import Encoder, check_encoder, hashed_ngrams, load_encoder
from step_infer.trace import Trace, TraceKey, TracePlan

if TYPE_CHECKING:
    from step_infer.boundary import BoundaryRule
    from step_infer.client import StepLLM

CHOICES = ("random", "diversity")


@dataclass(frozen=True)
class SlimSC:
    """Slim-SC with its settings.

    Raises:
        InputError: a setting is out of range, or the encoder is not there.
    """

    threshold: float = 0.95
    """Cosine similarity of two thoughts above which one of the traces is stopped."""
    choice: str = "diversity"
    """Which of the two is stopped: random, or diversity: the one of less diverse thoughts."""
    encoder: str | None = None
    """Folder of an embedding model for thoughts; without one, hashed n-grams are compared."""
    min_tokens: int = 25
    """Tokens of a thought; shorter steps are joined with the next."""
    min_thoughts: int = 2
    """Thoughts that a trace must have before it is compared: first thoughts tend to be alike."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError(f"Expected --slim.threshold in (0, 1], found {self.threshold}.")
        if self.choice not in CHOICES:
            raise InputError(
                f"Expected --slim.choice out of {', '.join(CHOICES)}, found {self.choice!r}."
            )
        for name in ("min_tokens", "min_thoughts"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"Expected --slim.{name.replace('_', '-')} of at least 1, "
                    f"found {getattr(self, name)}."
                )
        if self.encoder is not None:
            check_encoder(self.encoder)

    def stream(
        self,
        llm: "StepLLM",
        plans: Sequence[TracePlan],
        on_step: Callable[[], None] | None = None,
        min_keep: int = 1,
    ) -> Iterator[Trace]:
        """Sample the traces of one question and yield each as it finishes or is stopped.

        Args:
            llm: an engine, stock or not.
            plans: the question's orders.
            on_step: called after every engine step.
            min_keep: traces of the question that always stay.
        """
        encode = hashed_ngrams if self.encoder is None else load_encoder(self.encoder)
        rivals = Rivals(self, encode, llm.rule, llm.tokenizer.decode, plans, min_keep)
        return llm.stream(plans, max_in_flight=len(plans), on_step=on_step, stop=rivals.stop)


class _Thoughts:
    """The thoughts of one running trace."""

    def __init__(self) -> None:
        self.seen = 0  # tokens looked at
        self.start = 0  # of the thought that is being written
        self.thinking = True
        self.count = 0
        self.latest = self._total = np.zeros(1, np.float32)

    def add(self, vector_D: NDArray[np.float32]) -> None:
        """Take in the vector of a completed thought."""
        self.count += 1
        self.latest = vector_D
        self._total = self._total + vector_D

    @property
    def sameness(self) -> float:
        """The mean similarity of its pairs of thoughts; 0 with one thought."""
        if self.count < 2:
            return 0.0
        # Of unit vectors: |sum|^2 = count + 2 x the sum over pairs.
        pairs = float(self._total @ self._total) - self.count
        return pairs / (self.count * (self.count - 1))


class Rivals:
    """The running traces of one question and their thoughts."""

    def __init__(
        self,
        settings: SlimSC,
        encode: Encoder,
        rule: "BoundaryRule",
        decode: Callable[[list[int]], str],
        plans: Sequence[TracePlan],
        min_keep: int = 1,
    ) -> None:
        self._settings = settings
        self._encode = encode
        self._rule = rule
        self._decode = decode
        self._thoughts: dict[TraceKey, _Thoughts] = {plan.key: _Thoughts() for plan in plans}
        self._can_lose = len(plans) - min_keep
        seeds = [(plan.question_id, plan.trace_id, plan.seed) for plan in plans]
        self._random = random.Random(zlib.crc32(repr(seeds).encode()))

    def stop(self, running: Mapping[TraceKey, Sequence[int]]) -> list[TraceKey]:
        """Return the traces to stop, given all tokens so far of the running ones."""
        completed = [
            (key, self._decode(list(thought)))
            for key, token_ids in running.items()
            for thought in self._completed(self._thoughts[key], token_ids)
        ]
        if not completed:
            return []
        vectors_ND = self._encode([text for _, text in completed])
        active = {key: self._thoughts[key] for key in running}
        stopped: list[TraceKey] = []
        for (key, _), vector_D in zip(completed, vectors_ND, strict=True):
            if key not in active:
                continue
            active[key].add(vector_D)
            victim = self._victim(key, active)
            if victim is not None and self._can_lose > 0:
                del active[victim]
                self._can_lose -= 1
                stopped.append(victim)
        return stopped

    def _completed(self, trace: _Thoughts, token_ids: Sequence[int]) -> Iterator[Sequence[int]]:
        for position in range(trace.seen, len(token_ids)):
            if not trace.thinking:
                break
            token = token_ids[position]
            trace.thinking = token != self._rule.think_end_id
            ends = not trace.thinking or self._rule.is_boundary(token, position)
            if ends and position + 1 - trace.start >= self._settings.min_tokens:
                yield token_ids[trace.start : position + 1]
                trace.start = position + 1
        trace.seen = len(token_ids)

    def _victim(self, key: TraceKey, active: Mapping[TraceKey, _Thoughts]) -> TraceKey | None:
        least = self._settings.min_thoughts
        own = active[key]
        if own.count < least:
            return None
        others = [other for other in active if other != key and active[other].count >= least]
        if not others:
            return None
        latest_ND = np.stack([active[other].latest for other in others])
        similarity_N = latest_ND @ own.latest
        closest = int(similarity_N.argmax())
        if similarity_N[closest] <= self._settings.threshold:
            return None
        other = others[closest]
        if self._settings.choice == "random":
            return self._random.choice((key, other))
        return key if own.sameness > active[other].sameness else other
