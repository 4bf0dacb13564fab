"""The baselines that learn from the training questions, and which of them a run computes.

Axes: Q questions, S steps, R of them, H hidden size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from data_gen.traces.directory import TraceDirectory
from step_eval.statistics import Floats
from step_infer.errors import InputError
from step_infer.scorer.identity import identify
from step_train.data.feature_blocks import MEBIBYTE, EvaluationBatches, buffer
from step_train.data.trace_table import TraceTable
from step_train.data.training_data import TrainingData
from step_train.evaluation.baselines import Baseline, known_baselines
from step_train.evaluation.trace_facts import read_step_facts, rows_of_traces
from step_train.extract.model import local_model

_MOST_ROWS = 50_000
"""Training steps that the logistic regression looks at, at most; more tell it little."""

_WEAK, _STRONG = 1.0, 0.01
"""Inverse regularisation of the probes: on many steps, and on one state a question."""


def run_baselines(
    data: TrainingData,
    which: str,
    aggregator: str,
    memory_mib: int,
    seed: int,
    shuffles: int,
    retrain: Callable[[TrainingData], Floats],
) -> list[Baseline]:
    """Return the baselines of a training run's test questions.

    Args:
        data: the run's data.
        which: "all"; "cheap", without those that run the model or train again; or "none".
        aggregator: the scorer's trace aggregator.
        memory_mib: bound on features in memory, MiB.
        seed: of the shuffled labels and of sub-samples.
        shuffles: how many times to shuffle the labels and train on them.
        retrain: trains by the run's own recipe on other labels, and scores the test steps.
    """
    if which == "none":
        return []
    test = data.splits["test"]
    baselines = known_baselines(test, read_step_facts(TraceDirectory(data.path), test))
    baselines.append(logistic_baseline(data, memory_mib, aggregator, seed))
    if which == "cheap":
        skipped = "left out by --baselines cheap"
        return baselines + [
            Baseline(name, None, not_computed=skipped) for name in ("question", "shuffled")
        ]
    first, *others = (retrain(shuffle_labels(data, seed, number)) for number in range(shuffles))
    return [
        *baselines,
        question_baseline(data),
        Baseline("shuffled", first, tuple(others), aggregator),
    ]


def shuffle_labels(data: TrainingData, seed: int, number: int) -> TrainingData:
    """Return the data with labels shuffled among the training traces, and the validation traces.

    The seed and the number of the shuffle say how.
    """
    generator = np.random.default_rng([seed, 3, number])
    shuffled = {
        name: dataclasses.replace(
            data.splits[name], correct_N=generator.permutation(data.splits[name].correct_N)
        )
        for name in ("train", "val")
    }
    return dataclasses.replace(data, splits=data.splits | shuffled)


def logistic_baseline(data: TrainingData, memory_mib: int, aggregator: str, seed: int) -> Baseline:
    """Fit logistic regression on the training steps' states, and score the test steps.

    Where the states take more than a third of the memory, or there are many, steps are drawn at
    random.
    """
    train = data.splits["train"]
    most = min(_MOST_ROWS, memory_mib * MEBIBYTE // (3 * 4 * data.rows.hidden_size))
    count = min(most, train.num_steps)
    drawn = np.random.default_rng([seed, 2]).choice(train.num_steps, count, replace=False)
    step_R = np.sort(drawn)
    trace_R = train.traces_of(step_R)
    label_R = train.correct_N[trace_R]
    if len(np.unique(label_R)) < 2:
        reason = f"memory_mib {memory_mib} holds {count} steps, of one class only"
        return Baseline("logistic", None, not_computed=reason)
    rows = data.rows.of_traces(train)[trace_R] + step_R - train.first_step_N[trace_R]
    hidden_RH = buffer(len(rows), data.rows)
    data.rows.gather(rows, hidden_RH)
    probe = _Probe(_WEAK, balanced=True)
    probe.fit(hidden_RH.float().numpy(), label_R, np.ones(len(rows)))
    test = data.splits["test"]
    score_S = np.empty(test.num_steps)
    for hidden_BH, step_B in EvaluationBatches(data.rows, test):
        score_S[step_B.numpy()] = probe.score(hidden_BH.float().numpy())
    return Baseline("logistic", score_S, aggregator=aggregator)


def question_baseline(data: TrainingData) -> Baseline:
    """Fit a probe on the prompts' last states of the training questions, and score the test ones.

    One forward pass of the model for each question.
    """
    try:
        model = _local_model(data)
    except InputError as error:
        return Baseline("question", None, not_computed=str(error))
    directory = TraceDirectory(data.path)
    train, test = data.splits["train"], data.splits["test"]
    state_QH = {}
    with torch.inference_mode():
        for question, tokens in (_prompts(directory, train) | _prompts(directory, test)).items():
            output = model(input_ids=torch.tensor([tokens]), use_cache=False)
            state_QH[question] = output.last_hidden_state[0, -1].float().numpy()
    questions, index_N = np.unique(train.question_N, return_inverse=True)
    right_Q = np.bincount(index_N, weights=train.correct_N)
    wrong_Q = np.bincount(index_N) - right_Q
    states = np.stack([state_QH[question] for question in questions.tolist()])
    probe = _Probe(_STRONG, balanced=False)
    # Each question once with either label, weighed by its traces.
    labels = np.repeat([True, False], len(questions))
    probe.fit(np.concatenate([states, states]), labels, np.concatenate([right_Q, wrong_Q]))
    asked = np.unique(test.question_N)
    scores = probe.score(np.stack([state_QH[question] for question in asked.tolist()]))
    return Baseline("question", scores[np.searchsorted(asked, test.question_S)])


def _local_model(data: TrainingData) -> Any:
    """Load the model that made the traces, if it is on this machine.

    Raises:
        InputError: it is not, or it is another one now.
    """
    from step_train.extract.run import load_model

    name = data.model.model
    folder = local_model(name)
    if identify(folder).config_hash != data.model.config_hash:
        raise InputError(f"model {name} is not the one that made the traces any more")
    return load_model(folder, "auto")


def _prompts(directory: TraceDirectory, table: TraceTable) -> dict[int, list[int]]:
    """Return the prompt's token ids of each question, by the question's number."""
    prompts: dict[int, list[int]] = {}
    for traces, rows in rows_of_traces(directory, table, ("prompt_token_ids",)):
        for question, row in zip(
            *np.unique(table.question_N[traces], return_index=True), strict=True
        ):
            prompts.setdefault(int(question), rows["prompt_token_ids"][int(row)].as_py())
    return prompts


class _Probe:
    """Logistic regression on standardised dimensions."""

    def __init__(self, strength: float, balanced: bool) -> None:
        from sklearn.linear_model import LogisticRegression

        weight = "balanced" if balanced else None
        self._model = LogisticRegression(C=strength, class_weight=weight, max_iter=200, tol=1e-3)
        self._mean: Floats = np.zeros(1)
        self._scale: Floats = np.ones(1)

    def fit(self, states: Floats, labels: Any, weights: Floats) -> None:
        """Learn from states [R, H], which are changed."""
        self._mean, self._scale = states.mean(axis=0), states.std(axis=0) + 1e-6
        states -= self._mean
        states /= self._scale
        self._model.fit(states, labels, sample_weight=weights)

    def score(self, states: Floats) -> Floats:
        """Return the probability of "right" for states [R, H]."""
        return np.asarray(self._model.predict_proba((states - self._mean) / self._scale)[:, 1])
