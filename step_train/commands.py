"""The command line of `step-train`: fit, sweep, evaluate, extract, demo-model."""

import sys
from collections.abc import Sequence

from step_infer.cli.command import run
from step_infer.cli.options import parse_config, run_subcommand

FIT = (
    "Train a step scorer on traces with features. Interrupted? The same command goes on where it "
    "stopped. Other subcommands: `step-train sweep` compares variants of the recipe, `step-train "
    "evaluate` judges a scorer on other traces, `step-train extract` adds features to traces, "
    "`step-train demo-model` trains the demo language model; each has its own --help."
)
SWEEP = (
    "Fit variants of the training recipe, each with several seeds, and compare them with the "
    "paper's recipe by how they rank the traces of a question. Interrupted? The same command goes "
    "on where it stopped."
)
EVALUATE = (
    "Judge a scorer on traces with features: how well it tells right from wrong, overall and "
    "within question, against cheap baselines, and what votes gain by it."
)
EXTRACT = (
    "Compute the hidden states at the step boundaries of existing traces by a forward pass of "
    "their model, and write both as a new traces directory. Interrupted? The same command goes on "
    "where it stopped."
)
DEMO_MODEL = "Train the demo language model from scratch on endless ledger traces."


def main() -> None:
    """Run `step-train` on the process's arguments."""
    run(lambda: run_subcommand("step-train", SUBCOMMANDS, fit_command, sys.argv[1:]))


def fit_command(argv: Sequence[str]) -> None:
    """Run `step-train fit`: train, and print the outcome."""
    from data_gen.traces.manifest import read_trace_manifest
    from step_train.fit.config import FitConfig

    config = parse_config(FitConfig, argv, "step-train fit", FIT)
    read_trace_manifest(config.traces)  # before seconds of imports
    from rich.console import Console

    from step_train.evaluation.view import print_baselines, print_metrics, print_votes
    from step_train.fit.run import fit
    from step_train.trainer import is_first_process

    result = fit(config)
    if not is_first_process(config.num_nodes):
        return
    console = Console(soft_wrap=not sys.stdout.isatty())
    data = result.data
    skipped = ", ".join(f"{n} {reason}" for reason, n in data["skipped_traces"].items() if n)
    for split in ("train", "val"):
        counts = data["splits"][split]
        console.print(
            f"{split.capitalize()}: {counts['questions']} questions, {counts['traces']} traces "
            f"({counts['right_traces']} right), {counts['steps']} steps"
        )
    console.print(f"Traces skipped: {skipped or 'none'}")
    if not data["traces_complete"]:
        console.print("warning: the run that makes these traces has not come to its end")
    print_metrics(result.metrics, result.aggregator, console)
    print_baselines(result.baselines, console)
    print_votes(result.metrics["votes"], console)
    if config.confidence:
        weight = result.confidence.get("weight")
        console.print(
            "Token confidence: left out; validation questions are ranked best without."
            if weight is None
            else f"Token confidence: {weight:+.3f} on the logit for each nat."
        )
    console.print(
        f"Best of {result.epochs} epochs: {result.best_epoch}. Trace score: {result.aggregator}. "
        f"{result.seconds:.1f} s.\nRun: {result.run}\n"
        f"Next: scorer-export {result.run} --out scorer.safetensors"
    )


def sweep_command(argv: Sequence[str]) -> None:
    """Run `step-train sweep`: fit variants, and print how they compare."""
    from data_gen.traces.manifest import read_trace_manifest
    from step_train.fit.sweep_config import SweepConfig

    config = parse_config(SweepConfig, argv, "step-train sweep", SWEEP)
    read_trace_manifest(config.traces)  # before seconds of imports
    from rich.console import Console

    from step_train.fit.sweep import RESULT, TABLE, sweep
    from step_train.fit.sweep_compare import print_sweep

    result = sweep(config)
    # Six columns: a file or a pipe has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 140)
    print_sweep(result, console)
    console.print(f"Written: {config.out / RESULT}, {config.out / TABLE}")


def evaluate_command(argv: Sequence[str]) -> None:
    """Run `step-train evaluate`: judge a scorer, and print the outcome."""
    from data_gen.traces.manifest import read_trace_manifest
    from step_train.evaluation.config import EvaluateConfig

    config = parse_config(EvaluateConfig, argv, "step-train evaluate", EVALUATE)
    if config.traces is not None:
        read_trace_manifest(config.traces)  # before seconds of imports
    from rich.console import Console

    from step_train.evaluate import evaluate_scorer
    from step_train.evaluation.view import print_baselines, print_metrics, print_votes

    outcome = evaluate_scorer(config)
    console = Console(soft_wrap=not sys.stdout.isatty())
    console.print(f"Scorer {outcome['scorer']} on {outcome['traces']}: {outcome['questions']}")
    if outcome["trained_on"] is None:
        console.print(
            "warning: the scorer was trained on these traces; use --run for held-out ones"
        )
    elif outcome["trained_on"]:
        console.print(
            f"warning: the scorer was trained on {outcome['trained_on']} of the questions"
        )
    skipped = ", ".join(f"{n} {reason}" for reason, n in outcome["skipped_traces"].items() if n)
    console.print(f"Traces skipped: {skipped or 'none'}")
    print_metrics(outcome["metrics"], outcome["aggregator"], console)
    print_baselines(outcome["baselines"], console)
    print_votes(outcome["metrics"]["votes"], console)
    if config.out is not None:
        console.print(f"Figures: {config.out}")


def extract_command(argv: Sequence[str]) -> None:
    """Run `step-train extract`."""
    from data_gen.traces.manifest import read_trace_manifest
    from step_train.extract.config import ExtractConfig

    config = parse_config(ExtractConfig, argv, "step-train extract", EXTRACT)
    read_trace_manifest(config.traces)  # before seconds of imports
    from step_train.extract.run import extract

    extract(config)


def demo_model_command(argv: Sequence[str]) -> None:
    """Run `step-train demo-model`: train it, and say where it is."""
    from step_train.demo_model.config import LedgerLMConfig

    config = parse_config(LedgerLMConfig, argv, "step-train demo-model", DEMO_MODEL)
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from step_train.demo_model.run import train_ledger_lm

    folder = train_ledger_lm(config)
    if rank_zero_only.rank in (None, 0):
        print(f"model written to {folder}")


SUBCOMMANDS = {
    "fit": fit_command,
    "sweep": sweep_command,
    "evaluate": evaluate_command,
    "extract": extract_command,
    "demo-model": demo_model_command,
}
"""Subcommands by name; without one, it is fit."""


if __name__ == "__main__":
    main()
