"""The directory of one training run, its checkpoints, and how they are read without a pickle.

manifest.json, split.json (question ids), best.ckpt, last.ckpt, csv/metrics.csv, tensorboard/,
report.html, projected/ while a run with `components` is not complete, and metrics.json once it is.
A checkpoint holds our own part as plain data under one key: all that an export needs.
"""

import io
import shutil
from pathlib import Path
from typing import Any

import torch

from step_infer.errors import InputError
from step_infer.storage.files import atomic_write, read_json, write_json
from step_infer.storage.run_directory import MANIFEST_NAME, RunDirectory
from step_train.data.trace_table import SPLITS

KIND = "scorer training"
"""What the manifest calls such a directory."""

BEST, LAST = "best.ckpt", "last.ckpt"
METRICS, SPLIT, REPORT = "metrics.json", "split.json", "report.html"
PROJECTED = "projected"
OWN_FILES = (MANIFEST_NAME, METRICS, SPLIT, REPORT, BEST, LAST, "csv", "tensorboard")
"""What it holds after the run; other files are its user's."""


class FitDirectory(RunDirectory):
    """A training run's files. All processes of a run may read; only the first may write."""

    def __init__(self, path: Path | str) -> None:
        """Name a directory; nothing is read or made."""
        super().__init__(path, KIND)

    @property
    def best(self) -> Path:
        """Checkpoint of the best epoch."""
        return self.path / BEST

    @property
    def last(self) -> Path:
        """Checkpoint of the newest epoch, from which a run goes on."""
        return self.path / LAST

    @property
    def projected(self) -> Path:
        """Folder of the projected features (`step_train.data.projection`)."""
        return self.path / PROJECTED

    def metrics(self) -> dict[str, Any]:
        """Return the result of a complete run, as `finish_fit` took it."""
        return dict(read_json(self.path / METRICS))

    def start(self, settings: dict[str, Any], split: dict[str, list[str]], **manifest: Any) -> None:
        """Claim the directory, and begin a run or go on with one of the same settings.

        Args:
            settings: what decides the outcome, JSON-ready; must agree to go on.
            split: question ids of each split.
            manifest: more fields for a new manifest.

        Raises:
            InputError: the directory cannot be written, is in use, holds something else, or was
                started with other settings; the message names the first that differs.
        """
        self.claim()
        for name in (BEST, LAST, METRICS, SPLIT, REPORT):  # left by a run that was killed
            for left in self.path.glob(f".{name}.*.tmp"):
                left.unlink()
        if self.manifest:
            self.require_settings(settings)
        else:
            self.begin(settings, **manifest)
        if not (self.path / SPLIT).exists():
            write_json(self.path / SPLIT, split)

    def resume(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the checkpoint to go on from, and its content; None where none is written yet.

        That of the best epoch is read too: a run that goes on without it would fail at its end.

        Raises:
            InputError: one of them is damaged or missing; the message says what to remove.
        """
        anew = "and give the same command again; training starts anew."
        if not self.last.is_file():
            if not self.best.is_file():
                return None
            return self.best, _whole(self.best, f"remove it {anew}")
        _whole(self.best, f"remove it, where it is there, and {LAST}, {anew}")
        again = f"remove it and give the same command again; training goes on from {BEST}."
        return self.last, _whole(self.last, again)

    def split(self) -> dict[str, list[str]]:
        """Return the question ids of each split.

        Raises:
            InputError: the file is missing or damaged.
        """
        found = read_json(self.path / SPLIT)
        if not (
            isinstance(found, dict) and all(isinstance(found.get(name), list) for name in SPLITS)
        ):
            raise InputError(
                f"Expected lists of question ids under {', '.join(SPLITS)} in {self.path / SPLIT}, "
                f"found {found!r:.60}. Hint: train again."
            )
        return found

    def finish_fit(self, metrics: dict[str, Any], **manifest: Any) -> None:
        """Write the result, mark the run as complete, and remove what only training needs."""
        write_json(self.path / METRICS, metrics)
        self.finish(**manifest)
        shutil.rmtree(self.projected, ignore_errors=True)


RECORD_KEY = "step_scorer"
"""Key of the record in a checkpoint."""

SUBSPACE_KEY = "step_scorer_subspace"
"""Key of the subspace's tensors, in checkpoints of a run with `components`."""

RECORD_SCHEMA_VERSION = 1
"""Version of the record's form."""

IMPORTED = "imported"
"""Key of a card's training summary that says where an imported scorer comes from."""


def write_checkpoint(path: Path | str, content: dict[str, Any]) -> None:
    """Write tensors and plain data for `torch.load`, atomically.

    Raises:
        InputError: the file cannot be written, or the disk is full.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)  # given a file, it hides why a write failed
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_plain(path: Path, what: str) -> Any:
    """Read a file of tensors and plain data that torch.save wrote.

    Raises:
        InputError: it is missing, damaged, or holds anything else; `what` names what is wanted.
    """
    if not path.is_file():
        raise InputError(f"Expected {what} at {path}, found none. Hint: check the path.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged pickle raises is of nearly any type
        raise InputError(
            f"Expected {what} of tensors and plain data at {path}, found something else or a "
            f"damaged file ({type(error).__name__}). Hint: a file that needs more is not opened, "
            "as it could run code; save its state dict alone."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of step-train fit.

    Raises:
        InputError: it is missing, unreadable, or not ours.
    """
    saved = load_plain(path, "a checkpoint of step-train fit")
    record = saved.get(RECORD_KEY) if isinstance(saved, dict) else None
    if not isinstance(record, dict):
        raise InputError(
            f"Expected a checkpoint of step-train fit (with the key {RECORD_KEY!r}) at {path}, "
            "found another one. Hint: train a scorer with step-train fit, or import a published "
            "one with --from-pt."
        )
    if record.get("schema_version") != RECORD_SCHEMA_VERSION:
        raise InputError(
            f"Expected schema_version {RECORD_SCHEMA_VERSION} of the checkpoint {path}, "
            f"found {record.get('schema_version')}. Hint: train again with this toolkit."
        )
    return saved


def _whole(path: Path, hint: str) -> dict[str, Any]:
    try:
        return read_checkpoint(path)
    except InputError as error:
        found = "a damaged one" if path.is_file() else "none"
        raise InputError(
            f"Expected a whole checkpoint of step-train fit at {path}, found {found}. Hint: {hint}"
        ) from error
