"""One replica: an engine in a process of Ray's, which is handed orders while it runs."""

import os
import queue
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from step_infer.client.trace import Trace, TraceKey, TracePlan


@dataclass(frozen=True)
class Started:
    """What a replica says first."""

    pid: int


@dataclass(frozen=True)
class EngineStarted(Started):
    """What a replica says whose engine starts with it."""

    max_model_len: int


@dataclass(frozen=True)
class Finished:
    """A trace that has ended."""

    trace: Trace
    """Without its answer, which the caller extracts."""
    think_ends: tuple[str | None, ...]
    """The argument `think_end` of its order's `extract`; empty where that is not to be called."""
    generated_tokens: int
    """By this engine so far, those of running traces too."""


class OrderTaker:
    """A process that takes orders from `add` while its `run` yields what came of them.

    The two are called from different threads.
    """

    def __init__(self, log: Path | None) -> None:
        """Make a replica without an engine.

        Args:
            log: file to which this process's output goes from now on, where its folder is seen
                from this node; None leaves it to Ray.
        """
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        if log is not None and log.parent.is_dir():
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.close(file)

    def add(self, orders: Iterable[Any]) -> None:
        """Take orders."""
        for order in orders:
            self.inbox.put(order)


class Replica(OrderTaker):
    """An engine that samples traces; the `extract` of its orders is not called."""

    def __init__(self, log: Path | None) -> None:
        super().__init__(log)
        self._think_ends: dict[TraceKey, str | None] = {}

    def run(self, options: dict[str, Any]) -> Iterator[Started | Finished]:
        """Start the engine, and yield each trace as it finishes, without end.

        Args:
            options: of `StepLLM`.

        Raises:
            InputError: as `StepLLM`.
        """
        engine = self.engine(options)
        yield EngineStarted(os.getpid(), engine.max_model_len)
        while True:
            first = self.inbox.get()
            # The caller minds how many it hands over.
            for trace in engine.stream(self._orders(first), max_in_flight=2**31):
                key = trace.question_id, trace.trace_id
                ends = (self._think_ends.pop(key),) if key in self._think_ends else ()
                yield Finished(trace, ends, engine.stats().generated_tokens)

    def engine(self, options: dict[str, Any]) -> Any:
        """Start the engine: a `StepLLM`, whose import takes seconds."""
        from step_infer.client.llm import StepLLM

        return StepLLM(**options)

    def _orders(self, first: TracePlan) -> Iterator[TracePlan | None]:
        yield self._noting(first)
        while True:
            try:
                yield self._noting(self.inbox.get_nowait())
            except queue.Empty:
                yield None

    def _noting(self, order: TracePlan) -> TracePlan:
        def extract(text: str, think_end: str | None) -> None:
            self._think_ends[order.key] = think_end

        return replace(order, extract=extract)
