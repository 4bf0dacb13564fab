"""Scores the hidden rows that the model turns into logits, once a step, off the host's path.

Shapes: B rows (one a scheduled request, and one for each token drafted for it), H hidden size, V
vocabulary. No vLLM import: the worker plugs this in. Where asked for, the logits give the token
confidence as well: how sure the model is of its next token (DeepConf, arXiv 2508.15260, eq. 2).
"""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from step_infer.gpu_scorer import CapturedScorer, SplitScorer
from step_infer.scorer.network import StepScorer
from step_infer.scorer.token_confidence import token_confidence
from step_infer.wire import StepRows

logger = logging.getLogger("vllm.step_infer")

T = TypeVar("T")

HALVES = (torch.bfloat16, torch.float16)


class HostCopy:
    """A tensor on its way from the device to the host, on the stream that is current."""

    def __init__(self, tensor: Tensor | None) -> None:
        self._device = tensor
        self._host = None if tensor is None else tensor.to("cpu", non_blocking=True)
        self._event = None
        if tensor is not None and tensor.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> Tensor | None:
        """Wait for the copy and return it."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


class SideStream:
    """A CUDA stream beside the model's, so that scoring runs while the GPU samples tokens.

    The model's stream does not wait for it. So what it reads must not be the model's own: a next
    step writes over that.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._ready = torch.cuda.Event()

    def run(self, work: Callable[[], T], *read: Tensor | None) -> T:
        """Queue work on what the model's stream has computed, or will have.

        Args:
            work: queues it, and is called at once.
            read: tensors of the model's stream that it reads; their memory is kept until then.
        """
        # The host does not wait: it queues "begin once the model's stream has come this far".
        self._ready.record()
        self._stream.wait_event(self._ready)
        for tensor in read:
            if tensor is not None:
                # Else the allocator could give its memory to the next step while this reads it.
                tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            return work()

    def join(self) -> None:
        """Let the model's stream go on only after the work that was queued."""
        torch.cuda.current_stream().wait_stream(self._stream)


class PendingRows:
    """Rows on their way from the device to the host."""

    def __init__(self, scores_B: Tensor | None, hidden_BH: Tensor | None) -> None:
        """Start the copies; the device tensors are kept until the rows are dropped."""
        # Started now, waited for in `result`: under async scheduling the host asks for a step's
        # output only after it has queued the next step, so the copies overlap with that.
        self._copies = [HostCopy(scores_B), HostCopy(hidden_BH), HostCopy(None)]

    def add_confidences(self, confidences_B: Tensor) -> None:
        """Start the copy of the rows' token confidences, which come later in a step."""
        self._copies[2] = HostCopy(confidences_B)

    def result(self) -> StepRows:
        """Wait for the copies and return the rows."""
        scores_B, hidden_BH, confidences_B = (copy.wait() for copy in self._copies)
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

    That call receives the final-normed hidden rows of `step_infer.draft_rows`; later calls of the
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
        self._net = scorer
        self._scorer: Callable[[Tensor], Tensor] | None = scorer  # another form of it on CUDA
        self._captured: CapturedScorer | None = None
        self._capture = capture
        self._confidence = confidence
        self._armed = False
        self._warm = not confidence
        self._pending: PendingRows | None = None
        self._side: SideStream | None = None
        self.failed = False

    def __call__(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Do what the model does, and score the rows if a step waits for it."""
        # Disarmed at once: prompt log-probabilities call again in the same step, with other rows.
        armed, self._armed = self._armed, False
        logits = self._compute_logits(hidden_states, *args, **kwargs)
        if not self._warm and logits.is_cuda and not torch.cuda.is_current_stream_capturing():
            self._warm = True  # in vLLM's own warm-up: kernels are compiled before any request
            self._safely(token_confidence, logits)
        if armed:
            # After the logits: their product wants the whole GPU and would wait for scoring; the
            # small kernels that sample from them leave it room.
            self._pending = self._safely(self._score, hidden_states)
        if armed and self._confidence and self._pending is not None:
            # On the model's stream: what comes next may change the logits in place.
            self._safely(self._add_confidences, logits)
        return logits

    def capture_graphs(self, most: int, dtype: torch.dtype) -> None:
        """Score up to `most` rows of a 16-bit type by CUDA graphs, which take less time.

        Call it between steps, on a CUDA device; vLLM's V2 runner warms up with steps before.
        """
        if self._net is not None and dtype in HALVES:
            try:
                self._captured = CapturedScorer(self._net, most, dtype)
            except RuntimeError as error:
                logger.warning("Scoring goes on without CUDA graphs: %s", error)

    def arm(self) -> None:
        """Begin a step: its first `compute_logits` call will be scored."""
        self._pending = None
        self._armed = not self.failed

    def take(self) -> "PendingRows | FailedRows | None":
        """End a step: return its rows, or None where none were computed."""
        pending, self._pending, self._armed = self._pending, None, False
        return FailedRows() if self.failed else pending

    def _safely(self, work: Callable[[Tensor], T], tensor: Tensor) -> T | None:
        """Scoring may never fail a request: after an error, say so once and do no more of it.

        The scheduler hears of it with the step's output, and stops pruning.
        """
        try:
            return work(tensor)
        except Exception:
            self.failed = True
            logger.exception("Scoring failed in the worker.")
            return None

    @torch.inference_mode()
    def _score(self, hidden_BH: Tensor) -> PendingRows:
        """Copy the rows in the model's stream, for its next step overwrites them; score beside."""
        kept_BH = None
        # Clones on the model's own stream come before its next step in order; only what they made
        # is read beside it.
        if self._capture:
            is_half = hidden_BH.dtype in HALVES
            kept_BH = hidden_BH.clone() if is_half else hidden_BH.to(torch.bfloat16)
        read: tuple[Tensor | None, ...] = (kept_BH,)
        score: Callable[[], Tensor | None] = lambda: None  # noqa: E731
        if self._captured is not None and self._captured.fits(hidden_BH):
            if self._side is not None:
                self._side.join()  # the step before has read the states, which are overwritten now
            score = self._captured.load(hidden_BH)
        elif self._scorer is not None:
            rows_BH = hidden_BH.clone() if hidden_BH.is_cuda else hidden_BH
            read, score = (kept_BH, rows_BH), lambda: self._eager(rows_BH)
        return self._beside(hidden_BH.device, lambda: PendingRows(score(), kept_BH), *read)

    def _eager(self, hidden_BH: Tensor) -> Tensor:
        """Return the scores [B] without a graph: on CPU, and where more rows come than captured."""
        assert self._scorer is not None
        is_half = hidden_BH.dtype in HALVES
        if isinstance(self._scorer, StepScorer) and hidden_BH.is_cuda and is_half:
            self._scorer = SplitScorer(self._scorer, hidden_BH.dtype)
        return torch.sigmoid(self._scorer(hidden_BH))

    def _beside(self, device: torch.device, work: Callable[[], T], *read: Tensor | None) -> T:
        """Do work beside the model's stream, where the device has streams."""
        if device.type != "cuda":
            return work()
        self._side = self._side or SideStream()
        return self._side.run(work, *read)

    @torch.inference_mode()
    def _add_confidences(self, logits_BV: Tensor) -> None:
        pending, confidences_B = self._pending, token_confidence(logits_BV)
        assert pending is not None
        # A copy to the host on the model's stream would hold up the sampling that comes next.
        self._beside(
            logits_BV.device, lambda: pending.add_confidences(confidences_B), confidences_B
        )
