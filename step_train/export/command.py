"""The command line of `scorer-export`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from step_infer.cli.command import run
from step_infer.cli.options import parse_config
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryOptions

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = (
    "Write the scorer of a training run as one safetensors file with its card, import a published "
    "scorer (--from-pt), or print the card of such a file (--inspect)."
)


@dataclass(frozen=True)
class ExportConfig:
    """What `scorer-export` can be told."""

    POSITIONAL: ClassVar = "checkpoint"
    MAIN_OPTIONS: ClassVar = ("checkpoint", "out", "inspect", "force", "from_pt", "model")

    checkpoint: Path | None = None
    """Checkpoint or run directory of step-train fit; can be given without the option's name."""
    out: Path | None = None
    """Scorer file to write."""
    inspect: Path | None = None
    """Print the card of this scorer file, and write nothing."""
    force: bool = False
    """Write also a scorer of step-train fit that is not shown to rank the traces of a question
    better than chance half-way; its card says so."""
    from_pt: Path | None = None
    """Import this PyTorch checkpoint of the paper's code, not a run of ours: a state dict of
    Linear(H, width), ReLU, Linear(width, 1), or a dict that holds one as model_state_dict."""
    model: str | None = None
    """With --from-pt: folder or hub id of the model that the scorer was trained for."""
    revision: str | None = None
    """With --from-pt: branch, tag or commit of a model from the hub."""
    aggregator: Literal["mean", "last", "min", "ema"] = "mean"
    """With --from-pt: trace aggregator for the card."""
    boundary: BoundaryOptions = field(default_factory=BoundaryOptions)
    """With --from-pt: boundary rule that the scorer was trained with."""

    def __post_init__(self) -> None:
        sources = (self.checkpoint, self.inspect, self.from_pt)
        if sum(source is not None for source in sources) != 1:
            raise InputError(
                "Expected one of a checkpoint, --from-pt FILE and --inspect FILE, found "
                f"{sum(source is not None for source in sources)} of them. "
                "Hint: scorer-export RUN --out scorer.safetensors."
            )
        if (self.out is None) != (self.inspect is not None):
            raise InputError(
                "Expected --out FILE with a checkpoint or --from-pt, and not with --inspect, found "
                f"{'none' if self.out is None else self.out}. "
                "Hint: scorer-export RUN --out scorer.safetensors."
            )
        if (self.model is None) != (self.from_pt is None):
            raise InputError(
                f"Expected --model with --from-pt and only there, found model {self.model!r}. "
                "Hint: a run of step-train fit knows its own, a published file does not."
            )
        for option, value, default in (
            ("--revision", self.revision, None),
            ("--aggregator", self.aggregator, ExportConfig.aggregator),
            ("--boundary.kind", self.boundary.kind, BoundaryOptions.kind),
        ):
            if self.from_pt is None and value != default:
                raise InputError(
                    f"Expected {option} with --from-pt only, found {value!r} without. "
                    "Hint: a run of step-train fit knows its own."
                )


def main() -> None:
    """Run `scorer-export` on the process's arguments."""
    run(_main)


def _main() -> None:
    config = parse_config(ExportConfig, None, "scorer-export", DESCRIPTION)
    import sys

    from rich.console import Console

    console = Console(soft_wrap=not sys.stdout.isatty())
    if config.inspect is not None:
        from step_infer.scorer.card import read_card
        from step_train.evaluation.view import print_card

        print_card(read_card(config.inspect), str(config.inspect), console)
    elif config.from_pt is not None:
        _import(config, console)
    else:
        _export(config, console)


def _import(config: ExportConfig, console: "Console") -> None:
    from step_train.export.published import import_scorer
    from step_train.run_directory import IMPORTED

    assert config.from_pt is not None
    assert config.out is not None
    assert config.model is not None
    card = import_scorer(
        config.from_pt,
        config.out,
        config.model,
        revision=config.revision,
        boundary=config.boundary,
        aggregator=config.aggregator,
    )
    taken = ", ".join(
        f"{name} from {old}" for name, old in card.training[IMPORTED]["tensors"].items()
    )
    console.print(f"Taken: {taken}", markup=False)
    console.print(
        "warning: imported, never evaluated here; measure it with step-train evaluate before you "
        "trust it"
    )
    console.print(f"Scorer of {card.base_model} (H = {card.hidden_size}): {config.out}")


def _export(config: ExportConfig, console: "Console") -> None:
    from step_train.evaluation.view import NOT_EARNED
    from step_train.export.run import export

    assert config.checkpoint is not None
    assert config.out is not None
    card = export(config.checkpoint, config.out, config.force)
    if not card.metrics["earned"]:
        console.print(f"warning: {NOT_EARNED}")
    if "data" not in card.metrics:
        console.print(
            "warning: not the best checkpoint of a complete run; "
            "the card has no held-out metrics and the aggregator is the default one"
        )
    console.print(f"Scorer of {card.base_model} (H = {card.hidden_size}): {config.out}")


if __name__ == "__main__":
    main()
