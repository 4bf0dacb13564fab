"""What a trace's token confidence adds to its step scores.

A scorer sees one state; how sure the model has been of all its tokens so far is another signal of
the same trace. The worker knows the state, the scheduler the confidences, and a logit is a sum: so
the scheduler adds the second part to the first.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from step_infer.errors import InputError

_NAMES = {"weight", "mean"}


@dataclass(frozen=True)
class ConfidenceTerm:
    """A linear term of a step score's logit."""

    weight: float
    """What the logit gains for each nat of confidence."""
    mean: float
    """The confidence that changes nothing: the mean of the steps that the weight was chosen on."""

    @classmethod
    def from_dict(cls, value: dict[str, Any], source: str) -> "ConfidenceTerm | None":
        """Read a scorer card's field; None where it is empty.

        Raises:
            InputError: other names than "weight" and "mean", or no finite numbers.
        """
        if not value:
            return None
        numbers = value.values()
        known = all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
        if value.keys() != _NAMES or not known:
            raise InputError(
                "Expected finite numbers for weight and mean under confidence (scorer card), "
                f"found {str(value)!r:.100} in {source}. Hint: export the scorer again."
            )
        return cls(float(value["weight"]), float(value["mean"]))

    def logits(self, confidence_S: np.ndarray) -> np.ndarray:
        """Return what is added to the logits of steps [S].

        Args:
            confidence_S: mean token confidence of the trace's tokens up to and with the boundary.
        """
        return self.weight * (confidence_S - self.mean)

    def score(self, score: float, confidence: float | None) -> float:
        """Return a step score with the term in it; NaN where the confidence is not known.

        Args:
            score: the network's own, from 0 to 1.
            confidence: as above, of this step.
        """
        if confidence is None or not math.isfinite(confidence + score):
            return math.nan
        if not 0 < score < 1:  # rounded: no finite term would change it
            return score
        logit = math.log(score / (1 - score)) + self.weight * (confidence - self.mean)
        return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0
