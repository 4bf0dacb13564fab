"""Event logs, as the scheduler writes them, read back."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from step_infer.errors import InputError
from step_infer.event_log import EVENTS


def read_events(paths: Iterable[Path | str]) -> tuple[list[dict[str, Any]], int]:
    """Read event logs; return the events in the order of their times, and the lines left out.

    Each event gets the number of its file as `engine`. A line that a crash or a full disk cut off
    is left out.

    Raises:
        InputError: a file cannot be read, or holds no event.
    """
    events: list[dict[str, Any]] = []
    left_out = 0
    for engine, path in enumerate(paths):
        before = len(events)
        try:
            with Path(path).open("rb") as file:
                for line in file:
                    event = _parse(line)
                    if event is None:
                        left_out += bool(line.strip())
                    else:
                        events.append({**event, "engine": engine})
        except OSError as error:
            raise InputError(
                f"Expected an event log at {path}, found: {error.strerror}. "
                "Hint: check the path and its permissions."
            ) from error
        if len(events) == before:
            raise InputError(
                f"Expected events in {path}, found none. Hint: step-serve --event-log FILE writes "
                "them when scored requests end."
            )
    events.sort(key=lambda event: event["time"])
    return events, left_out


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a line's event; None where the line is not one."""
    try:
        event = json.loads(line)
        numbers = [event[name] for name in ("time", "steps", "tokens", "kv_use")]
        if event["score"] is not None:
            numbers.append(event["score"])
        numbers.append(event.get("inherited", 0))
        good = (
            event["event"] in EVENTS
            and all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
            and isinstance(event["request"], str)
            and isinstance(event["group"], str | None)
        )
        return event if good else None
    # The last two for a line nested too deep, and for a number too large for a float.
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None
