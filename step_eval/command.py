"""The command line of `step-eval`: run, merge, report, simulate, calibrate, replay and others."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from step_infer.cli.command import run
from step_infer.cli.options import parse_config, run_subcommand

DESCRIPTION = (
    "Compare methods of answering with N traces: same questions, same seeds, same KV budget, one "
    "vLLM engine per method. Interrupted? The same command goes on where it stopped. "
    '"step-eval merge DIR... --out DIR" joins runs that shared the questions (--shard); '
    '"step-eval report DIR" makes results.json and report.html again from the records; '
    '"step-eval simulate --out DIR" predicts time and accuracy without an engine; '
    '"step-eval calibrate --traces DIR --scorer FILE --out FILE" finds when a vote is likely '
    "decided; "
    '"step-eval events FILE... --out FILE" draws the event log of a server or an engine; '
    '"step-eval replay --traces FILE --out DIR" measures time at real size without weights, on '
    'recorded traces that "step-eval record --traces DIR --out FILE" keeps without their text; '
    '"step-eval watch" shows one question being answered.'
)
SIMULATE = (
    "Predict seconds, tokens, preemptions, pruned traces and accuracy of SC and STEP by simulating "
    "vLLM's scheduler, for every combination of the lists given, on recorded traces or on drawn "
    "ones; and the AUROC that a scorer needs before pruning pays."
)
REPLAY = (
    "Run recorded traces on real engines in the shape of a real model, with random weights: "
    "length, boundaries, scores and answers are the recorded ones, time, preemptions and pruning "
    "are the engine's. --sampling.* decides the sampler's work only. Interrupted? The same command "
    "goes on where it stopped."
)
MERGE = (
    "Join directories of step-eval into one, with one report: runs that shared the questions "
    "(--shard) or the methods, all with the same settings otherwise."
)
REPORT = "Make results.json and report.html of a directory of step-eval again from its records."
EVENTS = "Draw the event log of a server or an engine (--event-log) as one HTML file."
CALIBRATE = (
    "Find the threshold of the stop rule likely for a scorer and its model, on recorded traces of "
    "questions that the scorer never saw, and write it into the scorer's card: at most a stated "
    "share of answers changes because a question stops early."
)
WATCH = "Show one question being answered: traces as they run, their scores, the prunes, the vote."
RECORD = "Keep recorded traces without their text in one small Parquet file."


@dataclass(frozen=True)
class RecordConfig:
    """What `step-eval record` can be told."""

    traces: str
    """Directory of step-collect, or of step-eval with the method sc."""
    out: str
    """Parquet file to write."""
    scorer: str | None = None
    """Scorer file for the hidden states stored with --traces; without it, recorded step scores are
    kept."""
    aggregator: str | None = None
    """Trace aggregator that the scores are meant for: mean, last, min or ema; none given, the
    scorer card's."""


@dataclass(frozen=True)
class MergeConfig:
    """What `step-eval merge` can be told."""

    POSITIONAL: ClassVar = "runs"

    out: str
    """Directory to make."""
    runs: list[str] = field(default_factory=list)
    """Directories of step-eval, each with a part of the questions or of the methods."""
    vote: str = "auto"
    """How traces vote; see step-eval --help."""
    paired: bool = False
    """Keep only the questions and repeats that every method has answered: a balanced comparison
    of runs that were cut."""


@dataclass(frozen=True)
class ReportConfig:
    """What `step-eval report` can be told."""

    POSITIONAL: ClassVar = "run"

    run: str
    """Directory of step-eval."""
    vote: str = "auto"
    """How traces vote; see step-eval --help."""


@dataclass(frozen=True)
class EventsConfig:
    """What `step-eval events` can be told."""

    POSITIONAL: ClassVar = "logs"

    logs: list[str] = field(default_factory=list)
    """Event logs of one server or run; with data parallelism one for each engine."""
    out: str = "events.html"
    """HTML file to write."""


def main() -> None:
    """Run `step-eval` on the process's arguments."""
    run(lambda: command(sys.argv[1:]))


def command(argv: Sequence[str]) -> None:
    """Run `step-eval` on arguments.

    Raises:
        InputError: an argument or an input cannot be used.
    """
    run_subcommand("step-eval", SUBCOMMANDS, run_command, argv)


def run_command(argv: Sequence[str]) -> None:
    """Run `step-eval run`: compare methods on engines."""
    from step_eval.config import EvalConfig

    config = parse_config(EvalConfig, argv, "step-eval", DESCRIPTION)
    from step_eval.run import evaluate

    console = _console()
    show(evaluate(config, console=console), config.out, console)


def replay_command(argv: Sequence[str]) -> None:
    """Run `step-eval replay`."""
    from step_eval.replay.config import ReplayConfig

    config = parse_config(ReplayConfig, argv, "step-eval replay", REPLAY)
    from step_eval.replay.run import replay

    console = _console()
    show(replay(config, console), config.out, console)


def simulate_command(argv: Sequence[str]) -> None:
    """Run `step-eval simulate`."""
    from step_eval.simulation.config import SimulateConfig

    config = parse_config(SimulateConfig, argv, "step-eval simulate", SIMULATE)
    from step_eval.simulation.run import simulate_all

    simulate_all(config, _console())


def calibrate_command(argv: Sequence[str]) -> None:
    """Run `step-eval calibrate`."""
    from step_eval.calibration.config import CalibrateConfig

    config = parse_config(CalibrateConfig, argv, "step-eval calibrate", CALIBRATE)
    from step_eval.calibration.run import calibrate

    calibrate(config, _console())


def merge_command(argv: Sequence[str]) -> None:
    """Run `step-eval merge`."""
    config = parse_config(MergeConfig, argv, "step-eval merge", MERGE)
    from step_eval.merge import merge

    show(merge(config.runs, config.out, config.vote, config.paired), config.out, _console())


def report_command(argv: Sequence[str]) -> None:
    """Run `step-eval report`."""
    config = parse_config(ReportConfig, argv, "step-eval report", REPORT)
    from step_eval.results import write_results

    show(write_results(config.run, config.vote), config.run, _console())


def record_command(argv: Sequence[str]) -> None:
    """Run `step-eval record`."""
    config = parse_config(RecordConfig, argv, "step-eval record", RECORD)
    from step_eval.recorded.files import record

    _console().print(record(config.traces, config.out, config.scorer, config.aggregator))


def events_command(argv: Sequence[str]) -> None:
    """Run `step-eval events`."""
    config = parse_config(EventsConfig, argv, "step-eval events", EVENTS)
    from step_eval.report.events import write_event_report

    write_event_report(config.logs, config.out)
    _console().print(f"Report: {config.out}", highlight=False)


def watch_command(argv: Sequence[str]) -> None:
    """Run `step-eval watch`."""
    from step_eval.watch import WatchConfig, watch

    watch(parse_config(WatchConfig, argv, "step-eval watch", WATCH), _console())


SUBCOMMANDS = {
    "run": run_command,
    "events": events_command,
    "merge": merge_command,
    "report": report_command,
    "simulate": simulate_command,
    "calibrate": calibrate_command,
    "replay": replay_command,
    "record": record_command,
    "watch": watch_command,
}
"""Subcommands by name; without one, it is run."""


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True)


def show(results: dict[str, Any], out: str, console: Any) -> None:
    """Print the table and where the files are."""
    from step_eval.report.table import print_results

    print_results(results, console)
    console.print(f"Report: {Path(out) / 'report.html'}", highlight=False)


if __name__ == "__main__":
    main()
