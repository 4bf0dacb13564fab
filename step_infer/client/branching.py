"""Good traces go on as further ones where bad ones were stopped (after arXiv 2608.08020).

    results = llm.generate(questions, sampler=Branching(min_tokens=4096).stream)

A branch, or child, is a request whose prompt is its parent's prompt and tokens up to the parent's
last scored step boundary. There the score history is complete, and the parent's KV blocks are in
the prefix cache; a half-written step would be inherited with its mistakes. `pick_parents` says when
and whom, on plain data.
"""

import random
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from step_infer.client.trace import Inherited, Trace, TracePlan, branch_seed
from step_infer.errors import InputError
from step_infer.settings import StepSettings

if TYPE_CHECKING:
    from step_infer.client.llm import StepLLM

BEST, RANDOM = "score", "random"
CHOICES = (BEST, RANDOM)

_LOOK_STEPS = 8
"""Engine steps between two looks at the memory, which cost a reading of vLLM's counters."""


@dataclass(frozen=True)
class Candidate:
    """A trace that has not ended, as a parent."""

    trace_id: int
    score: float | None
    """Trace score; None before the first."""
    own_tokens: int
    """Tokens that it generated itself, inherited ones left out."""
    point: int
    """Generated tokens that a child would inherit, those of its ancestors too; 0: none yet."""
    most_tokens: int
    """Generated tokens that a trace can have, inherited ones counted."""
    prompt_tokens: int
    children: int
    """Children that it has had."""


@dataclass(frozen=True)
class Room:
    """What a question has had, and what memory is left."""

    stopped: int
    """Its traces that were stopped for want of memory."""
    branched: int
    """Its children so far."""
    live: int
    """Its traces that have not ended. Waiting and preempted ones count: taken as gone, each would
    be replaced again and again, until all come from one prefix."""
    most_live: int
    """Traces that may be live at once."""
    spare_tokens: int
    """KV cache that is free, beyond what must stay so, in tokens."""
    closed: bool = False
    """Whether the vote is decided or the budget spent."""


@dataclass(frozen=True)
class Branching:
    """How traces are branched; a sampler of `StepLLM.generate`.

    Raises:
        InputError: a number is below 1, or there is no such choice.
    """

    min_tokens: int = 4096
    """Tokens that a trace must have generated itself before it may be a parent."""
    max_children: int = 2
    """Children of one trace at most."""
    choice: str = BEST
    """Who becomes a parent: score, the trace of the highest score; random, any (a control)."""

    def __post_init__(self) -> None:
        for name in ("min_tokens", "max_children"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(
                    f"Expected branching with {name} of at least 1, found {value!r:.60}. "
                    f"Hint: leave it out for {getattr(Branching, name)}."
                )
        if self.choice not in CHOICES:
            raise InputError(
                f"Expected a choice of parents out of {', '.join(CHOICES)}, found "
                f"{self.choice!r:.60}. Hint: leave it out for {BEST}."
            )

    def stream(
        self,
        llm: "StepLLM",
        plans: Sequence[TracePlan],
        on_step: Callable[[], None] | None = None,
    ) -> Iterator[Trace]:
        """Sample the traces of one question and their children, and yield each as it ends.

        Args:
            llm: an engine with a scorer and prefix caching.
            plans: the question's orders.
            on_step: called after every engine step.

        Raises:
            InputError: the engine does not score, has no prefix caching, or captures states, which
                a child cannot inherit; or an order goes by windows of token confidences.
        """
        self._check(llm, plans)
        family = _Family(self, llm, plans)
        for trace in llm.stream(plans, len(plans), on_step, branch=family.children):
            family.end(trace)
            yield trace

    def _check(self, llm: "StepLLM", plans: Sequence[TracePlan]) -> None:
        found = None
        if llm.card is None:
            found = "one without a scorer"
        elif not llm.prefix_caching:
            found = "one without prefix caching"
        elif llm.capture:
            found = "one that captures states"
        elif any("window" in plan.options for plan in plans):
            found = "orders with a window of token confidences"
        if found is not None:
            raise InputError(
                "Expected an engine with a scorer and prefix caching, without capture or windows, "
                f"for branching, found {found}. Hint: change how StepLLM is started, or do not "
                "branch."
            )


def pick_parents(
    candidates: Iterable[Candidate], room: Room, options: Branching, random_: random.Random
) -> list[int]:
    """Return the traces that get a child now, one each, in the order of the choice.

    Every trace that was stopped for want of memory makes place for one child, as soon as there is
    memory for it. A child is taken to need memory for all that it inherits: its parent may end.

    Args:
        candidates: the traces that have not ended.
        room: the place there is for children.
        options: what is asked of a parent.
        random_: decides where the choice is random.
    """
    places = min(room.stopped - room.branched, room.most_live - room.live)
    if room.closed or places <= 0:
        return []
    able = [
        candidate
        for candidate in candidates
        if candidate.score is not None
        and 0 < candidate.point < candidate.most_tokens
        and candidate.own_tokens >= options.min_tokens
        and candidate.children < options.max_children
    ]
    able.sort(key=lambda candidate: (-(candidate.score or 0.0), candidate.trace_id))
    if options.choice == RANDOM:
        random_.shuffle(able)
    chosen: list[int] = []
    spare = room.spare_tokens
    for candidate in able:
        needed = candidate.prompt_tokens + candidate.point
        if len(chosen) < places and needed <= spare:
            chosen.append(candidate.trace_id)
            spare -= needed
    return chosen


class GrowingTrace(Protocol):
    """What the engine's client knows of a trace that has not ended."""

    order: TracePlan
    token_ids: list[int]
    """Tokens that it generated itself."""
    point: int
    """Tokens up to its last scored step boundary, inherited ones counted; 0 before the first."""
    scores: list[float | None]
    """Of its boundaries up to there, inherited ones too."""
    confidences: list[float | None]
    """At these boundaries; without any where the engine records none."""
    score: float | None


class _Family:
    """The traces of one question, and the children that they have had."""

    def __init__(self, options: Branching, llm: "StepLLM", plans: Sequence[TracePlan]) -> None:
        self._options, self._llm = options, llm
        self._most_live = len(plans)
        self._next_id = max(plan.trace_id for plan in plans) + 1
        self._children: dict[int, int] = {}
        self._stopped = self._branched = self._steps = 0
        seeds = [(plan.question_id, plan.trace_id, plan.seed) for plan in plans]
        self._random = random.Random(zlib.crc32(repr(seeds).encode()))

    def end(self, trace: Trace) -> None:
        """Take in a trace that has ended."""
        self._stopped += trace.pruned

    def children(self, running: Collection[GrowingTrace]) -> list[TracePlan]:
        """Return the orders for children of running traces; called after every engine step."""
        self._steps += 1
        if self._stopped <= self._branched or self._steps % _LOOK_STEPS or not running:
            return []
        by_id = {trace.order.trace_id: trace for trace in running}
        vote = next(iter(running)).order.vote
        capacity = self._llm.kv_capacity_tokens
        # As much must be free as the scheduler asks before it admits traces of this group.
        spare = (1 - StepSettings.resume_free - self._llm.stats().kv_use) * capacity
        room = Room(
            self._stopped,
            self._branched,
            len(by_id),
            self._most_live,
            int(spare),
            vote is not None and vote.closed is not None,
        )
        candidates = [self._candidate(trace) for trace in running]
        chosen = pick_parents(candidates, room, self._options, self._random)
        return [self._child(by_id[trace_id]) for trace_id in chosen]

    def _candidate(self, trace: GrowingTrace) -> Candidate:
        order = trace.order
        prompt = len(order.prompt_token_ids)
        return Candidate(
            order.trace_id,
            trace.score,
            len(trace.token_ids),
            trace.point,
            min(order.sampling.max_tokens, self._llm.max_model_len - prompt),
            prompt,
            self._children.get(order.trace_id, 0),
        )

    def _child(self, parent: GrowingTrace) -> TracePlan:
        order = parent.order
        number = self._children.get(order.trace_id, 0)
        self._children[order.trace_id] = number + 1
        self._branched += 1
        before = () if order.inherited is None else order.inherited.token_ids
        whole = (*before, *parent.token_ids)
        child = replace(
            order,
            trace_id=self._next_id,
            seed=None if order.seed is None else branch_seed(order.seed, number),
            inherited=Inherited(
                order.trace_id,
                whole[: parent.point],
                tuple(parent.scores),
                tuple(parent.confidences),
            ),
        )
        self._next_id += 1
        return child
