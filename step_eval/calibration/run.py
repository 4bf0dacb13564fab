"""`step-eval calibrate`: from recorded traces to thresholds in the card of a scorer."""

import dataclasses
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from data_gen.traces.directory import TraceDirectory
from data_gen.traces.manifest import KIND as TRACES_KIND
from data_gen.traces.manifest import OWN_FILES as TRACE_FILES
from step_eval.calibration.config import CalibrateConfig
from step_eval.calibration.threshold import Course, course, find_threshold, try_thresholds
from step_eval.recorded.files import read_pool
from step_eval.recorded.traces import TracePool
from step_eval.report.words import NO_INTERVAL, signed
from step_eval.results import OWN_FILES as EVAL_FILES
from step_eval.simulation.deciding import Voting
from step_eval.simulation.question import Setting, run_question
from step_eval.simulation.schedule import Pruning
from step_eval.simulation.sweep import drawn_traces, engine_shape
from step_eval.simulation.timing import Timing, read_timing
from step_eval.votes import UNIFORM
from step_infer.cli.progress import track
from step_infer.errors import InputError
from step_infer.scorer.card import ScorerCard
from step_infer.scorer.network import load_scorer, save_scorer
from step_infer.storage.files import check_output
from step_infer.storage.run_directory import read_manifest

METHODS = {UNIFORM: "sc", "score": "step"}
"""The vote rules that get a threshold, and the method whose schedule it is found on."""

Courses = list[list[Course]]
"""By question and draw."""


def calibrate(config: CalibrateConfig, console: Console | None = None) -> ScorerCard:
    """Find the thresholds, write the scorer with them in its card, and say what they do.

    Raises:
        InputError: an input cannot be used, or there are too few questions or traces.
    """
    console = console or Console(soft_wrap=True)
    source = Path(config.traces)
    own = [source / name for name in (*TRACE_FILES, *EVAL_FILES)] if source.is_dir() else [source]
    check_output(config.out, *own)
    scorer, card = load_scorer(config.scorer)
    pool = _read(config, card, console)
    aggregator = config.aggregator or pool.aggregator or card.aggregator
    timing = read_timing(config.timing)
    table = _table(timing)
    found = {}
    allowed = config.most_changed * (len(pool.questions) + 1) - 1
    for vote, courses_QR in _all_courses(config, pool, timing, aggregator).items():
        worst_QR = np.array([[course.worst for course in row] for row in courses_QR])
        threshold = find_threshold(worst_QR, allowed)
        if threshold is None:
            console.print(
                f"No threshold for the vote {vote}: even at a chance of 1 more than "
                f"{config.most_changed:.2%} of the answers would change. "
                "Stop by the rule unbeatable.",
                highlight=False,
            )
            continue
        trial = dataclasses.asdict(try_thresholds(courses_QR, allowed))
        found[vote] = {
            "threshold": threshold,
            "most_changed": config.most_changed,
            "questions": len(pool.questions),
            "draws": config.repeats,
            "num_traces": config.num_traces,
            "kv_budget": config.kv_budget,
            "method": METHODS[vote],
            "aggregator": aggregator,
            "traces": pool.source,
            **{f"{name}_held_out": value for name, value in trial.items()},
        }
        table.add_row(*_words(vote, threshold, trial))
    card = dataclasses.replace(card, deciding={**card.deciding, **found})
    save_scorer(config.out, scorer, card)
    console.print(table)
    console.print(f"Scorer: {config.out}", highlight=False)
    return card


def _read(config: CalibrateConfig, card: ScorerCard, console: Console) -> TracePool:
    """Read the traces, and refuse too few questions or traces."""
    path = Path(config.traces)
    scorer: str | None = None
    if path.is_dir() and read_manifest(path).get("kind") == TRACES_KIND:
        directory = TraceDirectory(path)
        if any(part["features"] for part in directory.manifest["parts"]):
            scorer = config.scorer
        if directory.fingerprint == card.training.get("traces_fingerprint"):
            console.print(
                f"[bold]note:[/] the scorer was trained on questions of {path}, whose scores are "
                "better than those of new questions: calibrate on others.",
                highlight=False,
            )
    pool = read_pool(path, scorer)
    if config.limit is not None:
        pool = dataclasses.replace(pool, questions=pool.questions[: config.limit])
    count = len(pool.questions)
    if count < config.questions_needed:
        least = math.ceil(10_000 / (count + 1)) / 10_000
        raise InputError(
            f"Expected at least {config.questions_needed} questions for --most-changed "
            f"{config.most_changed:g}, found {count} in {config.traces}. Hint: collect traces of "
            f"more questions, or give --most-changed {least:g} or more."
        )
    short = min(pool.questions, key=lambda question: len(question.traces))
    if len(short.traces) < config.num_traces:
        raise InputError(
            f"Expected at least {config.num_traces} traces of each question in {config.traces}, "
            f"found {len(short.traces)} of {short.question_id}. Hint: lower --num-traces."
        )
    if not pool.scored:
        console.print(f"No step scores in {config.traces}: no threshold for the vote score.")
    elif scorer is None:
        console.print(f"Step scores as recorded in {config.traces}, taken to be this scorer's.")
    return pool


_shared: tuple[CalibrateConfig, TracePool, Timing, dict[str, Setting]]


def _begin(*shared: Any) -> None:
    global _shared
    _shared = shared  # type: ignore[assignment]


def _all_courses(
    config: CalibrateConfig, pool: TracePool, timing: Timing, aggregator: str
) -> dict[str, Courses]:
    """Simulate every draw of every question; return where it could stop, by vote rule."""
    shape = engine_shape(config.simulated(), pool, config.num_traces, config.kv_budget)
    pruning = Pruning(aggregator, config.min_keep, config.min_steps)
    settings = {
        vote: Setting(method, shape, pruning, vote)
        for vote, method in METHODS.items()
        if vote == UNIFORM or pool.scored
    }
    found: dict[str, Courses] = {vote: [] for vote in settings}
    count = len(pool.questions)
    with ProcessPoolExecutor(
        min(config.jobs, count), get_context("fork"), _begin, (config, pool, timing, settings)
    ) as processes:
        for row in track(processes.map(_question, range(count)), count, "questions", delay_s=2.0):
            for vote, courses_R in row.items():
                found[vote].append(courses_R)
    return found


def _question(number: int) -> dict[str, list[Course]]:
    config, pool, timing, settings = _shared
    question = pool.questions[number]
    found: dict[str, list[Course]] = {vote: [] for vote in settings}
    for repeat in range(config.repeats):
        traces, _ = drawn_traces(question, config.num_traces, repeat, [config.seed, 3, number])
        for vote, setting in settings.items():
            schedule = run_question(setting, traces, question.prompt_tokens)
            voting = Voting(traces, vote, setting.pruning.aggregator)
            found[vote].append(course(schedule, voting, timing.of_engine(setting.scores)))
    return found


def _table(timing: Timing) -> Table:
    time = "Seconds" if timing.unit == "seconds" else "Engine steps"
    table = Table(
        title="The rule likely, on questions that its threshold never saw", title_justify="left"
    )
    for heading in ("Vote", "Threshold", "Answers changed", time, "Tokens", f"{time}, unbeatable"):
        table.add_column(heading, justify="left" if heading == "Vote" else "right")
    return table


def _words(vote: str, threshold: float, trial: dict[str, Any]) -> Sequence[str]:
    def cell(name: str) -> str:
        found = trial[name]
        ends = NO_INTERVAL
        if found["low"] is not None:
            ends = f"{signed(100 * found['low'])} to {signed(100 * found['high'])}"
        return f"{signed(100 * found['value'])} %\n[dim]{ends}[/dim]"

    changed = f"{trial['changed']:.2%}\n[dim]up to {trial['changed_high']:.1%}[/dim]"
    names = ("time", "tokens", "unbeatable_time")
    return vote, f"{threshold:.6f}", changed, *(cell(name) for name in names)
