"""Good traces go on as further ones where bad ones were stopped (after arXiv 2608.08020).

    results = llm.generate(questions, sampler=Branching(min_tokens=4096).stream)

A branch, or child, is a request whose prompt is its parent's prompt and tokens up to the parent's
last scored step boundary. There the score history is complete, and the parent's KV blocks are in
the prefix cache; a half-written step would be inherited with its mistakes. `pick_parents` says when
and whom, on plain data.
"""

import random
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol

from step_infer.client.engine import EngineStats
from step_infer.client.trace import Inherited, Trace, TracePlan, branch_seed
from step_infer.errors import InputError
from step_infer.settings import StepSettings

_LOOK_STEPS = 8
"""Engine steps between two looks at the memory, which cost a reading of vLLM's counters."""


class ScoringEngine(Protocol):
    """What a branching question asks of its engine, a `StepLLM`."""

    card: Any
    capture: bool
    prefix_caching: bool
    kv_capacity_tokens: int
    max_model_len: int

    def stats(self) -> EngineStats: ...  # noqa: D102

    def stream(  # noqa: D102
        self,
        plans: Iterable[TracePlan | None],
        max_in_flight: int = ...,
        on_step: Callable[[], None] | None = ...,
        *,
        branch: "Callable[[Collection[GrowingTrace]], Iterable[TracePlan]] | None" = ...,
    ) -> Iterator[Trace]: ...


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
        InputError: a number is below 1.
    """

    min_tokens: int = 4096
    """Tokens that a trace must have generated itself before it may be a parent."""
    max_children: int = 2
    """Children of one trace at most."""

    def __post_init__(self) -> None:
        for name in ("min_tokens", "max_children"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(
                    f"Expected branching with {name} of at least 1, found {value!r:.60}. "
                    f"Hint: leave it out for {getattr(Branching, name)}."
                )

    def stream(
        self,
        llm: ScoringEngine,
        plans: Sequence[TracePlan],
        on_step: Callable[[], None] | None = None,
        at_random: bool = False,
    ) -> Iterator[Trace]:
        """Sample the traces of one question and their children, and yield each as it ends.

        Args:
            llm: an engine with a scorer and prefix caching.
            plans: the question's orders.
            on_step: called after every engine step.
            at_random: choose parents at random in the place of those of the highest scores; the
                control of experiments.

        Raises:
            InputError: the engine does not score, has no prefix caching, or captures states, which
                a child cannot inherit; or an order goes by windows of token confidences.
        """
        self._check(llm, plans)
        family = Family(self, plans, llm.max_model_len, at_random)
        steps = count()

        def children(running: Collection[GrowingTrace]) -> list[TracePlan]:
            if next(steps) % _LOOK_STEPS or not family.has_places:
                return []
            # As much must be free as the scheduler asks before it admits traces of this group.
            spare = (1 - StepSettings.resume_free - llm.stats().kv_use) * llm.kv_capacity_tokens
            return family.children(running, int(spare))

        for trace in llm.stream(plans, len(plans), on_step, branch=children):
            family.end(trace)
            yield trace

    def _check(self, llm: ScoringEngine, plans: Sequence[TracePlan]) -> None:
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
    candidates: Iterable[Candidate],
    room: Room,
    options: Branching,
    random_: random.Random | None = None,
) -> list[int]:
    """Return the traces that get a child now, one each, those of the highest scores first.

    Every trace that was stopped for want of memory makes place for one child, as soon as there is
    memory for it. A child is taken to need memory for all that it inherits: its parent may end.

    Args:
        candidates: the traces that have not ended.
        room: the place there is for children.
        options: what is asked of a parent.
        random_: chooses in the place of the scores.
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
    if random_ is not None:
        random_.shuffle(able)
    chosen: list[int] = []
    spare = room.spare_tokens
    for candidate in able:
        needed = candidate.prompt_tokens + candidate.point
        if len(chosen) < places and needed <= spare:
            chosen.append(candidate.trace_id)
            spare -= needed
    return chosen


def shared_weights(
    trace_ids: Sequence[int], weights: Sequence[float], parents: Mapping[int, int | None]
) -> list[float]:
    """Return the weights of votes, each shared among the voters of one family.

    A family is a trace of its own and all that branched from it or from its children: their votes
    agree more often than those of strangers, as they have a prefix in common.

    Args:
        trace_ids: the voters [V].
        weights: their own weights [V].
        parents: the parent of every trace of the question; None for a trace of its own.
    """
    roots = []
    for trace_id in trace_ids:
        while (parent := parents[trace_id]) is not None:
            trace_id = parent
        roots.append(trace_id)
    voters = Counter(roots)
    return [weight / voters[root] for weight, root in zip(weights, roots, strict=True)]


def shared_among_voters(
    traces: Sequence[Trace], answers: Sequence[str | None], weights: Sequence[float]
) -> list[float]:
    """Return the weights of a question's traces, those of voters shared (`shared_weights`).

    Args:
        traces: all traces of the question [N].
        answers: what they vote for [N]; None for one that does not vote.
        weights: their own weights [N].
    """
    voters = [i for i, answer in enumerate(answers) if answer is not None]
    shares = shared_weights(
        [traces[i].trace_id for i in voters],
        [weights[i] for i in voters],
        {trace.trace_id: trace.parent for trace in traces},
    )
    shared = list(weights)
    for i, share in zip(voters, shares, strict=True):
        shared[i] = share
    return shared


@dataclass
class GrowingTrace:
    """What the engine's client knows of a trace that has not ended."""

    order: TracePlan
    token_ids: list[int] = field(default_factory=list)
    """Tokens that it generated itself."""
    point: int = field(init=False)
    """Tokens up to its last scored step boundary, inherited ones counted; 0 before the first."""
    scores: list[float | None] = field(init=False)
    """Of its boundaries up to there, inherited ones too."""
    confidences: list[float | None] = field(init=False)
    """At these boundaries; without any where the engine records none."""
    score: float | None = None
    """Trace score, once it has scored a step itself."""

    def __post_init__(self) -> None:
        inherited = self.order.inherited
        self.point = 0 if inherited is None else len(inherited.token_ids)
        self.scores = [] if inherited is None else list(inherited.scores)
        self.confidences = [] if inherited is None else list(inherited.confidences)

    def take(self, report: Mapping[str, Any]) -> None:
        """Take in what came with an output on the way: a `ScoreSoFar`, or nothing."""
        if report.get("positions"):
            self.score, self.point = report["score"], report["positions"][-1] + 1
            self.scores, self.confidences = report["scores"], report.get("confidences", [])


class Family:
    """The traces of one question, and the children that they have had."""

    def __init__(
        self,
        options: Branching,
        plans: Sequence[TracePlan],
        max_model_len: int,
        at_random: bool = False,
    ) -> None:
        """Begin without children.

        Args:
            options: what is asked of a parent.
            plans: the question's orders.
            max_model_len: the model's context, in tokens.
            at_random: choose parents at random.
        """
        self._options, self._max_model_len = options, max_model_len
        self._most_live = len(plans)
        self._next_id = max(plan.trace_id for plan in plans) + 1
        self._children: dict[int, int] = {}
        self._stopped = self._branched = 0
        seeds = [(plan.question_id, plan.trace_id, plan.seed) for plan in plans]
        crc = zlib.crc32(repr(seeds).encode())
        self._random = random.Random(crc) if at_random else None

    @property
    def has_places(self) -> bool:
        """Whether more traces were stopped for want of memory than children were made."""
        return self._stopped > self._branched

    def end(self, trace: Trace) -> None:
        """Take in a trace that has ended."""
        self._stopped += trace.pruned

    def children(self, running: Collection[GrowingTrace], spare_tokens: int) -> list[TracePlan]:
        """Return the orders for children of running traces, which count as running from now on.

        Args:
            running: the traces that have not ended.
            spare_tokens: KV cache that is free, beyond what must stay so, in tokens.
        """
        if not self.has_places or not running:
            return []
        by_id = {trace.order.trace_id: trace for trace in running}
        vote = next(iter(running)).order.vote
        room = Room(
            self._stopped,
            self._branched,
            len(by_id),
            self._most_live,
            spare_tokens - sum(map(_to_come, running)),
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
            min(order.sampling.max_tokens, self._max_model_len - prompt),
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


def _to_come(trace: GrowingTrace) -> int:
    """Return the tokens for which a child that has not begun will still need memory."""
    order = trace.order
    if order.inherited is None or trace.token_ids:
        return 0
    return len(order.prompt_token_ids) + len(order.inherited.token_ids)
