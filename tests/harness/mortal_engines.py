"""Pretended engines in the processes of replicas, which die when a test wants it."""

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from collect_engine import CollectEngine
from fake_engine import FakeEngine

from step_infer.client.trace import Trace, TracePlan
from step_infer.replicas.replica import Replica


def let_replicas_import_this(patch: pytest.MonkeyPatch) -> None:
    """Let the processes of a Ray cluster that is started from now on find this folder."""
    before = os.environ.get("PYTHONPATH")
    folders = [str(Path(__file__).parent), *([before] if before else [])]
    patch.setenv("PYTHONPATH", os.pathsep.join(folders))


DEADLY = "deadly"
"""The question that kills a `MortalReplica`."""


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
        yield from map(self.trace, taken)


class MortalEngine(FakeEngine):
    """Kills its process after so many traces, unless another one did before."""

    def __init__(self, *arguments: Any, dead: Path, after: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.dead, self.left = dead, after

    def stream(self, *arguments: Any, **options: Any) -> Iterator[Trace]:
        for trace in super().stream(*arguments, **options):
            self.left -= 1
            if self.left == 0 and not self.dead.exists():
                self.dead.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield trace
