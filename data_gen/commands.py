"""The command line of `step-collect`."""

import sys
from collections.abc import Sequence

from step_infer.cli.command import run
from step_infer.errors import InputError

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
    run(lambda: _main(sys.argv[1:]))


def _main(argv: Sequence[str]) -> None:
    from step_infer.cli.options import parse_config, with_positionals

    if argv[:1] == ["import"]:
        from data_gen.config import ImportConfig

        importing = parse_config(ImportConfig, argv[1:], "step-collect import", IMPORT)
        from data_gen.importer import import_traces

        import_traces(importing)
        return
    if argv[:1] == ["merge"]:
        from data_gen.config import CollectMergeConfig

        merging = parse_config(
            CollectMergeConfig, with_positionals(argv[1:], "shards"), "step-collect merge", MERGE
        )
        from data_gen.merge import merge

        merge(merging)
        return
    if argv and not argv[0].startswith("-"):
        raise InputError(
            f"Expected options, or a subcommand out of import, merge, found {argv[0]!r}. "
            "Hint: see step-collect --help."
        )
    from data_gen.config import CollectConfig

    config = parse_config(CollectConfig, argv, "step-collect", COLLECT)
    from data_gen.collect import collect

    collect(config)


if __name__ == "__main__":
    main()
