"""Scores the hidden rows that the model turns into logits, once a step, off the host's path.

Shapes: B rows (one a scheduled request), H hidden size. No vLLM import: the worker plugs this in.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from step_infer.confidence import token_confidence
from step_infer.scorer import StepScorer

logger = logging.getLogger("vllm.step_infer")

ROWS_ATTRIBUTE = "step_rows"
"""Attribute of a `ModelRunnerOutput` that carries its `StepRows`."""


@dataclass
class StepRows:
    """What a step's `ModelRunnerOutput` carries to the scheduler; rows follow its `req_ids`."""

    scores_B: np.ndarray | None
    """Step scores float32 [B]; None without a scorer."""
    hidden_BH: np.ndarray | None = None
    """Hidden states as 16-bit patterns uint16 [B, H]; None unless captured."""
    dtype: str = "bfloat16"
    """Torch type of `hidden_BH`'s patterns."""
    confidences_B: np.ndarray | None = None
    """Confidences float32 [B] of the tokens sampled in this step; None unless asked for.

    Mind that a row's score and state belong to its input token, the one before."""
    failed: bool = False
    """Scoring failed in the worker, in this step or before; then there are no rows."""

    @property
    def count(self) -> int:
        """The number of rows B."""
        columns = (self.scores_B, self.hidden_BH, self.confidences_B)
        return next((len(column) for column in columns if column is not None), 0)


class PendingRows:
    """Rows on their way from the device to the host."""

    def __init__(
        self,
        scores_B: Tensor | None,
        hidden_BH: Tensor | None,
        confidences_B: Tensor | None = None,
    ) -> None:
        """Start the copies; the device tensors are kept until `result`."""
        self._device = (scores_B, hidden_BH, confidences_B)
        on_cuda = any(tensor is not None and tensor.is_cuda for tensor in self._device)
        self._host = [None if t is None else t.to("cpu", non_blocking=True) for t in self._device]
        self._event = torch.cuda.Event() if on_cuda else None
        if self._event is not None:
            self._event.record()

    def result(self) -> StepRows:
        """Wait for the copies and return the rows."""
        if self._event is not None:
            self._event.synchronize()
        scores_B, hidden_BH, confidences_B = self._host
        return StepRows(
            None if scores_B is None else scores_B.numpy(),
            None if hidden_BH is None else hidden_BH.view(torch.uint16).numpy(),
            "bfloat16" if hidden_BH is None else str(hidden_BH.dtype).removeprefix("torch."),
            None if confidences_B is None else confidences_B.numpy(),
        )


class FailedRows:
    """Stands for the rows of each step once scoring has failed."""

    def result(self) -> StepRows:
        """Return no rows, and word of the failure."""
        return StepRows(None, failed=True)


class RowScorer:
    """Stands in front of a model's `compute_logits` and scores the first call of each step.

    That call receives one final-normed hidden row for each scheduled request; later calls of the
    same step (prompt log-probabilities) and calls outside steps (profiling) are passed through.
    """

    def __init__(
        self,
        compute_logits: Callable[..., Tensor],
        scorer: StepScorer | None,
        capture: bool,
        confidence: bool = False,
    ) -> None:
        self._compute_logits = compute_logits
        self._scorer = scorer
        self._capture = capture
        self._confidence = confidence
        self._armed = False
        self._pending: PendingRows | None = None
        self.failed = False

    def __call__(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Do what the model does, and score the rows if a step waits for it."""
        logits = self._compute_logits(hidden_states, *args, **kwargs)
        if self._armed:
            self._armed = False
            try:
                self._pending = self._launch(hidden_states, logits)
            except Exception:
                # Scoring may never fail a request: switch it off, say so once, carry on.
                # The scheduler hears of it with this step's output, and stops pruning.
                self.failed = True
                logger.exception("Scoring failed in the worker.")
        return logits

    def arm(self) -> None:
        """Begin a step: its first `compute_logits` call will be scored."""
        self._pending = None
        self._armed = not self.failed

    def take(self) -> "PendingRows | FailedRows | None":
        """End a step: return its rows, or None where none were computed."""
        pending, self._pending, self._armed = self._pending, None, False
        return FailedRows() if self.failed else pending

    @torch.inference_mode()
    def _launch(self, hidden_BH: Tensor, logits_BV: Tensor) -> PendingRows:
        scores_B = None
        if self._scorer is not None:
            scores_B = torch.sigmoid(self._scorer(hidden_BH))
        kept_BH = None
        if self._capture:
            is_half = hidden_BH.dtype in (torch.bfloat16, torch.float16)
            kept_BH = hidden_BH.clone() if is_half else hidden_BH.to(torch.bfloat16)
        confidences_B = token_confidence(logits_BV) if self._confidence else None
        return PendingRows(scores_B, kept_BH, confidences_B)
