"""The command line of `step-collect`."""

import sys
from collections.abc import Sequence

from step_infer.cli.command import run
from step_infer.cli.options import parse_config, run_subcommand

COLLECT = (
    "Sample N traces of every question from a model on vLLM, grade them, and write them with the "
    "hidden states at their step boundaries. Interrupted? The same command goes on where it "
    "stopped. `step-collect merge DIR... --out DIR` joins runs that shared the questions "
    "(--shard); `step-collect import` takes over traces that were made elsewhere. Both have their "
    "own --help."
)
IMPORT = (
    "Make a traces directory from responses that were made elsewhere: tokenise them with the "
    "model's chat template, find the step boundaries, extract and grade the answers. Responses "
    "without an answer or a thinking part are left out and counted. `step-train extract` then adds "
    "the hidden states. Interrupted? The same command goes on where it stopped."
)
MERGE = (
    "Join the traces directories of step-collect --shard 0/K, 1/K … into one. They must have the "
    "same settings, be finished, and be all K. Their order does not matter. Interrupted? The same "
    "command starts again."
)


def main() -> None:
    """Run `step-collect` on the process's arguments."""
    run(lambda: run_subcommand("step-collect", SUBCOMMANDS, collect_command, sys.argv[1:]))


def collect_command(argv: Sequence[str]) -> None:
    """Run `step-collect`: sample, grade and write traces."""
    from data_gen.config import CollectConfig

    config = parse_config(CollectConfig, argv, "step-collect", COLLECT)
    from data_gen.collect import collect

    collect(config)


def import_command(argv: Sequence[str]) -> None:
    """Run `step-collect import`."""
    from data_gen.config import ImportConfig

    config = parse_config(ImportConfig, argv, "step-collect import", IMPORT)
    from data_gen.importer import import_traces

    import_traces(config)


def merge_command(argv: Sequence[str]) -> None:
    """Run `step-collect merge`."""
    from data_gen.config import CollectMergeConfig

    config = parse_config(CollectMergeConfig, argv, "step-collect merge", MERGE)
    from data_gen.merge import merge

    merge(config)


SUBCOMMANDS = {"import": import_command, "merge": merge_command}
"""Subcommands by name; without one, traces are collected."""


if __name__ == "__main__":
    main()
