"""Slim-SC (arXiv 2509.13990): of two running traces that think the same, one is stopped.

When a trace completes a thought, it is compared with the latest thought of every other running
trace of the question; above a cosine similarity, one of the closest pair is stopped: a random one,
or the one whose own thoughts are less diverse. All of it happens in the client, on stock vLLM.
A thought is a step (`BoundaryRule`) or, where steps are short, some of them together; the authors
cut at phrases that open a new one. Thoughts become vectors whose dot product says how alike they
are: counts of hashed n-grams, or those of an encoder.
"""

import functools
import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from step_infer.client.llm import StepLLM
from step_infer.client.trace import Trace, TraceKey, TracePlan
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryRule, BoundaryState

Encoder = Callable[[Sequence[str]], NDArray[np.float32]]
"""From N texts to unit vectors [N, D]."""

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
        llm: StepLLM,
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
        monitor = ThoughtMonitor(self, encode, llm.rule, llm.tokenizer.decode, plans, min_keep)
        return llm.stream(plans, max_in_flight=len(plans), on_step=on_step, stop=monitor.stop)


class _Thoughts:
    """The thoughts of one running trace."""

    def __init__(self) -> None:
        self.seen = 0  # tokens looked at
        self.start = 0  # of the thought that is being written
        self.boundary_state = BoundaryState()
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


class ThoughtMonitor:
    """The running traces of one question and their thoughts."""

    def __init__(
        self,
        settings: SlimSC,
        encode: Encoder,
        rule: BoundaryRule,
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
            if not trace.boundary_state.thinking:
                break
            ends = self._rule.ends_step(trace.boundary_state, token_ids[position], position)
            ends = ends or not trace.boundary_state.thinking
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


_BUCKETS = 4096
_MOST_WORDS = 3
_WORD = re.compile(r"\w+|[^\w\s]")
_BATCH = 32


def hashed_ngrams(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return counts of hashed runs of 1 to 3 words or marks, as unit vectors [N, D].

    A text without words is the zero vector.
    """
    vectors_ND = np.stack([_counts(_WORD.findall(text.lower())) for text in texts])
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.maximum(lengths_N1, 1e-9)


def _counts(words: list[str]) -> NDArray[np.float32]:
    buckets = [
        zlib.crc32(" ".join(words[start : start + size]).encode()) % _BUCKETS
        for size in range(1, _MOST_WORDS + 1)
        for start in range(len(words) - size + 1)
    ]
    return np.bincount(np.array(buckets, int), minlength=_BUCKETS).astype(np.float32)


@functools.cache
def load_encoder(path: str) -> Encoder:
    """Return the encoder that an embedding model makes by the mean over a text's tokens.

    Args:
        path: folder of a Hugging Face model that `transformers.AutoModel` can read.

    Raises:
        InputError: there is no such model.
    """
    check_encoder(path)
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModel.from_pretrained(path, local_files_only=True).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"Expected an embedding model at {path}, found: {reason[:200].rstrip('.')}. "
            "Hint: without --slim.encoder, hashed n-grams are compared."
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    longest = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        found = []
        for start in range(0, len(texts), _BATCH):
            batch = tokenizer(
                list(texts[start : start + _BATCH]),
                padding=True,
                truncation=True,
                max_length=min(longest, 512),
                return_tensors="pt",
            ).to(device)
            batch.pop("token_type_ids", None)
            hidden_BTH = model(**batch).last_hidden_state.float()
            mask_BT1 = batch["attention_mask"].unsqueeze(-1)
            mean_BH = (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
            found.append(torch.nn.functional.normalize(mean_BH, dim=-1).cpu().numpy())
        return np.concatenate(found)

    return encode


def check_encoder(path: str) -> None:
    """Check that a folder may hold an embedding model, without reading it.

    Raises:
        InputError: it holds none.
    """
    if not (Path(path) / "config.json").is_file():
        raise InputError(
            f"Expected the folder of an embedding model (with config.json), found {path!r}. "
            "Hint: without --slim.encoder, hashed n-grams are compared."
        )
