"""Compare training variants: `sweep(SweepConfig(...))` fits them all, and says which ones help."""

import csv
import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from step_eval.statistics import Floats, auroc_by_question
from step_infer.cli.progress import track
from step_infer.errors import InputError
from step_infer.storage.files import atomic_write, write_json
from step_train.data.subspace import require_components
from step_train.data.trace_table import TraceTable
from step_train.data.training_data import TrainingData, read_training_data
from step_train.evaluation.held_out import CHOICE_FRACTIONS, trace_scores
from step_train.fit.config import FitConfig
from step_train.fit.run import best_epoch, train
from step_train.fit.sweep_compare import Scores, compare, gain
from step_train.fit.sweep_config import (
    COMBINED,
    PAPER,
    Changes,
    SweepConfig,
    combine,
    read_variants,
)
from step_train.run_directory import FitDirectory
from step_train.trainer import lightning_run

RESULT, TABLE = "sweep.json", "sweep.csv"

Task = tuple[str, FitConfig]


def sweep(config: SweepConfig) -> dict[str, Any]:
    """Fit every variant with every seed, compare them, and write what came out.

    Returns:
        What sweep.json holds: "winner", "variants" (`step_train.fit.sweep_compare.compare`), "data"
        and "definitions".

    Raises:
        InputError: the traces, a variant or the output directory cannot be used.
    """
    variants = read_variants(config)
    found = _fit_all(config, variants)
    if config.combine:
        gains = {name: gain(found, name, "val") for name in variants if name != PAPER}
        together = combine(variants, gains)
        if together and together not in variants.values():
            variants = variants | {COMBINED: together}
            found |= _fit_all(config, {COMBINED: together})
    first = found[PAPER][0]
    result = compare(found, variants) | {
        "data": {"questions": first["questions"], "seeds": config.seeds},
        "settings": {name: str(value) for name, value in asdict(config).items()},
    }
    write_json(config.out / RESULT, result)
    with atomic_write(config.out / TABLE, "w") as file:
        rows = [_flat(row) for row in result["variants"]]
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return result


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict) and name != "settings":
            flat |= {f"{name}_{part}": item for part, item in value.items()}
        else:
            flat[name] = value
    return flat


def _fit_all(config: SweepConfig, variants: dict[str, Changes]) -> dict[str, list[Scores]]:
    """Return each variant's outcome for each seed."""
    tasks: dict[Path, Task] = {}
    for seed in range(config.seeds):
        for name, changes in variants.items():
            folder = re.sub(r"[^\w.-]+", "-", name)
            out = config.out / "fits" / folder / f"seed-{seed}"
            if out in tasks:
                raise InputError(
                    f"Expected variants whose names differ as folders, found {name!r} and "
                    f"{tasks[out][0]!r}. Hint: rename one of them."
                )
            tasks[out] = (name, config.fit(changes, seed, out))
    found: dict[str, list[Scores]] = {name: [] for name in variants}
    outcomes = _outcomes(list(tasks.values()), config.jobs)
    for name, outcome in track(outcomes, len(tasks), "fits", shown=config.progress):
        found[name].append(outcome)
    for scores in found.values():
        scores.sort(key=lambda outcome: int(outcome["seed"]))
    return found


def _outcomes(tasks: list[Task], jobs: int) -> Iterator[tuple[str, Scores]]:
    if jobs == 1:
        for name, settings in tasks:
            yield name, fit_scores(settings)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, _one_thread) as pool:
        names = {pool.submit(fit_scores, settings): name for name, settings in tasks}
        try:
            for done in as_completed(names):
                yield names[done], done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def fit_scores(config: FitConfig) -> Scores:
    """Fit, or go on with a fit, and return each held-out question's ranking; a done one is read.

    Returns:
        "seed", "epochs", "best_epoch", "aggregator", "calibration", "questions" (how many are in
        each split), and under "val" and "test", for each question with right and wrong traces, the
        AUROC of the trace score within it at 25, 50 and 75 % of the steps.

    Raises:
        InputError: the traces, the run directory or a setting cannot be used.
    """
    data = read_training_data(
        config.traces,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        max_traces_per_class=config.max_traces_per_class,
        seed=config.seed,
        test_seed=config.test_seed,
    )
    require_components(config.components, data.rows, config.memory_mib)
    with FitDirectory(config.out) as run:
        settings = config.result_settings() | {
            "traces_fingerprint": data.fingerprint,
            "purpose": "sweep",
        }
        run.start(settings, data.split_ids(), model=asdict(data.model), data=data.summary())
        if not run.complete:
            run.finish_fit(_train_and_score(config, data, run))
        return run.metrics()


def _train_and_score(config: FitConfig, data: TrainingData, run: FitDirectory) -> Scores:
    with lightning_run():
        module, trainer = train(config, data, run)
        best = best_epoch(config, data, run, module, trainer)
    facts = best.facts
    aggregator = facts["aggregator"]
    scores = {"val": best.val_score_S, "test": best.test_score_S}
    return {
        "seed": config.seed,
        "epochs": facts["epochs"],
        "best_epoch": facts["best_epoch"],
        "aggregator": aggregator,
        "calibration": facts["calibration"],
        "questions": {
            name: counts["questions"] for name, counts in facts["data"]["splits"].items()
        },
    } | {
        name: question_ranking(data.splits[name], score_S, aggregator)
        for name, score_S in scores.items()
    }


def question_ranking(table: TraceTable, score_S: Floats, aggregator: str) -> dict[str, list[float]]:
    """Return, for each question that can tell, the AUROC within it at 25, 50 and 75 %."""
    values = np.stack(
        [
            auroc_by_question(table.correct_N, score_N, table.question_N, len(table.questions))[0]
            for score_N in trace_scores(table, score_S, aggregator, CHOICE_FRACTIONS)
        ],
        axis=1,
    )
    return {
        table.questions[question]: values[question].tolist()
        for question in np.flatnonzero(np.isfinite(values[:, 0]))
    }
