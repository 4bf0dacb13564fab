"""What an answer kind says, whoever asks it."""

from collections.abc import Hashable
from enum import Enum
from functools import lru_cache
from typing import Protocol

from step_infer.client.worker_pool import WorkerProgram

LONGEST_FINAL_PART = 100_000
"""Characters of a response's end in which an answer is looked for."""


class Open(Enum):
    """What stands in the place of what only a worker process can say."""

    OPEN = 0


OPEN = Open.OPEN


class AnswerKind(Protocol):
    """How an answer is found in a response, and when two answers are the same.

    All methods but `extract` and `clean` take answers as `clean` returns them. None of them takes
    long, whatever the texts; what could is left to worker processes, by `OPEN`.
    """

    @property
    def program(self) -> WorkerProgram | None:
        """What says what is `OPEN`; None where nothing ever is.

        Its jobs are [the final part], for an answer or None, and [an answer, another one], for a
        verdict or None.
        """

    def extract(self, text: str, think_end: str | None) -> str | None | Open:
        """Return a whole response's answer; None where it has none.

        Args:
            text: the response.
            think_end: text that ends the thinking, after which alone an answer counts; None where
                nothing does.
        """

    def clean(self, answer: str) -> str:
        """Return an answer or a ground truth without what never says anything, such as spaces."""

    def binding(self, answer: str) -> Hashable:
        """Return a key of an answer: answers of one key are equal, and to the same others."""

    def compare(self, first: str, second: str, in_vote: bool) -> bool | None | Open:
        """Return whether two answers are the same; None where that cannot be said.

        It does not depend on the order of the two.

        Args:
            first: an answer.
            second: another one.
            in_vote: whether they are two of many, of which none is the ground truth.
        """


class KeyedKind:
    """A kind whose answers are the same if they are read as the same: equality is transitive."""

    program: WorkerProgram | None = None

    def __init__(self) -> None:
        self.key = lru_cache(maxsize=10_000)(self.read)

    def read(self, answer: str) -> Hashable | None:
        """Return what an answer says; None where it is no answer of this kind."""
        raise NotImplementedError

    def clean(self, answer: str) -> str:
        """Return an answer without spaces around it."""
        return answer.strip()

    def binding(self, answer: str) -> Hashable:
        """Return what an answer says, or the answer itself where it is not read."""
        key = self.key(answer)
        return (False, answer) if key is None else (True, key)

    def compare(self, first: str, second: str, in_vote: bool) -> bool | None | Open:
        """Return whether two answers say the same; None where one of them is not read."""
        if first == second:
            return True
        keys = self.key(first), self.key(second)
        return None if None in keys else keys[0] == keys[1]


def final_part(text: str, think_end: str | None) -> str:
    """Return the end of a response in which an answer is looked for: what follows the thinking."""
    answer = text.rpartition(think_end)[2] if think_end else text
    return answer[-LONGEST_FINAL_PART:]
