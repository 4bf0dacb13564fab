"""The vLLM worker that scores: `worker_cls="step_infer.worker.StepWorker"`.

A shell around the platform's own worker. It wraps the model's `compute_logits` after loading and
attaches the step's scores to what `sample_tokens` returns. Works with both of vLLM's model runners,
with CUDA graphs (the call lies outside them) and with async scheduling (the copy overlaps).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

from step_infer import compat
from step_infer.draft_rows import first_rows
from step_infer.errors import InputError, logged_errors
from step_infer.row_scorer import FailedRows, PendingRows, RowScorer
from step_infer.scorer.identity import identify
from step_infer.scorer.network import StepScorer, load_scorer
from step_infer.settings import StepSettings
from step_infer.wire import ROWS_ATTRIBUTE, UNSCORED_ATTRIBUTE

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker  # type: ignore[assignment]

# In vLLM's own logger tree: its format and level apply.
logger = init_logger(f"vllm.{__name__}")

Drafts = Mapping[str, Sequence[int]]
"""The tokens that were drafted for a step's requests, as the scheduler gives them to the runner."""


class ScoredOutput(AsyncModelRunnerOutput):
    """A step's output whose scores are added when the host asks for it."""

    def __init__(
        self, output: AsyncModelRunnerOutput, rows: PendingRows | FailedRows, drafts: Drafts
    ) -> None:
        self._output = output
        self._rows = rows
        self._drafts = drafts

    def get_output(self) -> ModelRunnerOutput:
        """Wait for the step's tokens, then for its scores, which are ready by then."""
        output = self._output.get_output()
        _attach(output, self._rows, self._drafts)
        return output


class StepWorker(PlatformWorker):
    """vLLM's worker for this platform, plus the step scorer."""

    row_scorer: RowScorer | None = None
    _drafts: Drafts = {}  # noqa: RUF012 -- replaced, never changed

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then put the scorer in front of its `compute_logits`."""
        with logged_errors(logger, self.rank == 0):  # every rank has the same reason
            reason = compat.unsupported_features(self.vllm_config)
            if reason is not None:
                raise InputError(
                    f"Expected an engine without {reason}, which step scoring refuses, found one "
                    "with it."
                )
            settings = StepSettings.from_additional_config(self.vllm_config.additional_config)
            scorer, confidence = self._load_scorer(settings)
        super().load_model(*args, **kwargs)
        if not (get_pp_group().is_last_rank and get_tp_group().is_first_rank):
            return  # only the rank whose output the engine reads needs to score
        if scorer is None and not settings.capture and not confidence:
            return  # boundaries are all that was asked for
        model = self.model_runner.get_model()
        self.row_scorer = RowScorer(model.compute_logits, scorer, settings.capture, confidence)
        model.compute_logits = self.row_scorer

    def compile_or_warm_up_model(self) -> Any:
        """Capture the scorer's CUDA graphs after the model's, where it has any."""
        found = super().compile_or_warm_up_model()
        eager = current_platform.is_cpu() or self.model_config.enforce_eager
        if self.row_scorer is not None and not eager:
            rows = compat.most_rows(self.vllm_config)
            self.row_scorer.capture_graphs(rows, self.model_config.dtype)
        return found

    def _load_scorer(self, settings: StepSettings) -> tuple[StepScorer | None, bool]:
        """Return the scorer, where there is one, and whether confidences are to be computed."""
        if settings.scorer is None:
            return None, settings.confidence
        model = identify(
            self.vllm_config.model_config.model, self.vllm_config.model_config.revision
        )
        scorer, card = load_scorer(settings.scorer, model, settings.allow_mismatch)
        logger.info("Step scorer %s for %s.", settings.scorer, card.shown_model)
        return scorer.to(self.device), settings.confidence or card.confidence_term is not None

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step, with its first logits to be scored if any request asked for it."""
        wanted = not getattr(scheduler_output, UNSCORED_ATTRIBUTE, False)
        if (
            self.row_scorer is not None
            and scheduler_output.total_num_scheduled_tokens > 0
            and wanted
        ):
            self.row_scorer.arm()
            self._drafts = scheduler_output.scheduled_spec_decode_tokens
        return super().execute_model(scheduler_output)

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample the step's tokens and attach its scores."""
        output = super().sample_tokens(grammar_output)
        rows = None if self.row_scorer is None else self.row_scorer.take()
        if rows is None:
            return output
        if isinstance(output, AsyncModelRunnerOutput):
            return ScoredOutput(output, rows, self._drafts)
        if isinstance(output, ModelRunnerOutput):
            if not output.req_ids:
                output = dataclasses.replace(output)  # vLLM shares one object for empty outputs
            _attach(output, rows, self._drafts)
        return output


def _attach(output: ModelRunnerOutput, pending: PendingRows | FailedRows, drafts: Drafts) -> None:
    rows, expected = pending.result(), len(output.req_ids)
    if drafts and not rows.failed:
        rows.first_rows = first_rows([len(drafts.get(name, ())) for name in output.req_ids])
        expected = int(rows.first_rows[-1])
    if rows.failed or rows.count == expected > 0:
        setattr(output, ROWS_ATTRIBUTE, rows)
    elif output.req_ids:
        logger.warning_once("Rows and requests of a step differ in number; not scored.")
