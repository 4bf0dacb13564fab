"""The Prometheus metrics of voted calls, on the server's /metrics beside vLLM's own."""

import functools
from typing import Any

from prometheus_client import Counter, Histogram

from step_infer.client.deciding import FINISHED
from step_infer.server.voted_answer import step_object
from step_infer.server.voted_call import Outcome
from step_infer.wire import DECIDED, OVER_BUDGET, PRUNED

CUT_OFF, FAILED = "cut_off", "failed"
"""How a call ends that has no outcome: its client has gone, or something failed."""
CACHED, COMPUTED = "cached", "computed"
"""Whether the prefix cache had a token that a child began with."""
_LABELS = ("model_name", "ended")
_SECONDS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def show(model: str) -> None:
    """Make every series of a voted model, all at 0."""
    calls, traces, seconds, share, branches, prefixes = _metrics()
    for ended in (FINISHED, DECIDED, OVER_BUDGET, CUT_OFF, FAILED):
        calls.labels(model, ended)
    for ended in (FINISHED, PRUNED, DECIDED, OVER_BUDGET):
        traces.labels(model, ended)
    seconds.labels(model)
    share.labels(model)
    branches.labels(model)
    for found in (CACHED, COMPUTED):
        prefixes.labels(model, found)


def count(model: str, outcome: Outcome) -> None:
    """Count a call that has been answered."""
    calls, traces, seconds, share, branches, prefixes = _metrics()
    told = step_object(outcome)
    calls.labels(model, outcome.ended).inc()
    for ended, number in told["traces"].items():
        if ended != "all":
            traces.labels(model, ended).inc(number)
    seconds.labels(model).observe(outcome.seconds)
    share.labels(model).observe(outcome.vote.share)
    if (branched := told["branched"]) is not None:
        branches.labels(model).inc(branched["traces"])
        cached = branched["cached_tokens"]
        prefixes.labels(model, CACHED).inc(cached)
        prefixes.labels(model, COMPUTED).inc(branched["prefix_tokens"] - cached)


def count_without_outcome(model: str, ended: str) -> None:
    """Count a call that was not answered, `CUT_OFF` or `FAILED`."""
    _metrics()[0].labels(model, ended).inc()


@functools.cache
def _metrics() -> tuple[Any, ...]:
    """Return the metrics, made once for each process."""
    return (
        Counter("step_voted_calls", "Voted calls, by how they ended.", _LABELS),
        Counter("step_voted_traces", "Traces of voted calls, by how they ended.", _LABELS),
        Histogram("step_voted_seconds", "Seconds of voted calls.", _LABELS[:1], buckets=_SECONDS),
        Histogram(
            "step_voted_share",
            "The winning answers' shares of all weight.",
            _LABELS[:1],
            buckets=[tenth / 10 for tenth in range(1, 11)],
        ),
        Counter("step_voted_branches", "Traces that branched from another.", _LABELS[:1]),
        Counter(
            "step_voted_prefix_tokens",
            "Tokens that such traces began with, by whether the prefix cache had them.",
            ("model_name", "found"),
        ),
    )
