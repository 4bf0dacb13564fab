"""vLLM's own counters at one moment."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_METRICS = {
    "vllm:kv_cache_usage_perc": "kv_use",
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_preemptions": "preemptions",
    "vllm:generation_tokens": "generated_tokens",
}


@dataclass(frozen=True)
class EngineStats:
    """vLLM's own counters at one moment."""

    time_s: float
    """Seconds of `time.monotonic()`."""
    kv_use: float = 0.0
    """Part of the KV cache in use, in [0, 1]."""
    running: int = 0
    waiting: int = 0
    preemptions: int = 0
    """Since the engine's start."""
    generated_tokens: int = 0
    """Since the engine's start."""


def engine_stats(metrics: Iterable[Any]) -> EngineStats:
    """Return the counters in vLLM's metrics (`LLM.get_metrics`), summed over engines, as of now."""
    values: dict[str, float] = {}
    for metric in metrics:
        name = _METRICS.get(metric.name)
        if name is not None:
            values[name] = values.get(name, 0.0) + metric.value
    kv_use = values.pop("kv_use", 0.0)
    whole = {name: int(value) for name, value in values.items()}
    return EngineStats(time.monotonic(), kv_use, **whole)
