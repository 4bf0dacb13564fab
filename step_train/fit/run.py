"""Train a step scorer on a traces directory: `fit(FitConfig(...))`."""

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from data_gen.traces.directory import TraceDirectory
from step_eval.statistics import Floats
from step_infer.scorer.confidence_term import ConfidenceTerm
from step_infer.scorer.network import StepScorer
from step_infer.storage.files import full_disk_named
from step_train.data.datamodule import StepDataModule
from step_train.data.normaliser import Normaliser
from step_train.data.projection import Projection
from step_train.data.subspace import require_components
from step_train.data.training_data import TrainingData, read_training_data
from step_train.evaluation.baselines import compare
from step_train.evaluation.baselines_trained import run_baselines
from step_train.evaluation.calibration import calibrate
from step_train.evaluation.held_out import choose_aggregator, evaluate
from step_train.evaluation.report import write_report
from step_train.evaluation.trace_facts import read_confidences
from step_train.evaluation.votes import evaluate_votes
from step_train.export.run import export
from step_train.fit.confidence import choose_confidence, describe
from step_train.fit.config import FitConfig
from step_train.fit.loss import StepLoss
from step_train.fit.module import MONITOR, ScorerModule
from step_train.run_directory import (
    RECORD_KEY,
    RECORD_SCHEMA_VERSION,
    REPORT,
    FitDirectory,
    write_checkpoint,
)
from step_train.trainer import (
    EpochProgress,
    RunCheckpoint,
    is_first_process,
    lightning_run,
    make_trainer,
)


@dataclass(frozen=True)
class FitResult:
    """What came of a training run."""

    run: Path
    """The run directory."""
    checkpoint: Path
    """Checkpoint of the best epoch, complete for `scorer-export`."""
    epochs: int
    """Epochs trained."""
    best_epoch: int
    """The best of them, from 1."""
    aggregator: str
    """The trace aggregator for the scorer card."""
    confidence: dict[str, float]
    """What token confidence adds to the logit (`ConfidenceTerm`); empty: nothing."""
    calibration: dict[str, Any]
    """The temperature and what it does (`step_train.evaluation.calibration.calibrate`)."""
    metrics: dict[str, Any]
    """Metrics on the test questions (`step_train.evaluation.held_out.evaluate`), with "votes"."""
    baselines: dict[str, Any]
    """What the scorer is compared with (`step_train.evaluation.baselines.compare`)."""
    history: list[dict[str, float]]
    """One entry an epoch: losses and validation metrics."""
    data: dict[str, Any]
    """Summary of the data (`TrainingData.summary`)."""
    seconds: float
    """Wall time of this call."""


@dataclass(frozen=True)
class BestEpoch:
    """The best epoch's calibrated scores of the held-out questions."""

    facts: dict[str, Any]
    """What is known without the test questions, JSON-ready, for the record of the run."""
    val_score_S: Floats
    """Step scores of the validation questions."""
    test_score_S: Floats
    """Step scores of the test questions."""


def fit(config: FitConfig, callbacks: Sequence[Callback] = ()) -> FitResult:
    """Train a scorer, or go on with a run that was interrupted; a complete run is only read.

    Args:
        config: the settings.
        callbacks: more Lightning callbacks.

    Raises:
        InputError: the traces, the run directory or a setting cannot be used, a checkpoint is
            damaged, or the disk is full.
    """
    started = time.monotonic()
    data = read_training_data(
        config.traces,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        max_traces_per_class=config.max_traces_per_class,
        seed=config.seed,
        test_seed=config.test_seed,
        # One process is enough.
        verify_checksums=config.verify_checksums and is_first_process(config.num_nodes),
    )
    require_components(config.components, data.rows, config.memory_mib)
    if config.confidence:  # known before training, not after
        for name in ("val", "test"):
            read_confidences(TraceDirectory(data.path), data.splits[name])
    with FitDirectory(config.out) as run, full_disk_named(run.path):
        if is_first_process(config.num_nodes):
            settings = config.result_settings() | {"traces_fingerprint": data.fingerprint}
            run.start(settings, data.split_ids(), model=asdict(data.model), data=data.summary())
        outcome = run.metrics() if run.complete else _fit(config, data, run, callbacks, started)
    return _result(run, outcome, started)


def _fit(
    config: FitConfig,
    data: TrainingData,
    run: FitDirectory,
    callbacks: Sequence[Callback],
    started: float,
) -> dict[str, Any]:
    """Train, judge and finish a run that is not complete; return its outcome."""
    with lightning_run():
        module, trainer = train(config, data, run, callbacks)
        best = best_epoch(config, data, run, module, trainer)
        # Once, and last of all: nothing is chosen by the test questions.
        metrics = evaluate(data.splits["test"], best.test_score_S, seed=config.seed)
        outcome = best.facts | {"metrics": metrics, "baselines": {}}
        if trainer.is_global_zero:
            _compare(config, data, best, outcome)
    if trainer.is_global_zero:
        _complete_checkpoint(run.best, outcome)
        with tempfile.TemporaryDirectory() as folder:
            card = export(run.best, Path(folder) / "scorer.safetensors", force=True)
        write_report(run.path / REPORT, data, best.test_score_S, outcome, card, config.seed)
        run.finish_fit(outcome, seconds=round(time.monotonic() - started, 1))
    return outcome


def train(
    config: FitConfig, data: TrainingData, run: FitDirectory, callbacks: Sequence[Callback] = ()
) -> tuple[ScorerModule, Trainer]:
    """Train to the end, from the newest checkpoint where there is one; call in `lightning_run`."""
    resume, saved = run.resume() or (None, {})
    module = _module(config, data)
    if resume is None and module.normaliser is not None:
        module.normaliser.measure(data.rows, data.splits["train"])
    stopping = EarlyStopping(MONITOR, mode="max", patience=config.patience)
    files: dict[str, Any] = {"dirpath": run.path, "enable_version_counter": False}
    csv_logger = CSVLogger(run.path, name="", version="csv")
    trainer = make_trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        max_epochs=config.max_epochs,
        deterministic=True,
        logger=[csv_logger, TensorBoardLogger(run.path, name="", version="tensorboard")],
        callbacks=[
            stopping,
            *([EpochProgress()] if config.progress else []),
            *callbacks,
            RunCheckpoint(filename=run.best.stem, monitor=MONITOR, mode="max", **files),
            # After the best one, whose state it holds as well.
            RunCheckpoint(filename=run.last.stem, every_n_epochs=1, **files),
        ],
        num_sanity_val_steps=0,
    )
    datamodule = _datamodule(config, data, run)
    # Not in prepare_data: where a baseline trains in one process of several, that would wait for
    # the others. Those start, or meet the first, only in `trainer.fit`.
    if datamodule.projection is not None and is_first_process(config.num_nodes):
        datamodule.projection.write()
    if resume is not None:
        if _stopped(saved, stopping):
            # Trained to the end, but not yet judged.
            module.load_state_dict(saved["state_dict"])
            module.on_load_checkpoint(saved)
            trainer.datamodule = datamodule
            return module, trainer
        if trainer.is_global_zero:
            # The CSV file is written anew: give it the epochs it had.
            for row in saved[RECORD_KEY]["history"]:
                metrics = {name: value for name, value in row.items() if name != "epoch"}
                csv_logger.log_metrics(metrics, step=int(row["epoch"]))
    trainer.fit(module, datamodule=datamodule, ckpt_path=resume, weights_only=True)
    return module, trainer


def _datamodule(config: FitConfig, data: TrainingData, run: FitDirectory) -> StepDataModule:
    projection = None
    if config.components:
        projection = Projection(
            run.projected, data, config.components, config.memory_mib, config.seed, config.progress
        )
    return StepDataModule(data, config.batch_size, config.memory_mib, config.seed, projection)


def _module(config: FitConfig, data: TrainingData) -> ScorerModule:
    seed_everything(config.seed, workers=True, verbose=False)
    loss = StepLoss(
        data.splits["train"],
        trace_weighting=config.trace_weighting,
        early_discount=config.early_discount,
        label_smoothing=config.label_smoothing,
        ranking_weight=config.ranking_weight,
    )
    inputs = config.components or data.rows.hidden_size
    # The coordinates of components have mean 0 and deviation 1 by themselves.
    normalise = config.normalise == "standard" and not config.components
    return ScorerModule(
        StepScorer(inputs, config.width, config.depth),
        loss,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        record={
            "schema_version": RECORD_SCHEMA_VERSION,
            "model": asdict(data.model),
            "boundary": data.boundary,
            "width": config.width,
            "depth": config.depth,
            "settings": config.result_settings(),
            "data": data.summary() | {"pos_weight": loss.pos_weight},
        },
        normaliser=Normaliser(inputs) if normalise else None,
        dropout=config.dropout,
        precision=config.precision,
        select=config.select,
        seed=config.seed,
    )


def _stopped(checkpoint: dict[str, Any], stopping: EarlyStopping) -> bool:
    state = checkpoint["callbacks"].get(stopping.state_key, {})
    return bool(state.get("wait_count", 0) >= stopping.patience)


def best_epoch(
    config: FitConfig,
    data: TrainingData,
    run: FitDirectory,
    module: ScorerModule,
    trainer: Trainer,
) -> BestEpoch:
    """Take the best epoch's weights, calibrate, choose the aggregator, and score both splits."""
    history = module.history
    best = torch.load(run.best, map_location="cpu", weights_only=True)
    module.load_state_dict(best["state_dict"])
    datamodule = _datamodule(config, data, run)
    val, test = data.splits["val"], data.splits["test"]
    trainer.validate(module, datamodule=datamodule, verbose=False)
    val_logits_S = module.logits_S.double()
    trainer.test(module, datamodule=datamodule, verbose=False)
    test_logits_S = module.logits_S.double()
    term: ConfidenceTerm | None = None
    term_choice: dict[str, float | None] = {}
    if config.confidence:
        directory = TraceDirectory(data.path)
        confidence_S = read_confidences(directory, val)
        term, term_choice = choose_confidence(
            val, val_logits_S.numpy(), confidence_S, config.aggregator
        )
        if term is not None:
            val_logits_S += torch.from_numpy(term.logits(confidence_S))
            confidence_S = read_confidences(directory, test)
            test_logits_S += torch.from_numpy(term.logits(confidence_S))
    calibration = calibrate(val.label_S, val_logits_S)
    val_score_S, test_score_S = (
        torch.sigmoid(logits_S / calibration["temperature"]).numpy()
        for logits_S in (val_logits_S, test_logits_S)
    )
    chosen, choice = choose_aggregator(val, val_score_S)
    facts = {
        "epochs": len(history),
        "best_epoch": int(best["epoch"]) + 1,
        "calibration": calibration,
        "aggregator": chosen if config.aggregator == "auto" else config.aggregator,
        "aggregator_choice": {
            "by": "validation questions, mean over 25/50/75 % of the steps",
            **choice,
        },
        "history": history,
        "data": module.record["data"],
    }
    if config.confidence:
        facts |= describe(term, term_choice, calibration["temperature"])
    return BestEpoch(facts, val_score_S, test_score_S)


def _compare(
    config: FitConfig, data: TrainingData, best: BestEpoch, outcome: dict[str, Any]
) -> None:
    """Add to the outcome what votes gain by the scorer, and how cheap baselines do."""

    def retrain(other: TrainingData) -> Floats:
        with tempfile.TemporaryDirectory() as folder:
            alone: dict[str, Any] = {"devices": 1, "num_nodes": 1, "progress": False}
            changed = dataclasses.replace(config, out=Path(folder), **alone)
            run = FitDirectory(folder)
            module, trainer = train(changed, other, run)
            return best_epoch(changed, other, run, module, trainer).test_score_S

    test, score_S, aggregator = data.splits["test"], best.test_score_S, outcome["aggregator"]
    directory = TraceDirectory(data.path)
    outcome["metrics"]["votes"] = evaluate_votes(directory, test, score_S, aggregator, config.seed)
    baselines = run_baselines(
        data, config.baselines, aggregator, config.memory_mib, config.seed, config.shuffles, retrain
    )
    outcome["baselines"] = compare(test, score_S, aggregator, baselines, seed=config.seed)


def _complete_checkpoint(path: Path, outcome: dict[str, Any]) -> None:
    """Put the outcome into the best checkpoint, so that it is complete for export."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    checkpoint[RECORD_KEY] |= outcome
    write_checkpoint(path, checkpoint)


def _result(run: FitDirectory, outcome: dict[str, Any], started: float) -> FitResult:
    return FitResult(
        run=run.path,
        checkpoint=run.best,
        epochs=outcome["epochs"],
        best_epoch=outcome["best_epoch"],
        aggregator=outcome["aggregator"],
        confidence=outcome.get("confidence", {}),
        calibration=outcome["calibration"],
        metrics=outcome["metrics"],
        baselines=outcome["baselines"],
        history=outcome["history"],
        data=outcome["data"],
        seconds=time.monotonic() - started,
    )
