"""Settings of an extraction of hidden states."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from step_infer.boundary import TOKEN_PATTERNS
from step_infer.errors import InputError

KEEP = "traces"
"""The boundary setting that takes the rule of the traces directory."""


@dataclass(frozen=True)
class ExtractConfig:
    """Everything that `step-train extract` can be told."""

    model: str
    """Model folder or Hugging Face id; its vocabulary must be that of the traces."""
    traces: Path
    """Traces directory to read; features that it may have are not looked at."""
    out: Path
    """Traces directory to make, or to go on with: the same traces, with features."""
    boundary: str = KEEP
    """What ends a step: traces (as the directory says), blank_line, newline, sentence, regex or
    stride."""
    boundary_pattern: str | None = None
    """For the boundary regex: expression that a token's text is searched for."""
    boundary_stride: int = 0
    """For the boundary stride: tokens in a step."""
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

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise InputError(f"Expected batch_tokens of at least 1, found {self.batch_tokens}.")
        if self.devices is not None and self.devices < 1:
            raise InputError(f"Expected devices of at least 1, found {self.devices}.")
        kinds = (KEEP, *TOKEN_PATTERNS, "regex", "stride")
        if self.boundary not in kinds:
            raise InputError(
                f"Expected boundary out of {', '.join(kinds)}, found {self.boundary!r}."
            )
        for option, kind in (("boundary_pattern", "regex"), ("boundary_stride", "stride")):
            if bool(getattr(self, option)) != (self.boundary == kind):
                raise InputError(
                    f"Expected {option} with boundary {kind} and only there, "
                    f"found {getattr(self, option)!r} with boundary {self.boundary}."
                )
