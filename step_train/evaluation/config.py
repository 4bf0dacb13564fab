"""Settings of an evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from step_infer.errors import InputError


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything that `step-train evaluate` can be told."""

    run: Path | None = None
    """Run directory of step-train fit; its best epoch is judged."""
    scorer: Path | None = None
    """Scorer file to judge instead of a run."""
    traces: Path | None = None
    """Traces directory with features; by default, with a run, the one it was trained on."""
    split: Literal["auto", "all", "test", "val", "train"] = "auto"
    """Which questions: all, or those of one split of the run. Auto: the test split of the traces
    that the run was trained on, all questions of others."""
    out: Path | None = None
    """JSON file to write; without it, the figures are only printed."""

    def __post_init__(self) -> None:
        if (self.run is None) == (self.scorer is None):
            raise InputError(
                "Expected either --run or --scorer, found "
                f"{'none of them' if self.run is None else 'both'}."
            )
        if self.scorer is not None and self.traces is None:
            raise InputError(
                "Expected --traces with --scorer, found none. "
                "Hint: --traces takes a directory of step-collect with features."
            )
        if self.scorer is not None and self.split not in ("auto", "all"):
            raise InputError(
                f"Expected a run for --split {self.split}, found a scorer file, which "
                "knows no split. Hint: use --run."
            )
