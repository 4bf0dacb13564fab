"""The Prometheus metrics of the adapter, beside vLLM's own, on the OpenAI server's /metrics.

vLLM's server finds the class by the entry point `vllm.stat_logger_plugins` of this package and
hands it every step's statistics, in which the scheduler sends what is new (`compat.send_counts`).
So each front end counts what it was sent, for each engine, over data parallelism and several nodes.
"""

import functools
import json
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from step_infer import compat
from step_infer.counters import SCORE_UNIT
from step_infer.wire import CONFIG_KEY

_COUNTERS = {
    "pruned": "Traces stopped for their score.",
    "decided": "Traces ended because the vote of their question was decided.",
    "over_budget": "Traces ended because the budget of their question was spent.",
    "scored_steps": "Steps scored.",
    "freed_tokens": "Tokens of pruned traces, prompt included.",
    "freed_kv_blocks": "KV blocks that pruning made free.",
    "dropped_scores": "Step scores that were missing or not finite.",
    "held_steps": "Engine steps in which waiting traces were held back for lack of memory.",
}
_LABELS = ("model_name", "engine")


class StepStatLogger(AggregateStatLoggerBase):
    """Counts what the schedulers of a server's engines send; idle in a server without them."""

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        settings = vllm_config.additional_config
        self._active = bool(settings) and settings.get(CONFIG_KEY) is not None
        self._model = vllm_config.model_config.served_model_name
        if self._active:
            for index in engine_indexes:  # every series is there from the start
                for metric in _metrics().values():
                    metric.labels(self._model, str(index))

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Add one engine step's new counts."""
        if not self._active or (text := compat.received_counts(scheduler_stats)) is None:
            return
        metrics, labels = _metrics(), (self._model, str(engine_idx))
        counts = json.loads(text)
        for score in counts.pop("scores", ()):
            metrics["score"].labels(*labels).observe(score * SCORE_UNIT)
        if counts.pop("disabled", 0):
            metrics["disabled"].labels(*labels).set(1)
        for name, grown in counts.items():
            metrics[name].labels(*labels).inc(grown)

    def log_engine_initialized(self) -> None:
        """Do nothing: there is nothing to say of an engine that has just started."""


@functools.cache
def _metrics() -> dict[str, Any]:
    """Return the metrics, made once for each process."""
    metrics: dict[str, MetricWrapperBase] = {
        name: Counter(f"step_{name}", text, _LABELS) for name, text in _COUNTERS.items()
    }
    buckets = [tenth / 10 for tenth in range(1, 11)]
    metrics["score"] = Histogram("step_score", "Step scores.", _LABELS, buckets=buckets)
    metrics["disabled"] = Gauge(
        "step_disabled",
        "1 once scoring and pruning are off after a failure.",
        _LABELS,
        multiprocess_mode="max",
    )
    return metrics
