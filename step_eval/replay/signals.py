"""The recorded signals of a trace that is replayed: they stand for the worker's rows.

The engine generates as many tokens as the recorded trace had; where the trace ended a step, its
recorded score counts in the place of the one that the worker has just computed.
"""

import math
from itertools import pairwise
from typing import Any

from step_eval.recorded.traces import PoolTrace
from step_infer.errors import InputError


class RecordedSteps:
    """Step boundaries of a recorded trace [S], with their scores and confidences."""

    __slots__ = ("_confidences", "_last", "_score_at", "_tail")

    def __init__(
        self,
        positions: list[int],
        scores: list[float | None],
        confidences: list[float | None] | None = None,
        tail_confidence: float | None = None,
    ) -> None:
        """Check and keep the signals.

        Args:
            positions: indices of generated tokens, ascending [S].
            scores: step scores [S]; None where one was not finite.
            confidences: mean token confidence of the tokens of each step [S], if recorded.
            tail_confidence: that of the tokens after the last boundary.

        Raises:
            InputError: the lengths differ, or the positions do not ascend from 0.
        """
        if len(positions) != len(scores) or len(confidences or positions) != len(positions):
            raise InputError(
                f"Expected as many scores and confidences as positions ({len(positions)}) in step "
                f"option replay, found {len(scores)} and {len(confidences or ())}."
            )
        if any(after <= before for before, after in pairwise([-1, *positions])):
            raise InputError(
                "Expected ascending positions in step option replay, found others. "
                "Hint: sort them from 0 on, none of them twice."
            )
        self._score_at = {
            position: math.nan if score is None else float(score)
            for position, score in zip(positions, scores, strict=True)
        }
        self._last = positions[-1] if positions else -1
        self._tail = math.nan if tail_confidence is None else float(tail_confidence)
        self._confidences: list[float] | None = None
        if confidences is not None:
            self._confidences = []
            for position, value in zip(positions, confidences, strict=True):
                count = position + 1 - len(self._confidences)
                self._confidences += [math.nan if value is None else float(value)] * count

    @classmethod
    def from_option(cls, value: Any) -> "RecordedSteps":
        """Read the step option `replay`: an object with the arguments of this class.

        Raises:
            InputError: it is no such object.
        """
        try:
            return cls(**value)
        except InputError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                "Expected step option replay with positions and scores, "
                f"found {str(value):.60} ({error})."
            ) from error

    def ends_step(self, position: int) -> bool:
        """Return whether the generated token at a position ended a step."""
        return position in self._score_at

    def score(self, position: int) -> float:
        """Return the score of the boundary at a position; NaN where it was not finite."""
        return self._score_at[position]

    def confidence(self, position: int) -> float:
        """Return the confidence of the token at a position: the mean of its step; NaN unknown."""
        if self._confidences is None or position > self._last:
            return self._tail
        return self._confidences[position]


def signals(trace: PoolTrace) -> dict[str, Any] | None:
    """Return a recorded trace's signals as the scheduler takes them; None without scores.

    Confidences are recorded as means from the first token on; each step's own follows from two.
    """
    if not trace.scores and not trace.confidences:
        return None
    found: dict[str, Any] = {
        "positions": list(trace.positions),
        "scores": list(trace.scores) or [None] * len(trace.positions),
    }
    if trace.confidences:
        ends = [(0, 0.0)] + [
            (position + 1, None if mean is None else mean * (position + 1))
            for position, mean in zip(trace.positions, trace.confidences, strict=True)
        ]
        whole = None if trace.confidence is None else trace.confidence * trace.tokens
        ends.append((trace.tokens, whole))
        steps = [
            None if before is None or after is None else (after - before) / (end - start)
            for (start, before), (end, after) in pairwise(ends)
        ]
        found["confidences"], found["tail_confidence"] = steps[:-1], steps[-1]
    return found
