"""Which trace to stop when the KV cache is about to overflow: pure functions on plain data.

The scheduler calls them at every step that would not fit; a simulation can call them as well.
STEP (arXiv 2601.09093, section 3.3) stops the lowest-scored running trace of all; here the
choice stays inside one question, and a question never loses its last traces.
"""

from collections.abc import Iterable, Mapping
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
    """Traces of its group that must stay."""


def pick_victim(traces: Iterable[RunningTrace], kept: Mapping[str, int]) -> RunningTrace | None:
    """Return the trace to stop, or None where nothing may be stopped.

    Only traces with enough step scores, of groups with more than `min_keep` traces left, can be
    stopped. Of those groups, the one whose running traces hold most blocks loses its lowest-scored
    trace; between equals, the one with fewer steps, then the latest arrival.

    Args:
        traces: the running traces that opted in.
        kept: for each group, its traces that are running, waiting or finished (not stopped).
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


def admit(free_blocks: int, total_blocks: int, resume_free: float, pruned_running: bool) -> bool:
    """Return whether waiting traces may start.

    While a group that lost a trace for want of memory still runs, a newcomer would only cost it
    more of them; it waits until that group is done or enough of the cache is free again.

    Args:
        free_blocks: free KV blocks after this step's growth.
        total_blocks: all KV blocks.
        resume_free: part of the cache that must be free, in [0, 1].
        pruned_running: whether a group that lost a trace still has running traces.
    """
    return not pruned_running or free_blocks >= resume_free * total_blocks
