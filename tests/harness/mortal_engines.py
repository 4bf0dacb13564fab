"""Pretended engines in the processes of replicas, which die when a test wants it."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from collect_engine import CollectEngine
from fake_engine import FakeEngine

from step_infer.client.trace import Trace, TracePlan
from step_infer.replicas.replica import Replica

DEADLY = "deadly"
"""The question that kills a `MortalReplica`."""
ENDLESS = "endless"
"""The one that it never answers."""
_TRACE_S = 0.05


class MortalReplica(Replica):
    """Dies with all the orders that it has when the deadly question is among them."""

    def engine(self, options: dict[str, Any]) -> Any:
        return _MortalCollectEngine()(**options)


class _MortalCollectEngine(CollectEngine):
    max_model_len = 4096

    def stream(self, plans: Iterable[TracePlan | None], **_: Any) -> Iterator[Trace]:
        taken = []
        for plan in plans:
            if plan is None:
                break
            taken.append(plan)
        if any(plan.question_id == DEADLY for plan in taken):
            os._exit(1)
        for plan in taken:
            time.sleep(3600 if plan.question_id == ENDLESS else _TRACE_S)
            yield self.trace(plan)


class StillbornReplica(Replica):
    """Dies as its engine starts."""

    def engine(self, options: dict[str, Any]) -> Any:
        os._exit(1)


class MortalEngine(FakeEngine):
    """Kills its process, or its node, after so many traces, unless another one did before."""

    def __init__(
        self, *arguments: Any, dead: Path, after: int, with_node: bool = False, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.dead, self.left, self.with_node = dead, after, with_node

    def stream(self, *arguments: Any, **options: Any) -> Iterator[Trace]:
        for trace in super().stream(*arguments, **options):
            self.left -= 1
            if self.left == 0:
                with suppress(FileExistsError):
                    self.dead.touch(exist_ok=False)
                    # A worker's parent is Ray's daemon of its node; it outlives that by a moment.
                    os.kill(os.getppid() if self.with_node else os.getpid(), signal.SIGKILL)
                    time.sleep(3600)
            yield trace
