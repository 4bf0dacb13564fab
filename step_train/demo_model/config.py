"""How the demo language model is trained."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from step_infer.cli.options import check_at_least
from step_infer.errors import InputError

SMALLEST_BATCH = 2048
"""No trace of the demo world is longer by much, so every batch holds at least one, tokens."""

# What a run that goes on may change without becoming another run.
_FREE_TO_CHANGE = {"out", "compile", "devices", "checkpoint_steps", "log_steps"}


@dataclass(frozen=True)
class LedgerLMConfig:
    """How the demo model is trained."""

    MAIN_OPTIONS: ClassVar = (
        "out",
        "steps",
        "tokens_per_batch",
        "layers",
        "hidden_size",
        "seed",
        "devices",
        "checkpoint_steps",
    )

    out: Path
    """Run directory: checkpoints/, logs/, manifest.json, and the finished model in model/."""
    steps: int = 3500
    """Optimiser steps."""
    tokens_per_batch: int = 131072
    """Tokens of one device's batch, padding included."""
    learning_rate: float = 2e-3
    """Peak of the cosine schedule; it ends at 1 % of this."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    layers: int = 6
    """Transformer layers."""
    hidden_size: int = 256
    """Model width H; heads of 64 share keys and values in pairs."""
    intermediate_size: int = 768
    """Width inside the MLPs."""
    seed: int = 0
    """Of the weights and of the data; same seed and devices, same run."""
    workers: int | None = None
    """Processes that make data, for each device; None: 2 less than the cores, 1 to 12."""
    devices: int | None = None
    """Accelerators to use; None: all, or one CPU process."""
    precision: str | None = None
    """Lightning's name for it; None: "bf16-mixed" on CUDA, else "32-true"."""
    compile: bool | None = None
    """Compile the layers (torch.compile); None: on CUDA only."""
    checkpoint_steps: int = 500
    """A checkpoint and a held-out loss after so many steps."""
    log_steps: int = 20
    """A line in the log after so many steps."""

    def check(self) -> "LedgerLMConfig":
        """Return the configuration with its open values filled in.

        Raises:
            InputError: a value is out of range.
        """
        counts = ("steps", "layers", "checkpoint_steps", "log_steps", "intermediate_size")
        check_at_least(1, self, *counts)
        if self.hidden_size < 128 or self.hidden_size % 128:
            raise InputError(
                f"Expected --hidden-size in multiples of 128, found {self.hidden_size}."
            )
        if self.tokens_per_batch < SMALLEST_BATCH:
            raise InputError(
                f"Expected --tokens-per-batch of at least {SMALLEST_BATCH}, "
                f"found {self.tokens_per_batch}. Hint: a batch holds whole traces."
            )
        workers = self.workers
        if workers is None:
            workers = max(1, min(12, (os.cpu_count() or 1) - 2))
        import torch  # here: --help needs none of it

        compiled = torch.cuda.is_available() if self.compile is None else self.compile
        precision = self.precision or ("bf16-mixed" if torch.cuda.is_available() else "32-true")
        return dataclasses.replace(self, workers=workers, compile=compiled, precision=precision)

    def result_settings(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share with the one it continues."""
        values = dataclasses.asdict(self)
        return {key: value for key, value in values.items() if key not in _FREE_TO_CHANGE}
