"""All configurations of a simulation, over processes, and what comes of them."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import numpy as np

from step_eval.methods.registry import base_name
from step_eval.recorded.traces import PoolQuestion, PoolTrace, TracePool, pick
from step_eval.simulation.config import AUROC_AT, SimulateConfig
from step_eval.simulation.question import FIGURES, Setting, figures, run_question
from step_eval.simulation.schedule import EngineShape, Pruning, Schedule
from step_eval.simulation.scores import tuned_scores, within_auroc
from step_eval.simulation.timing import Timing
from step_eval.statistics import bootstrap_weights, interval, interval_ends

RECORDED = "recorded"
"""The scorer whose step scores came with the traces."""

Scorer = float | str | None
"""A made-up scorer's AUROC, RECORDED, or None for sc, which needs none."""
Task = tuple[float, Scorer]
"""Length scale and scorer."""


@dataclasses.dataclass
class Cell:
    """One configuration: figures of its questions, repeats of a question side by side."""

    method: str
    scorer: Scorer
    auroc: float | None
    """The scorer's within-question AUROC, as reached on these traces."""
    num_traces: int
    kv_budget: float
    length_scale: float
    kv_tokens: int
    """Tokens that the KV cache holds."""
    figures: dict[str, list[float]]
    """By the names of `FIGURES` [questions x repeats]."""

    @property
    def place(self) -> tuple[int, float, float]:
        """N, KV budget and length scale: what methods are compared on."""
        return self.num_traces, self.kv_budget, self.length_scale


def sweep(
    config: SimulateConfig,
    pool: TracePool,
    timing: Timing,
    on_task: Callable[[int, int], None] | None = None,
) -> list[Cell]:
    """Simulate every configuration.

    Args:
        config: the settings.
        pool: the traces.
        timing: cost of a step.
        on_task: called with tasks done and tasks in all.
    """
    scorers: list[Scorer] = [None, *([RECORDED] if pool.scored else []), *config.auroc]
    tasks = list(itertools.product(config.length_scale, scorers))
    cells: list[Cell] = []
    with ProcessPoolExecutor(
        min(config.jobs, len(tasks)), get_context("fork"), _begin, (config, pool, timing)
    ) as processes:
        running = [processes.submit(_work, task) for task in tasks]
        for done, future in enumerate(as_completed(running), 1):
            cells += future.result()
            if on_task is not None:
                on_task(done, len(tasks))
    return sorted(cells, key=lambda c: (*c.place, c.method, str(c.scorer)))


_shared: tuple[SimulateConfig, TracePool, Timing]


def _begin(config: SimulateConfig, pool: TracePool, timing: Timing) -> None:
    global _shared
    _shared = config, pool, timing


def _work(task: Task) -> list[Cell]:
    config, pool, timing = _shared
    return run_task(config, pool, timing, task)


def run_task(config: SimulateConfig, pool: TracePool, timing: Timing, task: Task) -> list[Cell]:
    """Simulate all configurations of one length scale and scorer."""
    scale, scorer = task
    pool = pool.scaled(scale)
    aggregator = config.aggregator or pool.aggregator or "mean"
    scores, reached = None, None
    if isinstance(scorer, float):
        scores, reached = tuned_scores(pool, scorer, AUROC_AT, aggregator, config.seed)
    elif scorer == RECORDED:
        recorded = [[trace.scores for trace in q.traces] for q in pool.questions]
        reached = within_auroc(pool, recorded.__getitem__, AUROC_AT, aggregator)
    methods = [
        name for name in config.method_names if (base_name(name) == "sc") == (scorer is None)
    ]
    cells = []
    for count, budget in itertools.product(config.num_traces, config.kv_budget):
        shape = engine_shape(config, pool, count, budget)
        pruning = Pruning(aggregator, config.min_keep, config.min_steps)
        settings = {
            method: Setting(
                base_name(method), shape, pruning, config.vote, config.stop_rule(method)
            )
            for method in methods
        }
        found: dict[str, dict[str, list[float]]]
        found = {method: {name: [] for name in FIGURES} for method in methods}
        for number, repeat in itertools.product(range(len(pool.questions)), range(config.repeats)):
            question = pool.questions[number]
            traces, chosen = drawn_traces(question, count, repeat, [config.seed, 3, number])
            own = None if scores is None else [scores[number][index] for index in chosen]
            schedules: dict[str, Schedule] = {}
            for method, setting in settings.items():
                if setting.schedule not in schedules:
                    schedules[setting.schedule] = run_question(
                        setting, traces, question.prompt_tokens, own
                    )
                schedule = schedules[setting.schedule]
                for name, value in figures(schedule, setting, traces, timing, own).items():
                    found[method][name].append(value)
        tokens = shape.kv_blocks * shape.block_size
        cells += [
            Cell(method, scorer, reached, count, budget, scale, tokens, found[method])
            for method in methods
        ]
    return cells


def drawn_traces(
    question: PoolQuestion, count: int, repeat: int, seed: Sequence[int]
) -> tuple[list[PoolTrace], list[int]]:
    """Return the traces that `pick` chooses, and their indices in the question's pool.

    Where one was drawn twice, none has its text: the copies stand for other traces.
    """
    chosen = pick(question, count, repeat, seed)
    traces = [question.traces[index] for index in chosen]
    if len(set(chosen)) < len(chosen):
        traces = [dataclasses.replace(trace, text=None) for trace in traces]
    return traces, chosen


def engine_shape(config: SimulateConfig, pool: TracePool, count: int, budget: float) -> EngineShape:
    """Return the engine for `count` traces and a KV budget; a longest trace always fits."""
    longest = max(q.prompt_tokens + t.tokens for q in pool.questions for t in q.traces)
    tokens = max(budget * count * pool.mean_tokens, longest)
    return EngineShape(
        -(-int(tokens) // config.block_size),
        config.block_size,
        config.max_num_seqs,
        max(config.max_num_batched_tokens, config.max_num_seqs),
    )


def summaries(cells: Iterable[Cell], pool: TracePool, repeats: int) -> list[dict[str, Any]]:
    """Return each cell with the mean of its figures and their 95 % intervals over questions."""
    plain_P, drawn_DP = _weights(pool, repeats)
    rows = []
    for cell in cells:
        means = {}
        values_PF = np.array(list(cell.figures.values())).T
        value_F, drawn_DF = plain_P @ values_PF, drawn_DP @ values_PF
        for index, name in enumerate(cell.figures):
            found = interval(value_F[index], drawn_DF[:, index], len(pool.questions))
            means[name] = dataclasses.asdict(found)
        row = {**dataclasses.asdict(cell), "label": label(cell.scorer), "figures": means}
        rows.append(row)
    return rows


def label(scorer: Scorer) -> str:
    """Return a scorer's name for tables."""
    if scorer is None:
        return "none"
    return "the given scorer" if scorer == RECORDED else f"AUROC {scorer:g}"


def _weights(pool: TracePool, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    ids = [q.question_id for q in pool.questions for _ in range(repeats)]
    return bootstrap_weights(ids)


def break_even(cells: Sequence[Cell], pool: TracePool, repeats: int) -> list[dict[str, Any]]:
    """Return, for each N, KV budget and length, the AUROC at which STEP is as accurate as SC.

    The made-up scorers' differences to SC are made monotone in AUROC (isotonic regression) and
    joined by lines. `value`, `low` and `high` (95 % over questions) are None where even the best of
    them stays below SC; at the lowest AUROC, the break-even may lie lower still. One question alone
    has no interval: `low` and `high` are the value.
    """
    plain_P, drawn_DP = _weights(pool, repeats)
    rows = []
    for place in sorted({cell.place for cell in cells}):
        here = [cell for cell in cells if cell.place == place]
        base_P = np.array(next(c for c in here if c.method == "sc").figures["accuracy"])
        curve = [c for c in here if c.method == "step" and isinstance(c.scorer, float)]
        if len(curve) < 2:
            continue
        curve.sort(key=lambda cell: cell.auroc or 0.0)
        auroc_A = np.array([cell.auroc for cell in curve])
        gain_AP = np.array([cell.figures["accuracy"] for cell in curve]) - base_P
        drawn = [crossing(auroc_A, gain_A) for gain_A in (drawn_DP @ gain_AP.T)]
        value = crossing(auroc_A, gain_AP @ plain_P)
        low, high = interval_ends(np.array(drawn), len(pool.questions), method="nearest")
        if low is None or high is None:
            low = high = value
        rows.append(
            {
                "num_traces": place[0],
                "kv_budget": place[1],
                "length_scale": place[2],
                **{
                    name: None if np.isinf(number) else float(number)
                    for name, number in (("value", value), ("low", low), ("high", high))
                },
                "lowest": float(auroc_A[0]),
                "highest": float(auroc_A[-1]),
            }
        )
    return rows


def crossing(auroc_A: np.ndarray, gain_A: np.ndarray) -> float:
    """Return where a gain, made monotone in AUROC, comes to zero; infinity where it never does."""
    from scipy.optimize import isotonic_regression

    smooth_A = isotonic_regression(gain_A).x
    above = np.flatnonzero(smooth_A >= -1e-12)
    if len(above) == 0:
        return float("inf")
    first = int(above[0])
    if first == 0:
        return float(auroc_A[0])
    rise = smooth_A[first] - smooth_A[first - 1]
    part = -smooth_A[first - 1] / rise
    return float(auroc_A[first - 1] + part * (auroc_A[first] - auroc_A[first - 1]))
