"""From a simulated engine's work to seconds: a linear cost of a step, given or fitted.

A step takes `step + row * traces + kv * KV tokens read + prefill * prefill tokens` seconds, and
`scoring` more in an engine that scores. The costs are fitted on the methods sc and step of a
step-eval directory: each recorded question is simulated with its own traces and KV cache, which
gives the work up to the end of each trace, and non-negative least squares on the differences
between one trace's end and the next finds the costs. A trace that step stopped ends there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from step_eval.recorded.files import record_traces, sc_records
from step_eval.records import QuestionRecord
from step_eval.results import read_run
from step_eval.simulation.engine import simulate
from step_eval.simulation.schedule import EngineShape
from step_eval.simulation.traces import block_contents, simulated_traces
from step_infer.client.engine import CPU_BATCH_TOKENS, CPU_BLOCK_SIZE, CUDA_BLOCK_SIZE
from step_infer.errors import InputError

_CUDA_BATCH = 8192
_SEQUENCES = 256
"""vLLM's own defaults."""


@dataclass(frozen=True)
class Timing:
    """What an engine step costs on one machine."""

    step: float = 1.0
    """Seconds a step."""
    row: float = 0.0
    """Seconds more for each running trace."""
    kv: float = 0.0
    """Seconds more for each KV token that attention reads."""
    prefill: float = 0.0
    """Seconds more for each prefill token."""
    scoring: float = 0.0
    """Seconds more for each step of an engine that scores."""
    source: str = "none given: one unit of time is one engine step"
    unit: str = "steps"
    """"seconds", or "steps" where no costs are known."""

    def of_engine(self, scores: bool) -> "Timing":
        """Return the costs of an engine that scores, or of one that does not."""
        return replace(self, step=self.step + self.scoring * scores, scoring=0.0)

    def seconds(self, work: Sequence[float]) -> float:
        """Return the seconds that some `Work` takes, without scoring."""
        steps, rows, read, prefill = work
        return self.step * steps + self.row * rows + self.kv * read + self.prefill * prefill


def read_timing(text: str | None) -> Timing:
    """Return the costs that `--timing` names: four numbers or five, or a directory of step-eval.

    Raises:
        InputError: it is neither.
    """
    if text is None:
        return Timing()
    if Path(text).is_dir():
        return fit_timing(text)
    parts = text.split(",")
    try:
        step, row, kv, prefill, scoring = map(float, parts if len(parts) == 5 else [*parts, "0"])
    except ValueError as error:
        raise InputError(
            "Expected --timing as a directory of step-eval or as STEP,ROW,KV,PREFILL[,SCORING] in "
            f"seconds, found {text!r}."
        ) from error
    if min(step, row, kv, prefill, scoring) < 0 or step + row + kv + prefill == 0:
        raise InputError(
            f"Expected costs of at least 0, one of them above it, in --timing, found {text!r}."
        )
    return Timing(step, row, kv, prefill, scoring, f"given: {text}", "seconds")


def fit_timing(path: Path | str) -> Timing:
    """Fit the costs on the methods sc and, where it was run, step of a step-eval directory.

    Raises:
        InputError: it has no such records, or they give no costs.
    """
    from scipy.optimize import nnls

    manifest, records = read_run(path)
    group = sc_records(records, path)
    work_RF: list[np.ndarray] = []
    seconds_R: list[float] = []
    for record in (*group, *records.get("step", ())):
        scores = record.method == "step"
        before, before_s = np.zeros(5), 0.0
        shape = engine_shape(manifest, record)
        pool = record_traces(record)
        contents = block_contents(pool, record.prompt_tokens, shape.block_size)
        ends = simulate(
            shape, simulated_traces(pool, record.prompt_tokens, contents=contents)
        ).ended_after
        order = sorted(ends, key=lambda trace: ends[trace][0])
        for trace in order:
            work = np.array([*ends[trace], ends[trace][0] * scores])
            work_s = record.traces[trace].finished_s
            if work[0] > before[0]:
                work_RF.append(work - before)
                seconds_R.append(work_s - before_s)
                before, before_s = work, work_s
    scale_F = np.abs(work_RF).max(axis=0)
    scale_F[scale_F == 0] = 1
    costs_F, _ = nnls(np.array(work_RF) / scale_F, np.array(seconds_R))
    step, row, kv, prefill, scoring = (float(cost) for cost in costs_F / scale_F)
    if step + row + kv + prefill <= 0:
        raise InputError(
            f"Expected records in {path} that give costs of a step, found none. "
            "Hint: choose another run for --timing, or give it STEP,ROW,KV,PREFILL."
        )
    methods = "SC and STEP" if "step" in records else "SC"
    source = f"fitted on {len(group)} questions of {methods} in {path}"
    return Timing(step, row, kv, prefill, scoring, source, "seconds")


def engine_shape(manifest: dict[str, Any], record: QuestionRecord) -> EngineShape:
    """Return the shape of the engine that answered a question, as `StepLLM` sets it up."""
    settings = manifest["settings"]
    on_cpu = "CPU" in (manifest.get("device") or "")
    block_size = int(
        settings.get("engine.block_size", CPU_BLOCK_SIZE if on_cpu else CUDA_BLOCK_SIZE)
    )
    longest = max(trace.tokens for trace in record.traces) + record.prompt_tokens
    batch = max(CPU_BATCH_TOKENS, longest) if on_cpu else _CUDA_BATCH
    return EngineShape(
        record.kv_capacity_tokens // block_size,
        block_size,
        int(settings.get("engine.max_num_seqs", _SEQUENCES)),
        int(settings.get("engine.max_num_batched_tokens", batch)),
        bool(settings.get("engine.enable_chunked_prefill", not on_cpu)),
        in_flight=int(bool(settings.get("engine.async_scheduling", True))),
    )
