"""STEP with another victim, for comparisons: the scheduler that `victims.ABLATIONS` run on.

vLLM loads it by its dotted path, as it does `StepScheduler`:
`scheduler_cls="step_eval.methods.victim_scheduler.VictimScheduler"`, with
`additional_config={"step": {...}, "step_eval": {"victim": "longest"}}`.
"""

from dataclasses import dataclass
from typing import Any

from step_eval.methods.victims import VICTIMS, victim_rank
from step_infer.errors import InputError
from step_infer.live_traces import LiveTrace, LiveTraces
from step_infer.scheduler import StepScheduler
from step_infer.settings import RequestOptions, finite

EVAL_KEY = "step_eval"
"""Key of these settings in the engine's `additional_config`, beside the adapter's."""


@dataclass(frozen=True)
class RankedOptions(RequestOptions):
    """A request's options, and the number that its trace is chosen by."""

    rank: float | None = None
    """With the victim "rank", the trace of the lowest is stopped first; one without, last."""

    def check(self, as_text: bool) -> None:
        """Refuse values that cannot be; see `RequestOptions.check`."""
        super().check(as_text)
        if self.rank is not None and not finite(self.rank):
            raise InputError(
                f"Expected step option rank to be a finite number, found {self.rank!r:.60}."
            )


class RankedTrace(LiveTrace):
    """A running trace that may have come with a rank."""

    __slots__ = ("rank",)

    def __init__(self, request_id: str, options: RankedOptions, *settings: Any) -> None:
        super().__init__(request_id, options, *settings)
        self.rank = options.rank


class RankedTraces(LiveTraces):
    """Running traces that may have come with a rank."""

    trace_class: type[LiveTrace] = RankedTrace


class VictimScheduler(StepScheduler):
    """A StepScheduler that stops the youngest, the longest, … instead of the worst.

    Who may be stopped, when, and of which group stay as they are.
    """

    options_class: type[RequestOptions] = RankedOptions
    traces_class: type[LiveTraces] = RankedTraces
    victim = "score"
    """One of `victims.VICTIMS`."""

    def _start(self) -> None:
        super()._start()
        found = self.vllm_config.additional_config.get(EVAL_KEY) or {}
        self.victim = found.get("victim", self.victim)
        if self.victim not in VICTIMS:
            raise InputError(
                f"Expected step_eval setting victim out of {', '.join(VICTIMS)}, "
                f"found {self.victim!r:.60}."
            )
        if self.victim == "least-confident" and not self.settings.confidence:
            raise InputError(
                "Expected step setting confidence beside victim least-confident, found none. "
                "Hint: choose another victim, or set confidence to true."
            )

    def _rank(self, trace: LiveTrace) -> float | None:
        if self.victim == "score" or trace.score is None:  # unscored traces are never stopped
            return trace.score
        assert isinstance(trace, RankedTrace)
        return victim_rank(self.victim, trace.num_tokens, trace.confidence, trace.rank)
