"""Engines of several processes as one: orders go out to the least busy, finished traces come back.

An actor pool, not Ray Data: an engine takes new orders while others run, a trace comes back when it
ends and not with its block, and what a dead replica had is known here, order by order.
"""

import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from step_infer.client.answers import extract_boxed
from step_infer.client.engine import EngineStats
from step_infer.client.prompt import SYSTEM_PROMPT, load_tokenizer
from step_infer.client.requests import question_plans
from step_infer.client.trace import Sampling, Trace, TraceKey, TracePlan
from step_infer.errors import InputError
from step_infer.replicas.cluster import alive_nodes, connect, share_for
from step_infer.replicas.replica import Finished, Replica, Started
from step_infer.storage.files import real_path

MOST_LOSSES = 3
"""How often a trace, or a start, may be lost with its replica; once more ends the run."""
_WAIT_S = 0.2


@dataclass
class _Member:
    """A place in the pool, whose replica may be replaced."""

    number: int
    actor: Any = None
    items: Any = None
    """Yields references to what the replica yields."""
    started: Started | None = None
    orders: dict[TraceKey, TracePlan] = field(default_factory=dict)
    """What it was handed and has not given back."""
    finished: int = 0
    failed_starts: int = 0
    generated_tokens: int = 0
    since_s: float = 0.0


class ReplicaPool:
    """Several engines with the surface of one `StepLLM`, as far as sampling without votes goes.

    Each is a Ray actor. One that dies is replaced, and what it had is sampled again, to the same
    traces: their seeds are in the orders. `close` it: the engines hold their devices' memory.
    """

    def __init__(
        self,
        model: str,
        scorer: str | Path | None = None,
        *,
        replicas: int,
        address: str | None = None,
        log_dir: str | Path | None = None,
        **options: Any,
    ) -> None:
        """Connect to Ray, then start the engines and wait for them.

        Args:
            model: model folder or hub id; each node must see it.
            scorer: scorer file; as the model.
            replicas: engines, at least 1.
            address: the Ray cluster (see `step_infer.replicas.cluster.connect`).
            log_dir: gets a log of each replica; made where it is missing. None: Ray keeps them.
            options: of each `StepLLM`.

        Raises:
            InputError: no Ray, no cluster, no room for so many replicas, or an engine refuses to
                start.
        """
        self._members: list[_Member] = []
        self._connected = connect(address)
        try:
            self._nodes = alive_nodes()
            self._share = share_for(replicas, options, self._nodes)
            self._options = {
                "model": _seen_elsewhere(model),
                "scorer": None if scorer is None else _seen_elsewhere(str(scorer)),
                **self._share.engine_args(),
                **options,
            }
            self._log_dir = None if log_dir is None else real_path(log_dir)
            if self._log_dir is not None:
                self._log_dir.mkdir(parents=True, exist_ok=True)
            self._tokenizer = load_tokenizer(model, options.get("revision"))
            self._losses: Counter[TraceKey] = Counter()
            self._again: deque[TracePlan] = deque()
            self._members = [_Member(number) for number in range(replicas)]
            for member in self._members:
                self._start(member)
            while any(member.started is None for member in self._members):
                for _ in self._arrived():
                    raise AssertionError("a trace without an order")
        except BaseException:
            self.close()
            raise
        assert self._members[0].started is not None
        self.max_model_len = self._members[0].started.max_model_len

    def close(self) -> None:
        """End the replicas, and Ray's connection where this made it."""
        import ray

        for member in self._members:
            if member.actor is not None:
                ray.kill(member.actor)
        if self._connected:
            ray.shutdown()

    def pids(self) -> list[int]:
        """Return the process of each replica that has started, on its node."""
        return [member.started.pid for member in self._members if member.started is not None]

    def stats(self) -> EngineStats:
        """Return the tokens of all replicas, as of each one's last finished trace."""
        tokens = sum(member.generated_tokens for member in self._members)
        return EngineStats(time.monotonic(), generated_tokens=tokens)

    def rates(self) -> str:
        """Return the finished traces of each replica a second, as text."""
        now = time.monotonic()
        each = (m.finished / max(now - m.since_s, 1e-3) for m in self._members)
        return "replicas " + " + ".join(f"{rate:.2f}" for rate in each) + " traces/s"

    def plan(
        self,
        question_id: str,
        question: str,
        n: int = 64,
        sampling: Sampling | None = None,
        seed: int = 0,
        system: str = SYSTEM_PROMPT,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[TracePlan]:
        """Return the orders for `n` traces of one question, those of `StepLLM.plan`.

        Raises:
            InputError: as `StepLLM.plan`.
        """
        return question_plans(
            self._tokenizer,
            self.max_model_len,
            question_id,
            question,
            n,
            sampling,
            seed,
            system,
            0,
            chat_template_kwargs,
        )

    def stream(
        self,
        plans: Iterable[TracePlan],
        max_in_flight: int = 1024,
        on_step: Callable[[], None] | None = None,
    ) -> Iterator[Trace]:
        """Sample traces on all replicas and yield each as it finishes.

        Args:
            plans: the orders, without votes; read only as far as `max_in_flight` allows.
            max_in_flight: traces handed to each replica at once.
            on_step: called several times a second.

        Raises:
            InputError: a trace was lost with its replica more than `MOST_LOSSES` times (the message
                names its question), or no replica is left.
        """
        orders = iter(plans)
        for member in self._members:
            member.finished, member.since_s = 0, time.monotonic()
        while True:
            self._hand_out(orders, max_in_flight)
            if not any(member.orders for member in self._members) and not self._again:
                return
            yield from self._arrived()
            if on_step is not None:
                on_step()

    def _start(self, member: _Member) -> None:
        import ray

        log = self._log_dir and self._log_dir / f"replica-{member.number}.log"
        actor = ray.remote(Replica).options(
            num_cpus=self._share.cpus, num_gpus=self._share.gpus, max_concurrency=2
        )
        member.started = None
        member.actor = actor.remote(log)
        member.items = member.actor.run.options(num_returns="streaming").remote(self._options)

    def _hand_out(self, orders: Iterator[TracePlan], most: int) -> None:
        """Give each order to the replica that has the fewest, until all have enough."""
        handed: dict[int, list[TracePlan]] = {}
        while True:
            ready = [m for m in self._members if m.started and len(m.orders) < most]
            if not ready:
                break
            order = self._again.popleft() if self._again else next(orders, None)
            if order is None:
                break
            member = min(ready, key=lambda m: len(m.orders))
            member.orders[order.key] = order
            # Extracting needs the grader, which stays here.
            handed.setdefault(member.number, []).append(replace(order, extract=extract_boxed))
        for member in self._members:
            if member.number in handed:
                member.actor.add.remote(handed[member.number])

    def _arrived(self) -> Iterator[Trace]:
        """Wait a moment for what replicas yield; replace those that have died."""
        import ray
        from ray.exceptions import RayError

        members = {member.items: member for member in self._members}
        ready, _ = ray.wait(list(members), num_returns=1, timeout=_WAIT_S)
        for member in (members[items] for items in ready):
            try:
                item = ray.get(next(member.items))
            except (RayError, StopIteration) as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, InputError):
                    raise cause from None
                self._replace(member, " ".join(str(cause or error).split())[:300])
                continue
            if isinstance(item, Started):
                member.started = item
            else:
                yield self._taken(member, item)

    def _taken(self, member: _Member, item: Finished) -> Trace:
        trace = item.trace
        order = member.orders.pop((trace.question_id, trace.trace_id))
        for think_end in item.think_ends:
            trace.answer = order.extract(trace.text, think_end)
        member.finished += 1
        member.failed_starts = 0
        member.generated_tokens = item.generated_tokens
        return trace

    def _replace(self, member: _Member, reason: str) -> None:
        """Start a new replica in the place of one that died, where the cluster has room for it."""
        import ray

        ray.kill(member.actor)
        lost = list(member.orders.values())
        self._losses.update(member.orders.keys())
        self._again.extendleft(reversed(lost))
        member.orders.clear()
        worst = max(lost, key=lambda order: self._losses[order.key], default=None)
        if worst is not None and self._losses[worst.key] > MOST_LOSSES:
            raise InputError(
                f"Expected replicas that finish trace {worst.trace_id} of question "
                f"{worst.question_id}, found that {self._losses[worst.key]} died with it, the last "
                f"of: {reason}. Hint: see the logs of the replicas, or leave that question out."
            )
        member.failed_starts += 1
        if member.failed_starts > MOST_LOSSES:
            raise InputError(
                f"Expected that replica {member.number} starts, found that it died "
                f"{member.failed_starts} times before it finished a trace, the last of: {reason}. "
                "Hint: see the logs of the replicas."
            )
        if self._share.fits(alive_nodes()) >= len(self._members):
            warnings.warn(f"Replica {member.number} is started again. {reason}", stacklevel=2)
            self._start(member)
            return
        self._members.remove(member)
        if not self._members:
            raise InputError(
                f"Expected a node for a replica, found none left in the Ray cluster: {reason}. "
                "Hint: give the same command again when there is one; it goes on where it stopped."
            )
        warnings.warn(
            f"Replica {member.number} is gone with its node; {len(self._members)} go on. {reason}",
            stacklevel=2,
        )


def _seen_elsewhere(path: str) -> str:
    """Return a path as processes in other folders see it; a hub id stays."""
    return str(real_path(path)) if Path(path).exists() else path
