"""Settings of `step-eval calibrate`."""

import math
import os
from dataclasses import dataclass, field
from typing import ClassVar

from step_eval.config import PruningOptions
from step_eval.simulation.config import SimulateConfig
from step_infer.cli.options import check_at_least
from step_infer.errors import InputError

DRAWS = 8
"""How often N traces are drawn from a question's pool, if nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(PruningOptions):
    """Everything that `step-eval calibrate` can be told."""

    MAIN_OPTIONS: ClassVar = (
        "traces",
        "scorer",
        "out",
        "most_changed",
        "num_traces",
        "kv_budget",
        "repeats",
        "timing",
        "limit",
    )

    traces: str
    """Recorded traces of questions that the scorer never saw: a directory of step-collect, or of
    step-eval with the method sc, or the Parquet file of `step-eval record`."""
    scorer: str
    """Scorer file. It scores the hidden states stored with --traces; without states, recorded step
    scores are taken to be its own."""
    out: str
    """Scorer file to write: the same scorer, with the thresholds in its card. It may be --scorer
    itself."""
    most_changed: float = 0.01
    """Share of questions whose answer may be another one than if all traces ran to their ends, in
    (0, 1). It takes at least 1 / share - 1 questions: 99 for 0.01."""
    num_traces: int = 64
    """Traces N for each question."""
    kv_budget: float = 1.0
    """KV cache as a part of what all traces of a mean question need."""
    repeats: int = DRAWS
    """How often each question is asked, each time with other seeds or other recorded traces."""
    limit: int | None = None
    """Use only so many questions from the start."""
    timing: str | None = None
    """Cost of an engine step: STEP,ROW,KV,PREFILL and, where it scores, SCORING in seconds, or a
    directory of step-eval whose methods sc and step they are fitted on. Without it, time is counted
    in engine steps."""
    seed: int = 0
    """Of the draws."""
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "num_traces", "limit", "jobs")
        if not 0 < self.most_changed < 1:
            raise InputError(f"Expected --most-changed in (0, 1), found {self.most_changed}.")
        self.simulated()  # refuses what cannot be simulated

    @property
    def questions_needed(self) -> int:
        """Questions without which no threshold can be told."""
        return max(math.ceil(1 / self.most_changed - 1 - 1e-9), 1)

    def simulated(self) -> SimulateConfig:
        """Return the settings of the engine that is simulated."""
        return SimulateConfig(
            out=self.out,
            traces=self.traces,
            num_traces=[self.num_traces],
            kv_budget=[self.kv_budget],
            aggregator=self.aggregator,
            min_keep=self.min_keep,
            min_steps=self.min_steps,
            seed=self.seed,
        )
