"""Settings of a scorer's training; the defaults are the paper's (arXiv 2601.09093, section 4.1)."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from step_infer.cli.options import option_name
from step_infer.errors import InputError
from step_infer.scorer.card import MOST_DEPTH, MOST_WIDTH

LEAST_COMPONENTS = 8
"""Fewer hold no direction of every kind that `step_train.data.subspace` looks for."""

_FREE_TO_CHANGE = (
    "traces",
    "out",
    "memory_mib",
    "verify_checksums",
    "accelerator",
    "devices",
    "num_nodes",
    "progress",
    "baselines",
    "shuffles",
)
"""Settings that may differ when a run goes on: they do not decide what comes out."""


@dataclass(frozen=True)
class FitConfig:
    """Everything that `step-train fit` can be told."""

    MAIN_OPTIONS: ClassVar = (
        "traces",
        "out",
        "seed",
        "val_fraction",
        "test_fraction",
        "max_epochs",
        "components",
        "confidence",
        "baselines",
        "memory_mib",
        "accelerator",
    )

    traces: Path
    """Traces directory with features, of step-collect or step-train extract."""
    out: Path
    """Run directory to make, or to go on with after an interruption."""
    seed: int = 0
    """Of split, sub-sampling, weights and batches; the same seed gives the same scorer."""
    test_seed: int | None = None
    """Of the choice of test questions alone, so that runs of several seeds share them; null: as
    the seed says."""
    val_fraction: float = 0.15
    """Part of the questions by which the best epoch, the trace aggregator and, in a sweep, the best
    variant are chosen."""
    test_fraction: float = 0.15
    """Part of the questions for the final metrics; used for nothing else."""
    max_traces_per_class: int | None = None
    """Train on at most so many right and so many wrong traces, drawn at random (paper: 5000)."""
    width: int = 512
    """Units of each hidden layer of the scorer."""
    depth: int = 1
    """Hidden layers of the scorer; 0 for a linear one."""
    normalise: Literal["none", "standard"] = "none"
    """Input normalisation: none, or standard (mean 0 and deviation 1 over the training steps)."""
    components: int = 0
    """Train on so many coordinates of the states, each with mean 0 and deviation 1: principal
    components, and directions that tell right from wrong; found on training questions, folded into
    the exported weights. Each state is then read twice instead of once an epoch. 0: train on the
    states themselves."""
    dropout: float = 0.0
    """Part of the hidden units that a training step leaves out."""
    trace_weighting: Literal["none", "trace"] = "none"
    """What counts the same in the loss: none (every step) or trace (every trace, short or long)."""
    early_discount: float = 0.0
    """How much less the first steps of a trace count than the last, 0 to 1."""
    label_smoothing: float = 0.0
    """Labels are half of this and 1 minus half of this instead of 0 and 1."""
    ranking_weight: float = 0.0
    """Weight, against the cross-entropy, of a ranking loss over a batch's pairs of a right and a
    wrong step of one question; large batches hold more pairs."""
    confidence: bool = False
    """Add the mean token confidence of the trace so far to the scorer's logit, with a weight chosen
    by validation questions. The engine then computes confidences, too, which costs it time."""
    select: Literal["paper", "within_question"] = "paper"
    """What chooses the best epoch, on validation questions: paper (0.75 AUROC + 0.25 F1 of the
    steps) or within_question (their AUROC within question)."""
    batch_size: int = 128
    """Steps in a training batch, over all devices."""
    learning_rate: float = 1e-4
    """Adam's learning rate."""
    weight_decay: float = 1e-5
    """Adam's weight decay."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the hidden layers' products in training; weights, the last layer and all
    evaluation stay in float32. bfloat16 is faster where the processor has it."""
    max_epochs: int = 20
    """Most passes over the training steps."""
    patience: int = 5
    """Epochs without a better value of what `select` names before stopping."""
    aggregator: Literal["auto", "mean", "last", "min", "ema"] = "auto"
    """Trace aggregator for the scorer card; auto chooses by validation questions."""
    memory_mib: int = 1024
    """Most memory for blocks of features in a process, MiB; smaller features stay in memory."""
    verify_checksums: bool = True
    """Compare every file of the traces directory with its checksum first; reads all of it once."""
    accelerator: str = "auto"
    """Where to run: auto, cpu, gpu, …"""
    devices: int = 1
    """Devices of a node to train on; a scorer is small, so one is mostly the fastest."""
    num_nodes: int = 1
    """Nodes, on each of which the same command is given (docs/guides/scale_out.md)."""
    baselines: Literal["all", "cheap", "none"] = "all"
    """What the scorer is compared with: cheap leaves out the question-only probe, which runs the
    model on each prompt, and shuffled labels, which train again."""
    shuffles: int = 5
    """With baselines all: how many times to train on shuffled labels; one alone tells little."""
    progress: bool = True
    """Show progress on standard error."""

    def __post_init__(self) -> None:
        least = {"width": 1, "batch_size": 1, "max_epochs": 1, "patience": 1, "memory_mib": 1}
        for name, bound in (least | {"devices": 1, "num_nodes": 1, "shuffles": 1}).items():
            if getattr(self, name) < bound:
                option = option_name(name)
                raise InputError(
                    f"Expected {option} of at least {bound}, found {getattr(self, name)}."
                )
        for name in ("seed", "test_seed"):
            if not 0 <= (getattr(self, name) or 0) < 2**32:
                option = option_name(name)
                raise InputError(
                    f"Expected {option} from 0 to {2**32 - 1}, found {getattr(self, name)}."
                )
        if self.components and self.components < LEAST_COMPONENTS:
            raise InputError(
                f"Expected --components of at least {LEAST_COMPONENTS}, or 0 for none, "
                f"found {self.components}."
            )
        if self.depth < 0:
            raise InputError(f"Expected --depth of at least 0, found {self.depth}.")
        for name, bound in {"width": MOST_WIDTH, "depth": MOST_DEPTH}.items():
            if getattr(self, name) > bound:
                raise InputError(
                    f"Expected --{name} of at most {bound}, found {getattr(self, name)}."
                )
        for name in ("dropout", "early_discount", "label_smoothing"):
            most = 1 if name == "early_discount" else 0.99
            if not 0 <= getattr(self, name) <= most:
                option = option_name(name)
                raise InputError(
                    f"Expected {option} from 0 to {most}, found {getattr(self, name)}."
                )
        if not self.ranking_weight >= 0:
            raise InputError(
                f"Expected --ranking-weight of at least 0, found {self.ranking_weight}."
            )
        for name in ("devices", "num_nodes"):
            if self.ranking_weight and getattr(self, name) > 1:
                option = option_name(name)
                raise InputError(
                    f"Expected {option} 1 with --ranking-weight, found {getattr(self, name)}: "
                    f"pairs are made within a device's share of a batch. Hint: leave {option} out."
                )
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise InputError(
                "Expected --learning-rate above 0 and --weight-decay of at least 0, "
                f"found {self.learning_rate} and {self.weight_decay}."
            )

    def result_settings(self) -> dict[str, Any]:
        """Return the settings that decide what comes out, JSON-ready."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in _FREE_TO_CHANGE}
