"""The Lightning module that trains a step scorer. Axes: B rows of a batch, S steps of a split."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, dropout

from step_eval.statistics import Floats, auroc, within_question_aurocs
from step_infer.errors import InputError
from step_infer.scorer.network import StepScorer
from step_train.data.feature_blocks import EvaluationBatch, TrainingBatch
from step_train.data.normaliser import Normaliser
from step_train.data.trace_table import TraceTable
from step_train.evaluation.metrics import f1, selection_score
from step_train.fit.loss import StepLoss
from step_train.run_directory import RECORD_KEY, SUBSPACE_KEY

MONITOR = "val_score"
"""What early stopping and the choice of the best epoch look at; higher is better."""


class ScorerModule(LightningModule):
    """Trains a scorer as in STEP (arXiv 2601.09093, section 4.1), or a variant of it."""

    def __init__(
        self,
        scorer: StepScorer,
        loss: StepLoss,
        *,
        learning_rate: float,
        weight_decay: float,
        record: dict[str, Any],
        normaliser: Normaliser | None = None,
        dropout: float = 0.0,
        precision: str = "float32",
        select: str = "paper",
        seed: int = 0,
    ) -> None:
        """Take a built scorer.

        Args:
            scorer: the network; trained in place.
            loss: of a training batch.
            learning_rate: Adam's.
            weight_decay: Adam's (L2).
            record: JSON-ready facts that checkpoints carry, for export.
            normaliser: stands before the scorer.
            dropout: part of the hidden units that a training step leaves out.
            precision: "float32" or "bfloat16": of the hidden layers' products in training.
            select: "paper" or "within_question": the metric that chooses the best epoch.
            seed: of dropout.
        """
        super().__init__()
        self.scorer = scorer
        self.normaliser = normaliser
        self.loss = loss
        self.dropout = dropout
        self.half = precision == "bfloat16"
        self.select = select
        self.seed = seed
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.record = record
        self.history: list[dict[str, float]] = []
        """One entry a finished epoch: losses and validation metrics."""
        self.logits_S = torch.empty(0)
        """The newest evaluation's logits, in the order of the split's steps."""
        self._loss_sum: Tensor | float = 0.0
        self._loss_count = 0

    @property
    def score_S(self) -> Floats:
        """The newest evaluation's step scores before calibration, in [0, 1]."""
        return torch.sigmoid(self.logits_S.double()).numpy()

    def forward(self, hidden_BH: Tensor) -> Tensor:
        """Return the logits [B] of states as the model gave them."""
        hidden = hidden_BH if self.normaliser is None else self.normaliser(hidden_BH)
        if not (self.training and (self.dropout or self.half)):
            logits: Tensor = self.scorer(hidden)
            return logits
        *layers, last = self.scorer.net
        # States that are stored in bfloat16 are read as they are: no copy in float32.
        hidden = hidden if self.half else hidden.float()
        with torch.autocast(hidden.device.type, torch.bfloat16, enabled=self.half):
            for layer in layers:
                hidden = layer(hidden)
                if self.dropout and isinstance(layer, nn.ReLU):
                    hidden = dropout(hidden, self.dropout)
        output: Tensor = last(hidden.float())
        return output.squeeze(-1)

    def on_train_epoch_start(self) -> None:
        """Make what dropout draws depend on seed and epoch alone, also in a run that goes on."""
        if self.dropout:
            seeds = [self.seed, self.current_epoch, self.global_rank]
            torch.manual_seed(int(np.random.default_rng(seeds).integers(2**62)))

    def training_step(self, batch: TrainingBatch, _batch_index: int) -> Tensor:
        """Return the loss of this process's share of a batch.

        The mean over processes, which is what gradients get, is the mean over the batch's rows,
        also where shares differ in size.
        """
        hidden_BH, step_B, rows = batch
        loss = self.loss(self(hidden_BH), step_B) * (self.trainer.world_size / rows)
        self._loss_sum = self._loss_sum + loss.detach()
        self._loss_count += 1
        return loss

    def on_validation_epoch_start(self) -> None:
        """Make room for the logits."""
        self._start("val")

    def on_test_epoch_start(self) -> None:
        """Make room for the logits."""
        self._start("test")

    def _start(self, split: str) -> None:
        self.logits_S = torch.zeros(self._table(split).num_steps)

    def validation_step(self, batch: EvaluationBatch, _batch_index: int) -> None:
        """Score a batch: hidden [B, H], number of each step in the split [B]."""
        hidden_BH, step_B = batch
        self.logits_S[step_B.cpu()] = self(hidden_BH).float().cpu()

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Judge all processes' steps together; while fitting, log the epoch, training included."""
        self._finish()
        table, score_S = self._table("val"), self.score_S
        label_S = table.label_S
        loss = binary_cross_entropy_with_logits(
            self.logits_S,
            torch.from_numpy(label_S.astype(np.float32)),
            pos_weight=torch.tensor(self.loss.pos_weight),
        )
        losses = {"val_loss": float(loss)}
        if self.trainer.state.fn == "fit":
            losses = {"train_loss": self._training_loss(), **losses}
        self._require_finite(sum(losses.values()))
        within_Q = within_question_aurocs(label_S, score_S, table.question_S)
        within = float(within_Q.mean()) if len(within_Q) else None
        metrics = losses | {
            "val_auroc": auroc(label_S, score_S),
            "val_f1": f1(label_S, score_S),
            MONITOR: selection_score(label_S, score_S),
        }
        if self.select == "within_question":
            metrics[MONITOR] = self._require_pairs(within)
        if within is not None:
            metrics["val_within_question"] = within
        # For the callbacks; the loggers get one row an epoch, below.
        self.log(MONITOR, metrics[MONITOR], logger=False, sync_dist=True)
        if self.trainer.state.fn == "fit":
            self.history.append({"epoch": float(self.current_epoch), **metrics})
            for logger in self.loggers:
                logger.log_metrics(metrics, step=self.current_epoch)
                logger.save()

    def _require_pairs(self, within: float | None) -> float:
        if within is None:
            raise InputError(
                "Expected validation questions with right and wrong traces for --select "
                "within_question, found none. Hint: collect more questions, or --select paper."
            )
        return within

    def _training_loss(self) -> float:
        """Return the mean loss of the epoch's batches, of all processes."""
        mean = torch.as_tensor(self._loss_sum, device=self.device) / max(1, self._loss_count)
        self._loss_sum, self._loss_count = 0.0, 0
        return float(self.trainer.strategy.reduce(mean, reduce_op="mean"))

    def on_test_epoch_end(self) -> None:
        """Bring all processes' logits together."""
        self._finish()
        self._require_finite(float(self.logits_S.sum(dtype=torch.float64)))

    def _finish(self) -> None:
        if self.trainer.world_size > 1:
            logits = self.logits_S.to(self.device)
            self.logits_S = self.trainer.strategy.reduce(logits, reduce_op="sum").cpu()

    def _table(self, split: str) -> TraceTable:
        return self.trainer.datamodule.data.splits[split]

    def _require_finite(self, found: float) -> None:
        if np.isfinite(found):
            return
        self.trainer.datamodule.data.rows.require_finite()
        raise InputError(
            f"Expected finite losses and logits, found {found}. Hint: lower --learning-rate."
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam, all of its arithmetic fused into one call."""
        return torch.optim.Adam(
            self.scorer.parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the record, the history, and the subspace whose coordinates the weights take."""
        checkpoint[RECORD_KEY] = self.record | {"history": self.history}
        subspace = self.trainer.datamodule.subspace
        if subspace is not None:
            checkpoint[SUBSPACE_KEY] = vars(subspace)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history back."""
        self.history = list(checkpoint[RECORD_KEY]["history"])
