"""Event logs of an engine in another process, whose thread writes them a little later."""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from patience import wait_until

from step_eval.recorded.events import read_events

_MARK = "mark-"


def read_settled_events(
    paths: Sequence[Path], mark: Callable[[str, int], Any]
) -> tuple[list[dict[str, Any]], int]:
    """Return what `read_events` does, of all traces that have ended by now.

    A log is written line by line: before that of a trace that ends later still, all others are.

    Args:
        paths: of each engine's log.
        mark: has an engine, by its number, end a scored trace whose name or group has a text in it;
            these are left out.
    """
    for number, path in enumerate(paths):
        name = _MARK + secrets.token_hex(4)
        mark(name, number)
        there = wait_until(lambda log=path, name=name: name.encode() in log.read_bytes())
        assert there, f"{path} lacks the trace that ended last"
    events, left_out = read_events(paths)
    kept = [event for event in events if _MARK not in f"{event['request']} {event['group']}"]
    return kept, left_out


def mark_by(llm: Any) -> Callable[[str, int], Any]:
    """Return what marks the log of a `StepLLM`."""
    from step_infer.client.trace import Sampling

    short = Sampling(max_tokens=2)
    return lambda name, _: list(llm.stream(llm.plan(name, "?", 1, short, None, "")))
