"""DeepConf online (arXiv 2508.15260, section 3.3): unsure traces are stopped while they run.

The first traces of a question run to their ends and give the threshold, a percentile of their
lowest group confidences; the others are stopped by the scheduler when a group falls below it.
Traces below it do not vote, warm-up traces included, as in the authors' code; the others vote by
their lowest group confidence. The number of traces is fixed; with the suffix `+decided` a question
ends early when its votes agree, as in the paper's adaptive sampling.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from step_infer.client.llm import StepLLM
from step_infer.client.trace import Trace, TracePlan
from step_infer.errors import InputError
from step_infer.scorer.group_confidence import WINDOW

WARMUP = 16
"""Warm-up traces in the paper."""
CONSENSUS_SHARE = 0.95
"""Part of the weight that the leading answer has when the votes agree, as in the paper."""
LOW, HIGH = 90.0, 10.0
"""Percentiles of DeepConf-low, which keeps the top 10 %, and DeepConf-high: the top 90 %."""


@dataclass(frozen=True)
class DeepConf:
    """DeepConf online with its settings.

    Raises:
        InputError: a setting is out of range.
    """

    percentile: float = LOW
    """Percentile of the warm-up traces' lowest group confidences that is the threshold."""
    warmup: int = WARMUP
    """Warm-up traces of a question."""
    window: int = WINDOW
    """Tokens of a group."""

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= 100:
            raise InputError(f"Expected a percentile in [0, 100], found {self.percentile}.")
        for name in ("warmup", "window"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected {name} of at least 1, found {getattr(self, name)}.")

    def threshold(self, traces: Iterable[Trace]) -> float | None:
        """Return the threshold that warm-up traces give; None if they have no confidences."""
        known = [
            trace.lowest_group_confidence
            for trace in traces
            if trace.lowest_group_confidence is not None
        ]
        return float(np.percentile(known, self.percentile)) if known else None

    def stream(
        self,
        llm: StepLLM,
        plans: Sequence[TracePlan],
        on_step: Callable[[], None] | None = None,
    ) -> Iterator[Trace]:
        """Sample the traces of one question and yield each as it finishes.

        When the iterator ends, `Trace.filtered` says which of them do not vote.

        Args:
            llm: an engine with `confidence=True`.
            plans: the question's orders; the first are the warm-up.
            on_step: called after every engine step.
        """
        first = [_asking(plan, window=self.window) for plan in plans[: self.warmup]]
        ended = []
        for trace in llm.stream(first, max_in_flight=len(first), on_step=on_step):
            ended.append(trace)
            yield trace
        bar = self.threshold(ended)
        for trace in ended:
            trace.filtered = _is_below(trace, bar)
        stop = {} if bar is None else {"stop_below": bar}
        rest = [_asking(plan, window=self.window, **stop) for plan in plans[self.warmup :]]
        for trace in llm.stream(rest, max_in_flight=len(rest), on_step=on_step) if rest else ():
            trace.filtered = _is_below(trace, bar)
            yield trace


def _asking(plan: TracePlan, **options: float) -> TracePlan:
    return replace(plan, options={**plan.options, **options})


def _is_below(trace: Trace, bar: float | None) -> bool:
    lowest = trace.lowest_group_confidence
    return not trace.stopped and bar is not None and lowest is not None and lowest < bar
