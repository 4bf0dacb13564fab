"""The data of a scorer's training: traces split by question, features in shuffled blocks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_gen.traces.directory import TraceDirectory
from step_infer.errors import InputError
from step_infer.scorer.identity import ModelIdentity
from step_train.data.feature_blocks import FeatureRows
from step_train.data.trace_table import TraceTable, balance, read_traces, split_questions


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
    verified: bool
    """Whether all files were compared with their checksums."""
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
            f"{path}), found {rows.hidden_size} in its features. "
            "Hint: make them anew with step-train extract."
        )
    return TrainingData(
        path=Path(path),
        model=model,
        boundary=_manifest_field(directory, "boundary"),
        sampling=directory.manifest.get("sampling"),
        fingerprint=directory.fingerprint,
        complete=directory.complete,
        verified=verify_checksums,
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
            identity.get("revision"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"Expected identity with config_hash, tokenizer_hash and hidden_size in the manifest "
            f"of {directory.path}, found {identity!r:.60}. Hint: collect or extract again."
        ) from error


def _manifest_field(directory: TraceDirectory, name: str) -> Any:
    if directory.manifest.get(name) is None:
        raise InputError(
            f"Expected {name} in the manifest of {directory.path}, found none. "
            "Hint: collect or extract again."
        )
    return directory.manifest[name]
