"""Where a process spends its time: its threads' Python stacks, looked at every few milliseconds.

`start` and `stop` run in the process that is looked at: in vLLM's engine by `collective_rpc`, for
the worker of a single rank lives there. The main thread's own stack is right to the line, for a
timer interrupts it; the other threads are looked at in the same moments, when they may just wait.
"""

import signal
import sys
import threading
from collections import Counter
from types import FrameType
from typing import Any

INTERVAL_S = 0.005
MOST_NAMES = 60
_MAIN = "main"

_seen: dict[str, tuple[Counter[str], Counter[str]]] = {}


def start(_: Any = None) -> None:
    """Begin to look; to be called in a main thread."""
    _seen.clear()
    signal.signal(signal.SIGALRM, _look)
    signal.setitimer(signal.ITIMER_REAL, INTERVAL_S, INTERVAL_S)


def stop(_: Any = None) -> dict[str, Any]:
    """End it; return for each thread its samples.

    `own` are the lines that ran, or called what is not Python; `within` the functions that had not
    returned, as shares of the thread's samples.
    """
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    threads = {}
    for name, (own, within) in _seen.items():
        count = own.total()
        threads[name] = {
            "samples": count,
            "own": {line: round(n / count, 4) for line, n in own.most_common(MOST_NAMES)},
            "within": {line: round(n / count, 4) for line, n in within.most_common(MOST_NAMES)},
        }
    return threads


def _look(_: int, interrupted: FrameType | None) -> None:
    me = threading.get_ident()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        # In the main thread this function is on top of what it interrupts.
        top = interrupted if ident == me else frame
        if top is not None:
            _count(_MAIN if ident == me else names.get(ident, "unnamed"), top)


def _count(thread: str, top: FrameType) -> None:
    own, within = _seen.setdefault(thread, (Counter(), Counter()))
    own[f"{_place(top)}:{top.f_lineno}"] += 1
    stack, frame = set(), top
    while frame is not None:
        stack.add(_place(frame))
        frame = frame.f_back  # type: ignore[assignment]
    within.update(stack)


def _place(frame: FrameType) -> str:
    file = "/".join(frame.f_code.co_filename.split("/")[-3:])
    return f"{file} {frame.f_code.co_qualname}"
