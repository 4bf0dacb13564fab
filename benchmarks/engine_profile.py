"""Where an engine's steps go: torch's profiler in the worker, summed up for each step.

The functions run in the worker's process, by `collective_rpc`: `start`, some steps, `stop`.
"""

from collections import defaultdict
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

WAITS = ("cudaEventSynchronize", "cudaStreamSynchronize", "cudaDeviceSynchronize")
MOST_NAMES = 100


def start(worker: Any) -> None:
    """Begin to record a worker's operations, and its GPU's kernels where it has one."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    worker.step_profile = profile(activities=activities)
    worker.step_profile.start()


def stop(worker: Any, steps: int) -> dict[str, Any]:
    """End the recording; return milliseconds a step.

    `busy` is the time in which the GPU ran at least one kernel, `idle` the rest of the span between
    the first and the last, `host_wait` the time that the host waited for the GPU: the room that
    work of the host has before it costs anything. `kernels` are the longest, with their number a
    step; on a CPU they are torch's operations, those that they call included.
    """
    worker.step_profile.stop()
    events = worker.step_profile.events()
    del worker.step_profile
    on_gpu = [
        event
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    spent: dict[str, list[float]] = defaultdict(list)
    for event in on_gpu or events:
        spent[event.name].append(event.time_range.elapsed_us())
    longest = sorted(spent, key=lambda name: -sum(spent[name]))[:MOST_NAMES]
    spans = sorted((event.time_range.start, event.time_range.end) for event in on_gpu)
    busy_us, span_us = covered(spans)
    waits_us = (e.time_range.elapsed_us() for e in events if e.name in WAITS)
    per_step = 1e-3 / steps
    return {
        "busy_ms": busy_us * per_step,
        "idle_ms": (span_us - busy_us) * per_step,
        "host_wait_ms": sum(waits_us) * per_step,
        "kernels": {
            name[:120]: {"ms": sum(spent[name]) * per_step, "count": len(spent[name]) / steps}
            for name in longest
        },
    }


def covered(spans: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the length that sorted spans cover, and the length from the first to the last."""
    if not spans:
        return 0.0, 0.0
    total, end = 0.0, spans[0][0]
    for first, last in spans:
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total, end - spans[0][0]
