"""An evaluation's questions shared out over replicas, each question with all its methods on one."""

import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from data_gen.questions.load import Question
from step_eval.asking import Asked, Asker, EngineSetup, RecordKey
from step_eval.manifest import device_name
from step_eval.records import QuestionRecord, TraceRecord
from step_infer.cli.progress import TraceProgress
from step_infer.client.grading import Grader
from step_infer.client.trace import Trace
from step_infer.replicas.actors import ActorPool, Member
from step_infer.replicas.replica import OrderTaker, Started

_LOOK_EVERY_S = 1.0

Place = tuple[str, int, Question]
"""A method, a repeat and a question."""


@dataclass(frozen=True)
class AskerStarted(Started):
    """What a replica says before it starts an engine."""

    device: str
    place: tuple[str, ...]
    """Its node, and its GPUs there."""


@dataclass(frozen=True)
class _Ended:
    """A trace that has finished, as far as progress counts it."""

    own_tokens: int
    is_branch: bool

    @classmethod
    def of(cls, trace: Trace | TraceRecord) -> Self:
        return cls(trace.own_tokens, trace.parent is not None)


class AskingReplica(OrderTaker):
    """A process that asks questions one after the other, and grades them."""

    def __init__(self, log: Path | None) -> None:
        super().__init__(log)
        self._now: tuple[RecordKey | None, list[_Ended]] = (None, [])

    def run(
        self, setup: EngineSetup, kv_budget_tokens: int | None
    ) -> Iterator[AskerStarted | QuestionRecord]:
        """Yield the record of each question, without end.

        Args:
            setup: how engines start.
            kv_budget_tokens: size of each one's KV cache; None takes what memory gives.

        Raises:
            InputError: as the engines.
        """
        import ray

        gpus = [str(gpu) for gpu in ray.get_gpu_ids()]
        node = ray.get_runtime_context().get_node_id()
        yield AskerStarted(os.getpid(), device_name(), (node, *gpus))
        config = setup.config
        with (
            Grader(answers=config.answer_options) as grader,
            Asker(setup, kv_budget_tokens, grader, lock_files(config.device_lock, gpus)) as asker,
        ):
            grader.warm_up()
            while True:
                asked: Asked = self.inbox.get()
                self._now = asked.key, []
                yield asker.ask(asked, on_trace=self._note)

    def finished(self) -> tuple[RecordKey | None, list[_Ended]]:
        """Return the question of now, and each of its traces that has finished."""
        key, ended = self._now
        return key, list(ended)

    def _note(self, trace: Trace) -> None:
        self._now[1].append(_Ended.of(trace))


def lock_files(path: str | None, gpus: Sequence[str]) -> list[str]:
    """Return the lock files of a replica: one for each of its GPUs, else the one that was given.

    Args:
        path: of the option; None: no lock.
        gpus: the replica's, by their numbers on its node.
    """
    if path is None:
        return []
    return [f"{path}.gpu{gpu}" for gpu in sorted(gpus)] or [path]


class QuestionPool:
    """Replicas that ask an evaluation's questions; `close` it."""

    def __init__(
        self,
        setup: EngineSetup,
        kv_budget_tokens: int | None,
        *,
        replicas: int,
        address: str | None,
        log_dir: Path,
    ) -> None:
        """Connect to Ray, then start the replicas.

        Args:
            setup: how their engines start.
            kv_budget_tokens: size of each one's KV cache; None takes what memory gives.
            replicas: how many, at least 1.
            address: the Ray cluster.
            log_dir: gets a log of each replica.

        Raises:
            InputError: as `ActorPool`.
        """
        self._actors: ActorPool[Asked] = ActorPool(
            AskingReplica, replicas, setup.config.engine, address=address, log_dir=log_dir
        )
        self._actors.start(setup.on_replicas(self._actors.share), kv_budget_tokens)
        self._take_turns = setup.config.device_lock is not None
        self._homes: dict[str, int] = {}
        """The replica of each question that has been begun."""
        self._looks: dict[Any, Member[Asked]] = {}
        """Answers that replicas owe, about what has finished of their questions."""
        self._looked_s = 0.0
        self._counted: defaultdict[RecordKey, Counter[_Ended]] = defaultdict(Counter)
        """Traces of each question that the progress has counted."""

    def close(self) -> None:
        """End the replicas, and Ray's connection where this made it."""
        self._actors.close()

    def pids(self) -> list[int]:
        """Return the process of each replica, on its node."""
        return self._actors.pids()

    def described(self, before: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the fields of a run's manifest that say what the replicas run on.

        Args:
            before: the field `replicas` of a run that goes on.
        """
        started = [member.started for member in self._actors.members]
        found = [item for item in started if isinstance(item, AskerStarted)]
        replicas = {
            "count": len(found),
            "share_devices": len({item.place for item in found}) < len(found),
            "take_turns": self._take_turns,
        }
        if before is not None:
            replicas = {
                "count": max(len(found), before["count"]),
                "share_devices": replicas["share_devices"] or before["share_devices"],
                "take_turns": self._take_turns and before["take_turns"],
            }
        return {
            "device": " + ".join(dict.fromkeys(item.device for item in found)),
            "replicas": replicas,
        }

    def ask(
        self,
        places: Sequence[Place],
        order: Callable[[str, int, Question], Asked],
        progress: TraceProgress,
    ) -> Iterator[QuestionRecord]:
        """Ask questions and yield each record.

        A replica that is free takes the first of `places` whose question is nobody else's: so it
        has the questions of one method, then theirs of the next, and seldom starts an engine.

        Args:
            places: what to ask, method by method.
            order: makes the order, when a replica is free for it.
            progress: counts the traces, those of running questions too.

        Raises:
            InputError: as `ActorPool.arrived`.
        """
        left = deque(places)
        actors = self._actors
        actors.reset_rates()
        while True:
            while actors.lost:
                asked = actors.lost.popleft()
                left.appendleft((asked.method, asked.repeat, asked.question))
            self._hand_out(left, order)
            if not left and not any(member.orders for member in actors.members):
                return
            for member, record in actors.arrived():
                key = actors.done(member, (record.method, *record.key)).key
                self._count(member, key, map(_Ended.of, record.traces), progress)
                del self._counted[key]
                yield record
            self._look(progress)
            progress.note = actors.rates()
            progress.step()

    def _hand_out(self, left: deque[Place], order: Callable[[str, int, Question], Asked]) -> None:
        members = self._actors.members
        numbers = {member.number for member in members}
        # A replica that is gone leaves its questions to the others.
        self._homes = {name: home for name, home in self._homes.items() if home in numbers}
        for member in members:
            if not member.started or member.orders:
                continue
            for index, (_, _, question) in enumerate(left):
                if self._homes.setdefault(question.id, member.number) == member.number:
                    place = left[index]
                    del left[index]
                    self._actors.hand(member, order(*place))
                    break

    def _look(self, progress: TraceProgress) -> None:
        """Count what has finished of the running questions, as far as replicas have answered."""
        import ray
        from ray.exceptions import RayError

        if self._looks:
            ready, _ = ray.wait(list(self._looks), num_returns=len(self._looks), timeout=0)
            for member, reference in ((self._looks.pop(ref), ref) for ref in ready):
                with suppress(RayError):  # it died: that is seen where records arrive
                    key, ended = ray.get(reference)
                    if key in member.orders:
                        self._count(member, key, ended, progress)
        if time.monotonic() - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            waiting = {member.number for member in self._looks.values()}
            for member in self._actors.members:
                if member.orders and member.number not in waiting:
                    self._looks[member.actor.finished.remote()] = member

    def _count(
        self,
        member: Member[Asked],
        key: RecordKey,
        ended: Iterable[_Ended],
        progress: TraceProgress,
    ) -> None:
        """Count the traces of a question that were not counted before, by this replica or another.

        Args:
            member: the replica that asks it.
            key: of the question's record.
            ended: its traces so far, those of the last time among them.
            progress: counts them.
        """
        new = Counter(ended)
        new.subtract(self._counted[key])
        for trace in new.elements():
            progress.finished(trace.own_tokens, trace.is_branch)
            member.finished += 1
            self._counted[key][trace] += 1
