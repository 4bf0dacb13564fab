"""The scheduler of a replay: a trace's recorded signals stand for those of the worker's rows.

`scheduler_cls="step_eval.replay.scheduler.ReplayScheduler"`. The worker scores as always, so that
its time counts; where a trace brings recorded signals (step option `replay`), they are used.
"""

import sys
from dataclasses import dataclass
from typing import Any

from step_eval.methods.victim_scheduler import (
    RankedOptions,
    RankedTrace,
    RankedTraces,
    VictimScheduler,
)
from step_eval.replay.signals import RecordedSteps
from step_infer.errors import InputError
from step_infer.live_traces import LiveTrace
from step_infer.wire import StepRows


@dataclass(frozen=True)
class ReplayOptions(RankedOptions):
    """A request's options, and the recorded signals of its trace."""

    replay: dict[str, Any] | None = None
    """The arguments of `RecordedSteps`."""

    def check(self, as_text: bool) -> None:
        """Refuse values that cannot be; see `RequestOptions.check`."""
        super().check(as_text)
        if self.replay is not None and as_text:
            raise InputError(
                "Expected step option replay in offline requests only, found a text. "
                "Hint: give extra_args a dictionary, not JSON."
            )


class ReplayTrace(RankedTrace):
    """A running trace that may go by recorded signals."""

    __slots__ = ("recorded",)

    def __init__(self, request_id: str, options: ReplayOptions, *settings: Any) -> None:
        super().__init__(request_id, options, *settings)
        given = options.replay
        self.recorded = None if given is None else RecordedSteps.from_option(given)


class ReplayTraces(RankedTraces):
    """Running traces that may go by recorded signals."""

    trace_class = ReplayTrace

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.marks = range(sys.maxsize)  # boundaries go by position: every token must be seen

    def _ends_step(self, trace: LiveTrace, token_id: int) -> bool:
        recorded = _recorded(trace)
        if recorded is None:
            return super()._ends_step(trace, token_id)
        return recorded.ends_step(trace.num_tokens - 1)

    def _take_confidence(self, trace: LiveTrace, confidence: float) -> bool:
        recorded = _recorded(trace)
        if recorded is not None:
            confidence = recorded.confidence(trace.num_tokens - 1)
        return super()._take_confidence(trace, confidence)

    def _score(self, trace: LiveTrace, rows: StepRows | None, row: int) -> float:
        recorded = _recorded(trace)
        if recorded is None:
            return super()._score(trace, rows, row)
        return recorded.score(trace.num_tokens - 1)


class ReplayScheduler(VictimScheduler):
    """A scheduler whose traces may go by recorded signals."""

    options_class = ReplayOptions
    traces_class = ReplayTraces


def _recorded(trace: LiveTrace) -> RecordedSteps | None:
    assert isinstance(trace, ReplayTrace)
    return trace.recorded
