"""The command line of `step-collect`."""

from step_infer.command import run

DESCRIPTION = (
    "Sample N traces of every question from a model on vLLM, grade them, and write them with the "
    "hidden states at their step boundaries. Interrupted? The same command goes on where it "
    "stopped."
)


def main() -> None:
    """Run `step-collect` on the process's arguments."""
    run(_main)


def _main() -> None:
    from data_gen.collect_config import CollectConfig
    from step_infer.command_line import parse_config

    config = parse_config(CollectConfig, None, "step-collect", DESCRIPTION)
    from data_gen.collect import collect

    collect(config)


if __name__ == "__main__":
    main()
