"""Trains the demo language model from scratch on endless ledger traces.

The command is `step-train demo-model --out DIR`. On one H100 the defaults take about four minutes;
on a CPU they are for small tries only (`--steps`, `--layers`).
"""

import dataclasses
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from step_infer.cli.progress import Progress
from step_infer.errors import InputError
from step_infer.storage.run_directory import (
    RunDirectory,
    require_same_settings,
    run_manifest,
    write_manifest,
)
from step_train.demo_model.config import LedgerLMConfig
from step_train.demo_model.export import export_model, new_model
from step_train.demo_model.module import LedgerData, LedgerLM
from step_train.run_directory import load_plain
from step_train.trainer import AtomicCheckpoints, lightning_run


class StepProgress(Callback):
    """Progress of the whole training: steps, time left, loss, tokens a second."""

    def __init__(self) -> None:
        self.tokens = 0
        self.progress = Progress(0, "steps", shown=False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar at the step the training starts from."""
        self.progress = Progress(
            trainer.max_steps, "steps", before=trainer.global_step, shown=trainer.is_global_zero
        )
        self.progress.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count one step; the loss is fetched (and the device waited for) now and then only."""
        self.tokens += batch.ids_BT.numel() * trainer.world_size
        if trainer.global_step % pl_module.config.log_steps == 0:
            loss = float(outputs["loss"])
            rate = self.tokens / self.progress.elapsed_s
            pl_module.log("tokens_per_s", rate)
            self.progress.note = f"loss {loss:.4f}, {rate / 1e6:.2f}M tokens/s"
        self.progress.advance()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the held-out loss on a line of its own."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            loss = float(trainer.callback_metrics["val_loss"])
            print(f"step {trainer.global_step}: held-out loss {loss:.4f}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the display."""
        self.progress.stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Take the bar away: the error stands alone."""
        self.progress.stop(final=False)


def _newest_checkpoint(config: LedgerLMConfig) -> Path | None:
    """Return the checkpoint to go on from, or None.

    Raises:
        InputError: it is damaged, or belongs to a run with other settings.
    """
    found = sorted((config.out / "checkpoints").glob(f"step-{'[0-9]' * 7}.ckpt"))
    if not found:
        return None
    try:
        content = load_plain(found[-1], "a checkpoint")
    except InputError:
        content = None
    saved = content.get("config") if isinstance(content, dict) else None
    if not isinstance(saved, dict):
        raise InputError(
            f"Expected a whole checkpoint of step-train demo-model at {found[-1]}, found a damaged "
            "one. Hint: remove it and give the same command again; training goes on from the one "
            "before, or starts anew where there is none."
        )
    settings = config.result_settings()
    require_same_settings({name: saved.get(name) for name in settings}, settings, config.out)
    return found[-1]


def train_ledger_lm(config: LedgerLMConfig) -> Path:
    """Train the demo model and return the folder of the finished Hugging Face model.

    Raises:
        InputError: a setting is out of range, the run directory is in use or belongs to another
            run, or its checkpoint is damaged.
    """
    config = config.check()
    with RunDirectory(config.out, kind=None) as run:
        # With several devices, Lightning starts this program again for each: only the first writes.
        if rank_zero_only.rank in (None, 0):
            run.claim()
        return _train(config)


def _train(config: LedgerLMConfig) -> Path:
    checkpoint = _newest_checkpoint(config)
    start = int(checkpoint.stem.removeprefix("step-")) if checkpoint else 0
    folder = config.out / "model"
    if start >= config.steps and folder.is_dir():
        return folder  # the run is complete: its manifest has the held-out loss
    L.seed_everything(config.seed, verbose=False)
    torch.set_float32_matmul_precision("high")
    net = new_model(config.layers, config.hidden_size, config.intermediate_size)
    saver = ModelCheckpoint(
        config.out / "checkpoints",
        filename="step-{step:07d}",
        auto_insert_metric_name=False,
        every_n_train_steps=config.checkpoint_steps,
        save_on_train_epoch_end=False,
    )
    with lightning_run():
        trainer = L.Trainer(
            max_steps=config.steps,
            devices="auto" if config.devices is None else config.devices,
            precision=config.precision,  # type: ignore[arg-type]
            gradient_clip_val=1.0,
            val_check_interval=config.checkpoint_steps,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            log_every_n_steps=config.log_steps,
            logger=CSVLogger(config.out, name="logs"),
            callbacks=[saver, StepProgress()],
            plugins=[AtomicCheckpoints()],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(
            LedgerLM(net, config), datamodule=LedgerData(config, start), ckpt_path=checkpoint
        )
    if trainer.is_global_zero:
        export_model(net, folder)
        loss = trainer.callback_metrics.get("val_loss")
        write_manifest(
            config.out,
            run_manifest(
                config={**dataclasses.asdict(config), "out": str(config.out)},
                parameters=sum(p.numel() for p in net.parameters()),
                held_out_loss=None if loss is None else float(loss),
                world_size=trainer.world_size,
            ),
        )
    trainer.strategy.barrier()
    return folder
