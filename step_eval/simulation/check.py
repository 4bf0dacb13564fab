"""The simulation against a real engine: the same questions, predicted and measured."""

from pathlib import Path
from typing import Any

import numpy as np

from step_eval.comparison import outcome, vote_name
from step_eval.recorded.traces import TracePool
from step_eval.results import read_run
from step_eval.simulation.question import MEASURED, Setting, figures, run_question
from step_eval.simulation.schedule import Pruning
from step_eval.simulation.timing import Timing, engine_shape
from step_infer.errors import InputError

CHECKED = ("sc", "step")


def check(path: Path | str, pool: TracePool, timing: Timing) -> dict[str, Any]:
    """Simulate the questions that a step-eval directory has answered, and compare.

    Args:
        path: the directory; it must have asked questions of the pool.
        pool: recorded traces with step scores, sampled with the same seeds.
        timing: cost of a step on that machine.

    Returns:
        For each method the questions, the means predicted and measured with the error of the mean
        relative to the measured one (None where that is 0), the median error of a question, and
        how many questions lost exactly the predicted traces.

    Raises:
        InputError: no question of the directory is in the pool.
    """
    manifest, records = read_run(path)
    questions = {question.question_id: question for question in pool.questions}
    settings = manifest["settings"]
    aggregator = settings.get("aggregator") or pool.aggregator or "mean"
    pruning = Pruning(aggregator, settings.get("min_keep", 1), settings.get("min_steps", 1))
    methods: dict[str, Any] = {}
    for method in CHECKED:
        rows = []
        same = 0
        for record in records.get(method, []):
            question = questions.get(record.question_id)
            if question is None or len(question.traces) != len(record.traces) or record.repeat:
                continue
            setting = Setting(method, engine_shape(manifest, record), pruning)
            schedule = run_question(setting, question.traces, question.prompt_tokens)
            predicted = figures(schedule, setting, question.traces, timing)
            measured = outcome(record, vote_name(method, "auto"))
            rows.append(
                [(predicted[name], float(getattr(measured, _of(name)))) for name in MEASURED]
            )
            lost = {index for index, trace in enumerate(record.traces) if trace.pruned}
            same += lost == set(schedule.pruned)
        if not rows:
            continue
        pairs_QFP = np.array(rows)
        means_FP = pairs_QFP.mean(axis=0)
        errors_QF = np.abs(pairs_QFP[:, :, 0] - pairs_QFP[:, :, 1])
        methods[method] = {
            "questions": len(rows),
            "same_victims": same,
            "figures": {
                name: {
                    "predicted": float(means_FP[index, 0]),
                    "measured": float(means_FP[index, 1]),
                    "error": _relative(*means_FP[index]),
                    "median_error": float(np.median(errors_QF[:, index])),
                }
                for index, name in enumerate(MEASURED)
            },
        }
    if not methods:
        raise InputError(
            f"Expected questions of --traces with as many traces in {path}, found none. "
            "Hint: collect its questions, with the same --num-traces."
        )
    speed = None
    if all(method in methods for method in CHECKED):
        speed = {
            side: methods["step"]["figures"]["seconds"][side]
            / methods["sc"]["figures"]["seconds"][side]
            - 1
            for side in ("predicted", "measured")
        }
    return {"run": str(path), "methods": methods, "seconds_step_against_sc": speed}


def _of(name: str) -> str:
    return "right" if name == "accuracy" else name


def _relative(predicted: float, measured: float) -> float | None:
    return None if measured == 0 else float(predicted / measured - 1)
