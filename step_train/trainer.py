"""How the toolkit runs Lightning: quiet, deterministic, with a line of progress an epoch."""

import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from step_infer.cli.progress import Progress
from step_infer.errors import InputError
from step_train.run_directory import write_checkpoint

_NODE_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")

_CHATTER = (
    ".*LeafSpec.*",  # Lightning's own use of a torch function
    ".*lightning.pytorch.utilities.data.*",
    ".*Experiment logs directory.*",
    ".*Checkpoint directory .* exists.*",
    ".*self.trainer.*not registered.*",
    ".*is smaller than the logging interval.*",
)


def _end_at_once(number: int, frame: object) -> None:
    """End as a process does that knows no signal: what is on disk is whole at any time."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@contextmanager
def lightning_run() -> Iterator[None]:
    """Run the block without Lightning's chatter, and put torch's determinism back after it.

    SIGTERM ends the process at once, as everywhere: by Lightning alone it would end a training
    with status 0, as if all were done, and a prediction not at all.

    Raises:
        KeyboardInterrupt: it was interrupted; from Lightning alone that is a SystemExit.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    in_main = threading.current_thread() is threading.main_thread()
    # Lightning calls the handler that it finds, after its own, which tells other ranks.
    handler = signal.signal(signal.SIGTERM, _end_at_once) if in_main else None
    try:
        with warnings.catch_warnings():
            for message in _CHATTER:
                warnings.filterwarnings("ignore", message=message)
            yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, handler)
        logger.setLevel(level)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def is_first_process(num_nodes: int) -> bool:
    """Return whether this process is the first of all nodes, the one that writes.

    With several devices Lightning starts this program again for each; on several nodes their users
    start it. Until there is a trainer, Lightning may know a process's rank within its node alone.

    Args:
        num_nodes: as the trainer will be told; a NODE_RANK says nothing where there is one node.
    """
    first_node = num_nodes == 1 or LightningEnvironment().node_rank() == 0
    return first_node and rank_zero_only.rank in (None, 0)


def make_trainer(**options: Any) -> Trainer:
    """Return a Lightning trainer without bars and tables; `options` are passed on.

    Raises:
        InputError: the accelerator or so many devices are not there, or this process is one of
            several nodes and does not know which, or where the others are.
    """
    try:
        trainer = Trainer(
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            plugins=[AtomicCheckpoints()],
            **options,
        )
    except (MisconfigurationException, ValueError) as error:
        raise InputError(
            f"Expected an accelerator and devices that this machine has, found: {error} "
            "Hint: see --accelerator and --devices."
        ) from error
    environment = getattr(trainer.strategy, "cluster_environment", None)
    missing = [name for name in _NODE_VARIABLES if name not in os.environ]
    if trainer.num_nodes > 1 and type(environment) is LightningEnvironment and missing:
        # Lightning would wait for half an hour for nodes that cannot find it.
        raise InputError(
            f"Expected {', '.join(_NODE_VARIABLES)} in the environment with --num-nodes "
            f"{trainer.num_nodes}, found no {missing[0]}. Hint: set them on each node, as "
            "docs/guides/scale_out.md shows."
        )
    return trainer


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints that are whole or not there.

    Lightning moves them from the system's folder of temporary files, which may be another disk: a
    full disk or a kill then cuts the checkpoint that was there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Path | str, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; there are no `storage_options`."""
        write_checkpoint(path, checkpoint)


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint under a fixed name; its state survives a move of the run directory."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state over, with paths of the directory as it is called now."""
        here = str(self.dirpath)

        def moved(path: str) -> str:
            return os.path.join(here, Path(path).name) if path else path

        best = state_dict.get("best_k_models", {})
        state = state_dict | {
            "dirpath": here,
            "best_k_models": {moved(path): score for path, score in best.items()},
        }
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[name] = moved(state_dict.get(name, ""))
        super().load_state_dict(state)


class EpochProgress(Callback):
    """Progress of a long epoch's batches, and a line of each epoch, both on standard error."""

    def __init__(self) -> None:
        self._start = 0.0
        self._first_epoch = 0
        self._batches = Progress(0, "batches", shown=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.monotonic()
        self._first_epoch = trainer.current_epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count the epoch's batches."""
        self._batches = Progress(
            int(trainer.num_training_batches),
            f"epoch {trainer.current_epoch + 1}: batches",
            shown=trainer.is_global_zero,
            delay_s=1.0,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        self._batches.advance()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the bar away: the error stands alone."""
        self._batches.stop(final=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Show the epoch's losses and metrics."""
        self._batches.stop(final=False)
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        seen: dict[str, float] = pl_module.history[-1]
        parts = [
            f"{label} {seen[name]:.4f}"
            for label, name in (
                ("loss", "train_loss"),
                ("val loss", "val_loss"),
                ("val AUROC", "val_auroc"),
                ("within question", "val_within_question"),
            )
            if name in seen
        ]
        each = (time.monotonic() - self._start) / (epoch - self._first_epoch)
        left = timedelta(seconds=round(each * ((trainer.max_epochs or epoch) - epoch)))
        seconds = self._batches.elapsed_s
        rate = int(trainer.num_training_batches) / seconds
        print(
            f"epoch {epoch}/{trainer.max_epochs}: {', '.join(parts)}, "
            f"{seconds:.1f} s, {rate:,.0f} batches/s, at most {left} left",
            file=sys.stderr,
            flush=True,
        )
