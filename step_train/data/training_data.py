"""The data of a scorer's training: traces split by question, features in shuffled blocks."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule

from data_gen.traces.directory import TraceDirectory
from step_infer.errors import InputError
from step_infer.scorer.identity import ModelIdentity
from step_train.data.feature_blocks import MEBIBYTE, EvaluationBatches, FeatureRows, TrainingBatches
from step_train.data.subspace import Subspace
from step_train.data.trace_table import TraceTable, balance, read_traces, split_questions

if TYPE_CHECKING:
    from step_train.data.projection import Projection


@dataclass(frozen=True)
class TrainingData:
    """What a traces directory offers for training, read once; no feature is in memory."""

    path: Path
    model: ModelIdentity
    """The model that made the features."""
    boundary: dict[str, Any]
    """Its boundary rule (`BoundaryRule.to_dict`)."""
    sampling: dict[str, Any] | None
    """How the traces were sampled, where known."""
    fingerprint: str
    """Hash of the directory's content."""
    complete: bool
    """Whether the directory's own run came to its end."""
    skipped: dict[str, int]
    """Traces that cannot be used, by reason."""
    splits: dict[str, TraceTable]
    """Usable traces of the "train", "val" and "test" questions."""
    rows: FeatureRows

    @property
    def pos_weight(self) -> float:
        """Steps of wrong traces for each step of a right one, in the training split."""
        train = self.splits["train"]
        return (train.num_steps - train.positive_steps) / train.positive_steps

    def summary(self) -> dict[str, Any]:
        """Return what manifests and cards say of the data."""
        return {
            "traces": str(self.path),
            "traces_fingerprint": self.fingerprint,
            "traces_complete": self.complete,
            "sampling": self.sampling,
            "skipped_traces": self.skipped,
            "splits": {name: split.summary() for name, split in self.splits.items()},
            "pos_weight": self.pos_weight,
        }

    def split_ids(self) -> dict[str, list[str]]:
        """Return the question ids of each split."""
        return {
            name: [split.questions[i] for i in sorted(set(split.question_N.tolist()))]
            for name, split in self.splits.items()
        }


def read_training_data(
    path: Path | str,
    *,
    val_fraction: float,
    test_fraction: float,
    max_traces_per_class: int | None,
    seed: int,
    test_seed: int | None = None,
    verify_checksums: bool = False,
) -> TrainingData:
    """Read a traces directory's table, split it by question and open its features.

    Args:
        path: a directory of step-collect or step-train extract, with features.
        val_fraction: part of the questions for early stopping and choices.
        test_fraction: part of the questions for the final metrics.
        max_traces_per_class: most right and most wrong traces to train on; None for all.
        seed: of split and sub-sampling.
        test_seed: of the choice of test questions, where it is not `seed`.
        verify_checksums: compare all files with the manifest's checksums; reads every byte.
            Without, sizes alone are compared.

    Raises:
        InputError: the directory cannot be used; the message says why.
    """
    directory = TraceDirectory(path)
    if verify_checksums:
        directory.verify()
    table, skipped = read_traces(directory)
    splits = split_questions(table, val_fraction, test_fraction, seed, test_seed)
    splits["train"] = balance(splits["train"], max_traces_per_class, seed)
    rows = FeatureRows(directory.shards())
    model = identity_of(directory)
    if rows.hidden_size != model.hidden_size:
        raise InputError(
            f"Expected {model.hidden_size} numbers a state (hidden_size in the manifest of "
            f"{path}), found {rows.hidden_size} in its features."
        )
    return TrainingData(
        path=Path(path),
        model=model,
        boundary=_manifest_field(directory, "boundary"),
        sampling=directory.manifest.get("sampling"),
        fingerprint=directory.fingerprint,
        complete=directory.complete,
        skipped=skipped,
        splits=splits,
        rows=rows,
    )


def identity_of(directory: TraceDirectory) -> ModelIdentity:
    """Return the model that made a directory's features.

    Raises:
        InputError: its manifest does not say.
    """
    identity = _manifest_field(directory, "identity")
    try:
        return ModelIdentity(
            str(_manifest_field(directory, "model")),
            str(identity["config_hash"]),
            str(identity["tokenizer_hash"]),
            int(identity["hidden_size"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"Expected identity with config_hash, tokenizer_hash and hidden_size in the manifest "
            f"of {directory.path}, found {identity!r}."
        ) from error


def _manifest_field(directory: TraceDirectory, name: str) -> Any:
    if directory.manifest.get(name) is None:
        raise InputError(f"Expected {name} in the manifest of {directory.path}, found none.")
    return directory.manifest[name]


class StepDataModule(LightningDataModule):
    """Batches of step features, for any number of processes."""

    def __init__(
        self,
        data: TrainingData,
        batch_size: int,
        memory_mib: int,
        seed: int,
        projection: "Projection | None" = None,
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
