"""Settings of an extraction of hidden states."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from step_infer.cli.options import check_at_least
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryOptions
from step_infer.scorer.think_end import THINK_END

KEEP = "traces"
"""The kind of boundary that the traces directory says."""


@dataclass(frozen=True)
class ExtractBoundary(BoundaryOptions):
    """What ends a step of traces that are there."""

    kind: str = KEEP
    """traces (as their directory says), blank_line, newline, sentence, regex or stride."""

    kinds: ClassVar[tuple[str, ...]] = (KEEP, *BoundaryOptions.kinds)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == KEEP and self.think_end != THINK_END:
            raise InputError(
                "Expected --boundary.kind beside --boundary.think-end, found none: the kind "
                f"{KEEP!r} keeps the rule of the traces, end of thinking included. "
                "Hint: name another kind, or leave --boundary.think-end out."
            )


@dataclass(frozen=True)
class ExtractConfig:
    """Everything that `step-train extract` can be told."""

    MAIN_OPTIONS: ClassVar = (
        "model",
        "traces",
        "out",
        "dtype",
        "batch_tokens",
        "accelerator",
        "devices",
    )

    model: str
    """Model folder or Hugging Face id; its vocabulary must be that of the traces."""
    traces: Path
    """Traces directory to read; features that it may have are not looked at."""
    out: Path
    """Traces directory to make, or to go on with: the same traces, with features."""
    boundary: ExtractBoundary = field(default_factory=ExtractBoundary)
    """What ends a step; the kind traces takes the rule of the traces directory."""
    revision: str | None = None
    """Branch, tag or commit of a model from the hub; none given, the one that made the traces,
    where this is the same model."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the model and of the stored states; auto takes the model's own, but float32
    on a CPU without bfloat16 instructions, as the engine does."""
    batch_tokens: int = 16384
    """Tokens of a forward pass on one device, padding included; a longer trace goes alone."""
    accelerator: str = "auto"
    """Where to run: auto, cpu, gpu, …"""
    devices: int | None = None
    """Devices of a node to use, each with the whole model; null: all, or one CPU process."""
    num_nodes: int = 1
    """Nodes, on each of which the same command is given (docs/guides/scale_out.md)."""
    progress: bool = True
    """Show progress on standard error."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch_tokens", "devices", "num_nodes")
