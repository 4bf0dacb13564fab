"""Batches of step features for Lightning."""

from typing import Any

from lightning import LightningDataModule

from step_train.data.feature_blocks import MEBIBYTE, EvaluationBatches, TrainingBatches
from step_train.data.projection import Projection
from step_train.data.subspace import Subspace
from step_train.data.training_data import TrainingData


class StepDataModule(LightningDataModule):
    """Batches of step features, for any number of processes."""

    def __init__(
        self,
        data: TrainingData,
        batch_size: int,
        memory_mib: int,
        seed: int,
        projection: Projection | None = None,
    ) -> None:
        """Take data that has been read.

        Args:
            data: splits and features.
            batch_size: steps of a training batch, over all devices.
            memory_mib: bound on the blocks of features in memory of one process, MiB.
            seed: of the batches' order.
            projection: what makes the features smaller first; None takes them as they are.
        """
        super().__init__()
        self.data = data
        self.projection = projection
        self.subspace: Subspace | None = None
        """What the batches' states are coordinates of; None: of nothing, or not set up yet."""
        self._rows, self._splits = data.rows, data.splits
        self.batch_size = batch_size
        self.memory_mib = memory_mib
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Open projected features, which the first process has written before it got here."""
        if self.projection is not None and self.subspace is None:
            self.subspace, self._rows, self._splits = self.projection.open()

    def train_dataloader(self) -> TrainingBatches:
        """Return the shuffled batches of the training questions."""
        return TrainingBatches(
            self._rows,
            self._splits["train"],
            self.batch_size,
            self.memory_mib * MEBIBYTE,
            self.seed,
            lambda: self.trainer.current_epoch,
            self.trainer.global_rank,
            self.trainer.world_size,
        )

    def val_dataloader(self) -> EvaluationBatches:
        """Return all steps of the validation questions, in order."""
        return self._in_order("val")

    def test_dataloader(self) -> EvaluationBatches:
        """Return all steps of the test questions, in order."""
        return self._in_order("test")

    def _in_order(self, split: str) -> EvaluationBatches:
        return EvaluationBatches(
            self._rows,
            self._splits[split],
            self.trainer.global_rank,
            self.trainer.world_size,
        )

    def state_dict(self) -> dict[str, Any]:
        """Keep nothing in checkpoints: a batch's rows depend on seed and epoch alone."""
        return {}
