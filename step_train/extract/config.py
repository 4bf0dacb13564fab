"""Settings of an extraction of hidden states."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryOptions
from step_infer.scorer.card import LAST_LAYER
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
                f"{KEEP!r} keeps the rule of the traces, end of thinking included."
            )


@dataclass(frozen=True)
class ExtractConfig:
    """Everything that `step-train extract` can be told."""

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
    layers: str = LAST_LAYER
    """Layers whose states to store, one after the other, by commas: numbers of blocks from 1 (the
    state after that block), and "last" (after the final norm, what an engine shows). A scorer of
    other layers than "last" can be trained and evaluated, but not run in the engine."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the model and of the stored states; auto takes the model's own."""
    batch_tokens: int = 16384
    """Tokens of a forward pass on one device, padding included; a longer trace goes alone."""
    accelerator: str = "auto"
    """Where to run: auto, cpu, gpu, …"""
    devices: int | None = None
    """Devices to use, each with the whole model; null: all, or one CPU process."""
    progress: bool = True
    """Show progress on standard error."""

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layers, in the order in which their states are stored."""
        return tuple(name.strip() for name in self.layers.split(","))

    def __post_init__(self) -> None:
        names = self.layer_names
        bad = [name for name in names if name != LAST_LAYER and not _is_block(name)]
        if bad or len(set(names)) < len(names):
            raise InputError(
                f"Expected different layers out of {LAST_LAYER!r} and numbers from 1, by commas, "
                f"found {self.layers!r}."
            )
        if self.batch_tokens < 1:
            raise InputError(f"Expected batch_tokens of at least 1, found {self.batch_tokens}.")
        if self.devices is not None and self.devices < 1:
            raise InputError(f"Expected devices of at least 1, found {self.devices}.")


def _is_block(name: str) -> bool:
    return name.isdecimal() and not name.startswith("0")
