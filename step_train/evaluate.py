"""Judge a scorer on traces: `evaluate_scorer(EvaluateConfig(...))`. Axes: S steps."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_gen.traces.directory import TraceDirectory
from data_gen.traces.manifest import OWN_FILES as TRACE_FILES
from step_eval.statistics import Floats
from step_infer.errors import InputError
from step_infer.scorer.card import ScorerCard
from step_infer.scorer.network import StepScorer, load_scorer
from step_infer.storage.files import check_output, write_json
from step_infer.storage.run_directory import MANIFEST_NAME, run_manifest
from step_train.data.feature_blocks import EvaluationBatches, FeatureRows
from step_train.data.trace_table import TraceTable, read_traces, require_both_classes
from step_train.data.training_data import identity_of
from step_train.evaluation.baselines import compare, known_baselines
from step_train.evaluation.config import EvaluateConfig
from step_train.evaluation.held_out import evaluate
from step_train.evaluation.trace_facts import read_confidences, read_step_facts
from step_train.evaluation.votes import evaluate_votes
from step_train.export.run import export
from step_train.run_directory import OWN_FILES as FIT_FILES
from step_train.run_directory import FitDirectory

KIND = "scorer evaluation"
"""What the JSON calls itself."""

_SEED = 0
"""Of the bootstrap and of the drawn votes."""


def evaluate_scorer(config: EvaluateConfig) -> dict[str, Any]:
    """Judge a run's best epoch, or a scorer file, and write the outcome where asked.

    Returns:
        A manifest with "scorer", "traces", "questions" (which), "trained_on" (how many of them the
        scorer was trained on; None where that is not known), "aggregator", "metrics"
        (`held_out.evaluate`, with "votes") and "baselines" (`baselines.compare`).

    Raises:
        InputError: scorer and traces do not fit, nothing can be told apart, or `out` is an input.
    """
    scorer, card = _load(config)
    directory = TraceDirectory(config.traces or card.training.get("traces", ""))
    if config.out is not None:
        held = [directory.path / name for name in TRACE_FILES]
        held += [config.run / name for name in FIT_FILES] if config.run is not None else []
        check_output(config.out, config.scorer, *held)
    card.check_model(identity_of(directory))
    if directory.manifest.get("boundary") != card.boundary:
        raise InputError(
            f"Expected traces with the scorer's boundary rule, found another one in "
            f"{directory.path}. Hint: step-train extract can place the scorer's boundaries."
        )
    table, skipped = read_traces(directory)
    own = directory.fingerprint == card.training.get("traces_fingerprint")
    split = FitDirectory(config.run).split() if config.run is not None else None
    questions = config.split
    if questions == "auto":
        questions = "test" if own and split is not None else "all"
    if split is not None and questions != "all":
        table = _only(table, split[questions], questions)
    require_both_classes(table, f"{directory.path} ({questions} questions)")
    term = card.confidence_term
    added_S = None if term is None else term.logits(read_confidences(directory, table))
    score_S = score_steps(scorer, FeatureRows(directory.shards()), table, added_S)
    outcome = run_manifest(
        kind=KIND,
        scorer=str(config.run or config.scorer),
        base_model=card.base_model,
        traces=str(directory.path),
        traces_fingerprint=directory.fingerprint,
        skipped_traces=skipped,
        questions=questions,
        trained_on=_trained_on(table, split, own),
        aggregator=card.aggregator,
        metrics=evaluate(table, score_S, seed=_SEED)
        | {"votes": evaluate_votes(directory, table, score_S, card.aggregator, _SEED)},
        baselines=compare(
            table,
            score_S,
            card.aggregator,
            known_baselines(table, read_step_facts(directory, table)),
            seed=_SEED,
        ),
    )
    if config.out is not None:
        write_json(config.out, outcome)
    return outcome


def _load(config: EvaluateConfig) -> tuple[StepScorer, ScorerCard]:
    if config.scorer is not None:
        return load_scorer(config.scorer)
    assert config.run is not None
    if not (Path(config.run) / MANIFEST_NAME).is_file():
        raise InputError(
            f"Expected a run directory of step-train fit at {config.run}, found none there. "
            "Hint: name the --out of step-train fit."
        )
    if not FitDirectory(config.run).complete:
        raise InputError(
            f"Expected a complete run in {config.run}, found one that has not come to its end. "
            "Hint: give step-train fit the same command again."
        )
    # Through the file, so that what is judged is what an engine would load.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scorer.safetensors"
        export(config.run, path, force=True)
        return load_scorer(path)


def _only(table: TraceTable, ids: list[str], name: str) -> TraceTable:
    chosen = table.of_questions(np.flatnonzero(np.isin(table.questions, ids)))
    if not len(chosen):
        raise InputError(
            f"Expected traces of the run's {name} questions, found none with these ids. "
            "Hint: use --split all for other traces."
        )
    return chosen


def _trained_on(table: TraceTable, split: dict[str, list[str]] | None, held: bool) -> int | None:
    """Return how many of the table's questions were for training; None where that is not known."""
    if not held:
        return 0
    if split is None:
        return None
    asked = {table.questions[i] for i in np.unique(table.question_N).tolist()}
    return len(asked.intersection(split["train"]))


def score_steps(
    scorer: StepScorer, rows: FeatureRows, table: TraceTable, added_S: Floats | None = None
) -> Floats:
    """Return the step scores of a table's traces [S], in its order.

    Args:
        scorer: the network.
        rows: states of the directory.
        table: the traces.
        added_S: what else the logits are made of.

    Raises:
        InputError: a state is not finite.
    """
    logits_S = torch.empty(table.num_steps, dtype=torch.float64)
    with torch.inference_mode():
        for hidden_BH, step_B in EvaluationBatches(rows, table):
            logits_S[step_B] = scorer(hidden_BH).double()
    if not torch.isfinite(logits_S).all():
        rows.require_finite()
        raise InputError(
            "Expected a scorer with finite logits, found NaN or infinity. "
            "Hint: train again with a lower --learning-rate."
        )
    if added_S is not None:
        logits_S += torch.from_numpy(added_S)
    return np.asarray(torch.sigmoid(logits_S).numpy())
