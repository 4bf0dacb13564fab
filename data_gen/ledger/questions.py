"""Ledger questions: sums of 3-digit numbers modulo 1000, in three splits that never meet."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from step_infer.errors import InputError

SPLITS = ("train", "scorer-train", "test")
"""For the language model, for the step scorer, and for every reported number."""

TERMS = 13
"""Numbers in a question: twelve additions, some 900 tokens a trace with its corrections."""

MODULUS = 1000

# A question's bucket (0-63) decides its split for good: 4 for test, 8 for scorer-train.
_BUCKETS = 64
_TEST_BELOW = 4
_SCORER_BELOW = 12


@dataclass(frozen=True)
class Question:
    """One sum."""

    id: str
    """Unique within its split and seed."""
    numbers: tuple[int, ...]
    """The terms, each 100 to 999."""

    @property
    def text(self) -> str:
        """What the model is asked."""
        return question_text(self.numbers)

    @property
    def answer(self) -> str:
        """The right answer, without leading zeros."""
        return str(sum(self.numbers) % MODULUS)


def question_text(numbers: Sequence[int]) -> str:
    """Return the question for some numbers."""
    return f"{'+'.join(map(str, numbers))} mod {MODULUS} = ?"


def split_of(numbers: Sequence[int]) -> str:
    """Return the one split that a list of numbers belongs to.

    A keyed hash of the list decides, so the splits are disjoint whatever the seeds are.
    """
    digest = hashlib.blake2b(
        ",".join(map(str, numbers)).encode(), digest_size=4, key=b"ledger-split-1"
    ).digest()
    bucket = digest[0] % _BUCKETS
    if bucket < _TEST_BELOW:
        return "test"
    return "scorer-train" if bucket < _SCORER_BELOW else "train"


def draw_numbers(split: str, rng: random.Random, terms: int = TERMS) -> tuple[int, ...]:
    """Draw the numbers of one question of a split, uniformly."""
    uniform = rng.random
    while True:
        numbers = tuple([100 + int(900 * uniform()) for _ in range(terms)])
        if split_of(numbers) == split:
            return numbers


def iter_questions(split: str, seed: int = 0) -> Iterator[Question]:
    """Yield a split's questions without end: the same for the same seed, none of them twice.

    Raises:
        InputError: no such split.
    """
    if split not in SPLITS:
        raise InputError(f"Expected a split out of {', '.join(SPLITS)}, found {split!r}.")
    rng = random.Random(f"ledger/{split}/{seed}")
    seen: set[tuple[int, ...]] = set()
    while True:
        numbers = draw_numbers(split, rng)
        if numbers not in seen:
            yield Question(f"ledger-{split}-{seed}-{len(seen):05d}", numbers)
            seen.add(numbers)
