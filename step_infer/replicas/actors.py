"""Replicas as Ray actors: started, handed orders, watched, and replaced when they die.

An actor pool, not Ray Data: an engine takes new orders while others run, what is done comes back
at once and not with its block, and what a dead replica had is known here, order by order.
"""

import re
import time
import warnings
from collections import Counter, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from step_infer.errors import InputError
from step_infer.replicas.cluster import alive_nodes, connect, share_for
from step_infer.replicas.replica import Started
from step_infer.storage.files import real_path

MOST_LOSSES = 3
"""How often an order, or a start, may be lost with its replica; once more ends the run."""
_WAIT_S = 0.2
_LOOK_FOR_ROOM_S = 5.0
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_RAISED = re.compile(r"[\w.]*(?:Error|Exception|Interrupt|Exit)\b")


class Order(Protocol):
    """What a replica is asked to do for a question."""

    @property
    def key(self) -> Hashable: ...  # noqa: D102
    @property
    def question_id(self) -> str: ...  # noqa: D102


OrderT = TypeVar("OrderT", bound=Order)


@dataclass
class Member(Generic[OrderT]):
    """A place in the pool, whose replica may be replaced."""

    number: int
    actor: Any = None
    items: Any = None
    """Yields references to what the replica yields."""
    started: Started | None = None
    orders: dict[Hashable, OrderT] = field(default_factory=dict)
    """What it was handed and has not given back."""
    outbox: list[OrderT] = field(default_factory=list)
    """What of it has not been sent."""
    finished: int = 0
    """Traces."""
    failed_starts: int = 0
    since_s: float = 0.0


class ActorPool(Generic[OrderT]):
    """Actors with the surface of `step_infer.replicas.replica.OrderTaker`.

    `close` it: they hold their devices' memory.
    """

    def __init__(
        self,
        actor: type[Any],
        replicas: int,
        engine_args: dict[str, Any],
        *,
        address: str | None = None,
        log_dir: str | Path | None = None,
    ) -> None:
        """Connect to Ray, and see that there is room.

        Args:
            actor: class of the replicas.
            replicas: how many, at least 1.
            engine_args: of each one's engine; they say how many GPUs it needs.
            address: the Ray cluster (see `step_infer.replicas.cluster.connect`).
            log_dir: gets a log of each replica; made where it is missing. None: Ray keeps them.

        Raises:
            InputError: no Ray, no cluster, or no room for so many replicas.
        """
        self.members: list[Member[OrderT]] = []
        self.lost: deque[OrderT] = deque()
        """Orders whose replica died, to be handed out again."""
        self._actor = actor
        self._arguments: tuple[Any, ...] = ()
        self._losses: Counter[Hashable] = Counter()
        self._looked_s = 0.0
        self._connected = connect(address)
        try:
            self.share = share_for(replicas, engine_args, alive_nodes())
            self._one_by_one = self.share.starts_alone(engine_args)
            self._log_dir = None if log_dir is None else real_path(log_dir)
            if self._log_dir is not None:
                self._log_dir.mkdir(parents=True, exist_ok=True)
        except BaseException:
            self.close()
            raise
        self._replicas = replicas

    def start(self, *arguments: Any) -> None:
        """Start the replicas and wait for them.

        Args:
            arguments: of each one's `run`.

        Raises:
            InputError: one refuses to start, or dies too often.
        """
        self._arguments = arguments
        try:
            for number in range(self._replicas):
                self.members.append(Member(number))
                self._start(self.members[-1])
                if self._one_by_one:
                    self._wait_for_starts()
            self._wait_for_starts()
        except BaseException:
            self.close()
            raise

    def _wait_for_starts(self) -> None:
        while any(member.started is None for member in self.members):
            for _ in self.arrived():
                raise AssertionError("something done without an order")

    def close(self) -> None:
        """End the replicas, and Ray's connection where this made it."""
        import ray

        for member in self.members:
            if member.actor is not None:
                ray.kill(member.actor)
        self.members = []
        if self._connected:
            ray.shutdown()
            self._connected = False

    def pids(self) -> list[int]:
        """Return the process of each replica that has started, on its node."""
        return [member.started.pid for member in self.members if member.started is not None]

    def rates(self) -> str:
        """Return the finished traces of each replica a second, as text."""
        now = time.monotonic()
        each = (m.finished / max(now - m.since_s, 1e-3) for m in self.members)
        return "replicas " + " + ".join(f"{rate:.2f}" for rate in each) + " traces/s"

    def reset_rates(self) -> None:
        """Count each one's finished traces and seconds from now on."""
        for member in self.members:
            member.finished, member.since_s = 0, time.monotonic()

    def hand(self, member: Member[OrderT], order: OrderT, sent: OrderT | None = None) -> None:
        """Give an order to a replica that has started; it is sent with the next `arrived`.

        Args:
            member: the replica.
            order: what comes back from `done`, or into `lost`.
            sent: what the replica gets in its place; None: the order.
        """
        member.orders[order.key] = order
        member.outbox.append(sent or order)

    def takes(self, member: Member[OrderT], order: OrderT | None = None) -> bool:
        """Return whether a replica may have an order beside those that it has.

        An order on its last chance has only others of its question beside it: so the question that
        is named when the replica dies again is the right one.

        Args:
            member: the replica.
            order: out of `lost`; None: a new one.
        """
        beside = next(iter(member.orders.values()), None)
        if beside is None:
            return True
        if order is None or not self._is_last(order):
            return not self._is_last(beside)
        return self._is_last(beside) and beside.question_id == order.question_id

    def _is_last(self, order: OrderT) -> bool:
        return self._losses[order.key] == MOST_LOSSES

    def arrived(self) -> Iterator[tuple[Member[OrderT], Any]]:
        """Wait a moment for what replicas yield; replace those that have died.

        Raises:
            InputError: what a replica raised; an order was lost with its replica more than
                `MOST_LOSSES` times (the message names its question), or no replica is left.
        """
        import ray
        from ray.exceptions import RayError

        for member in self.members:
            if member.outbox:
                member.actor.add.remote(member.outbox)
                member.outbox = []
        members = {member.items: member for member in self.members}
        ready, _ = ray.wait(list(members), num_returns=1, timeout=_WAIT_S)
        for member in (members[items] for items in ready):
            try:
                item = ray.get(next(member.items))
            except (RayError, StopIteration) as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, InputError):
                    raise cause from None
                self._replace(member, _reason(cause or error))
                continue
            if isinstance(item, Started):
                member.started = item
            else:
                yield member, item
        self._drop_homeless()

    def done(self, member: Member[OrderT], key: Hashable) -> OrderT:
        """Take an order from a replica that has given back what came of it, and return it."""
        member.failed_starts = 0
        return member.orders.pop(key)

    def _start(self, member: Member[OrderT]) -> None:
        import ray

        log = self._log_dir and self._log_dir / f"replica-{member.number}.log"
        actor = ray.remote(self._actor).options(
            num_cpus=self.share.cpus, num_gpus=self.share.gpus, max_concurrency=3
        )
        member.started = None
        member.actor = actor.remote(log)
        member.items = member.actor.run.options(num_returns="streaming").remote(*self._arguments)

    def _replace(self, member: Member[OrderT], reason: str) -> None:
        """Start a new replica in the place of one that died, where the cluster has room for it."""
        import ray

        ray.kill(member.actor)
        lost = list(member.orders.values())
        self._losses.update(member.orders.keys())
        self.lost.extend(lost)
        member.orders.clear()
        member.outbox = []
        worst = max(lost, key=lambda order: self._losses[order.key], default=None)
        if worst is not None and self._losses[worst.key] > MOST_LOSSES:
            raise InputError(
                f"Expected replicas that live through question {worst.question_id}, found that "
                f"{self._losses[worst.key]} died with it, the last of: {reason}. "
                "Hint: see the logs of the replicas, or leave that question out."
            )
        member.failed_starts += member.started is None or not lost
        if member.failed_starts > MOST_LOSSES:
            raise InputError(
                f"Expected that replica {member.number} starts, found that it died "
                f"{member.failed_starts} times without an order, the last of: {reason}. "
                "Hint: see the logs of the replicas."
            )
        if self.share.fits(alive_nodes()) >= len(self.members):
            warnings.warn(f"Replica {member.number} is started again. {reason}", stacklevel=2)
            self._start(member)
        else:
            self._drop(member, reason)

    def _drop_homeless(self) -> None:
        """Give up a replica that waits for a node: one can be gone after its replica was replaced.

        Raises:
            InputError: it was the last one.
        """
        waiting = [member for member in self.members if member.started is None]
        if not waiting or time.monotonic() - self._looked_s < _LOOK_FOR_ROOM_S:
            return
        self._looked_s = time.monotonic()
        if self.share.fits(alive_nodes()) < len(self.members):
            self._drop(waiting[0], "No node has room for it")

    def _drop(self, member: Member[OrderT], reason: str) -> None:
        import ray

        if member.started is None:
            ray.kill(member.actor)
        self.members.remove(member)
        if not self.members:
            raise InputError(
                f"Expected a node for a replica, found none left in the Ray cluster: {reason}. "
                "Hint: give the same command again when there is one; it goes on where it stopped."
            )
        warnings.warn(
            f"Replica {member.number} is gone with its node; {len(self.members)} go on. {reason}",
            stacklevel=2,
        )


def _reason(error: Exception) -> str:
    """Return why a replica died on one line: what was raised there, or how its process ended."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    if lines and _RAISED.match(lines[-1]):
        lines = lines[-1:]
    return " ".join(lines)[:300].rstrip(". ") or type(error).__name__
