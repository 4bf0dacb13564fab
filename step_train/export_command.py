"""The command line of `scorer-export`."""

from dataclasses import dataclass
from pathlib import Path

from step_infer.command import run
from step_infer.errors import InputError

DESCRIPTION = (
    "Write the scorer of a training run as one safetensors file with its card, or print the card "
    "of such a file."
)


@dataclass(frozen=True)
class ExportConfig:
    """What `scorer-export` can be told."""

    checkpoint: Path | None = None
    """Checkpoint or run directory of step-train fit; can be given without the option's name."""
    out: Path | None = None
    """Scorer file to write."""
    inspect: Path | None = None
    """Print the card of this scorer file, and write nothing."""

    def __post_init__(self) -> None:
        if self.inspect is not None:
            if self.checkpoint is not None or self.out is not None:
                raise InputError("Expected --inspect alone, found a checkpoint or --out as well.")
        elif self.checkpoint is None or self.out is None:
            raise InputError(
                "Expected a checkpoint and --out FILE, or --inspect FILE. "
                "Hint: scorer-export RUN --out scorer.safetensors."
            )


def main() -> None:
    """Run `scorer-export` on the process's arguments."""
    run(_main)


def _main() -> None:
    import sys

    from step_infer.command_line import parse_config

    argv = sys.argv[1:]
    if argv and not argv[0].startswith("-"):
        argv = ["--checkpoint", *argv]
    elif len(argv) > 2 and not argv[-1].startswith("-") and not argv[-2].startswith("-"):
        argv = [*argv[:-1], "--checkpoint", argv[-1]]
    config = parse_config(ExportConfig, argv, "scorer-export", DESCRIPTION)

    from rich.console import Console

    from step_train.card_view import print_card

    console = Console(soft_wrap=not sys.stdout.isatty())
    if config.inspect is not None:
        from step_infer.scorer import read_card

        print_card(read_card(config.inspect), str(config.inspect), console)
        return
    from step_train.export import export

    assert config.checkpoint is not None
    assert config.out is not None
    card = export(config.checkpoint, config.out)
    if not card.metrics:
        console.print(
            "warning: not the best checkpoint of a complete run; "
            "the card has no held-out metrics and the aggregator is the default one"
        )
    console.print(f"Scorer of {card.base_model} (H = {card.hidden_size}): {config.out}")


if __name__ == "__main__":
    main()
