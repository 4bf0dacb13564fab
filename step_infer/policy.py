"""Which trace to stop when the KV cache is about to overflow: pure functions on plain data.

The scheduler calls them at every step that would not fit; a simulation can call them as well.
STEP (arXiv 2601.09093, section 3.3) stops the lowest-scored running trace of all; here the
choice stays inside one question, and a question never loses its last traces.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RunningTrace:
    """What the policy knows of one running trace that may be stopped."""

    request_id: str
    group: str
    score: float | None
    """Trace score so far, or whatever else the choice goes by; None: it cannot be stopped."""
    steps: int
    """Step scores so far."""
    blocks: int
    """KV blocks it holds."""
    order: float
    """When it arrived; a later arrival is a greater number."""
    min_steps: int = 1
    """Step scores it must have before it can be stopped."""
    min_keep: int = 1
    """Traces of its group that must stay: the most that any of them asks for."""


def pick_victim(traces: Iterable[RunningTrace], kept: Mapping[str, int]) -> RunningTrace | None:
    """Return the trace to stop, or None where nothing may be stopped.

    Only traces with enough step scores, of groups with more than `min_keep` traces left, can be
    stopped. Of those groups, the one whose running traces hold most blocks loses its lowest-scored
    trace; between equals, the one with fewer steps, then the latest arrival.

    Args:
        traces: the running traces that opted in.
        kept: for each group, its traces that are running, waiting or finished (not stopped, and
            with a step score).
    """
    held: dict[str, int] = {}
    candidates: dict[str, list[RunningTrace]] = {}
    for trace in traces:
        held[trace.group] = held.get(trace.group, 0) + trace.blocks
        if (
            trace.score is not None
            and trace.steps >= trace.min_steps
            and kept.get(trace.group, 0) > trace.min_keep
        ):
            candidates.setdefault(trace.group, []).append(trace)
    if not candidates:
        return None
    group = max(candidates, key=lambda name: (held[name], name))
    return min(candidates[group], key=lambda trace: (trace.score, trace.steps, -trace.order))


@dataclass(frozen=True)
class Memory:
    """What is left of the KV cache in a step, and what newcomers must find."""

    free_blocks: int
    """Free KV blocks after this step's growth."""
    total_blocks: int
    resume_free: float
    """Part of the cache that must be free, in [0, 1]."""


def admit(
    waiting: Collection[str],
    held_since: Mapping[str, int],
    step: int,
    pressing: Collection[str],
    memory: Memory,
    max_held_steps: int | None,
) -> tuple[set[str], dict[str, int]]:
    """Say which groups' waiting traces may start in this step.

    While a group that lost a trace for want of memory still runs, a newcomer would only cost it
    more of them; it waits until that group is done or enough of the cache is free again. Groups
    share the cache, so none is held for longer than the limit, whatever the running ones do, and
    whoever was held first is let in first. Only a group that presses itself gets no such turn: it
    waits for its own running traces.

    Args:
        waiting: the groups with waiting traces that compete.
        held_since: the step in which each was first held back, as the call before gave it.
        step: this step's number.
        pressing: groups that lost a trace and still have running traces that compete.
        memory: what is left of the KV cache.
        max_held_steps: steps that a group is held at most; None: no limit.

    Returns:
        The groups that may start, and `held_since` for the next call. A group keeps its place
        until none of its traces waits: there may have been no room for it when its turn came.
    """
    since = {group: held_since[group] for group in waiting if group in held_since}
    if not pressing or memory.free_blocks >= memory.resume_free * memory.total_blocks:
        return set(waiting), since
    admitted = {
        group
        for group in waiting
        if max_held_steps is not None
        and step - since.get(group, step) >= max_held_steps
        and group not in pressing
    }
    return admitted, dict.fromkeys(set(waiting) - admitted, step) | since
