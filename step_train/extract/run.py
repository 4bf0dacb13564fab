"""Add features to existing traces by a forward pass of their model: `extract(ExtractConfig(...))`.

The second way to get features; the first is to collect them while the traces are sampled. Both give
the final-normed states of the last layer at the same boundaries, in the same files.
Axes: B traces of a batch, T tokens, S steps, H hidden size.
"""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from data_gen.traces.directory import TraceDirectory
from data_gen.traces.features import FeatureShard, write_shard
from data_gen.traces.writer import TraceWriter
from step_infer.cli.progress import Progress
from step_infer.client.engine import cpu_dtype
from step_infer.client.kinds import AnswerOptions
from step_infer.client.prompt import load_tokenizer
from step_infer.errors import InputError
from step_infer.scorer.boundary import NO_BOUNDARY, BoundaryRule
from step_infer.scorer.identity import ModelIdentity, identify
from step_infer.storage.files import real_path
from step_train.extract.batches import PartBatches, TraceBatch, with_positions
from step_train.extract.config import KEEP, ExtractConfig
from step_train.trainer import is_first_process, lightning_run, make_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PIECES = ".pieces"
"""Folder of finished shards of several devices, before the first one lists them."""


def extract(config: ExtractConfig) -> TraceDirectory:
    """Write a copy of a traces directory with features; go on where an earlier run stopped.

    Raises:
        InputError: the model, the traces or the output directory cannot be used.
    """
    source = TraceDirectory(config.traces)
    if not source.num_parts:
        raise InputError(
            f"Expected traces in {config.traces}, found none. Hint: make them with step-collect."
        )
    if real_path(config.out) == real_path(config.traces):
        raise InputError(
            "Expected another directory as --out than as --traces, found the same. "
            "Hint: choose another --out."
        )
    identity = identify(config.model, _revision(config, source))
    rule = _rule(config, source, identity)
    first = is_first_process(config.num_nodes)
    writer = _writer(config, source, identity, rule) if first else None
    try:
        if writer is None or len(writer.manifest["parts"]) < source.num_parts:
            _run(config, source, rule, writer)
        if writer is not None:
            require_all_parts(writer, source)
            shutil.rmtree(config.out / _PIECES, ignore_errors=True)
            writer.update(complete=source.complete)
    finally:
        if writer is not None:
            writer.close()
    return TraceDirectory(config.out)


def require_all_parts(writer: TraceWriter, source: TraceDirectory) -> None:
    """See that every part of the source has been written.

    Raises:
        InputError: one is missing, as where this node does not see what others wrote.
    """
    found = len(writer.manifest["parts"])
    if found < source.num_parts:
        raise InputError(
            f"Expected all {source.num_parts} parts in {writer.path}, found {found}. Hint: --out "
            "must be a folder that all nodes see; give the same command again, and it goes on."
        )


def _revision(config: ExtractConfig, source: TraceDirectory) -> str | None:
    made_by = source.manifest.get("identity") or {}
    same = source.manifest.get("model") == config.model
    return config.revision or (made_by.get("revision") if same else None)


def _rule(config: ExtractConfig, source: TraceDirectory, identity: ModelIdentity) -> BoundaryRule:
    made_by = source.manifest.get("identity") or {}
    if made_by.get("tokenizer_hash") not in (None, identity.tokenizer_hash):
        raise InputError(
            f"Expected tokenizer_hash {made_by['tokenizer_hash'][:12]}… (manifest of "
            f"{config.traces}), found {identity.tokenizer_hash[:12]}… (model {config.model}). "
            "Hint: extract with the model that made the traces."
        )
    if config.boundary.kind != KEEP:
        return config.boundary.rule(load_tokenizer(config.model, identity.revision))
    if source.manifest.get("boundary"):
        return BoundaryRule.from_dict(source.manifest["boundary"])
    return BoundaryRule.for_tokenizer(load_tokenizer(config.model, identity.revision))


def _writer(
    config: ExtractConfig, source: TraceDirectory, identity: ModelIdentity, rule: BoundaryRule
) -> TraceWriter:
    settings = {
        "traces_fingerprint": source.fingerprint,
        "model_config_hash": identity.config_hash,
        "tokenizer_hash": identity.tokenizer_hash,
        "dtype": _dtype(config),
        "boundary": rule.to_dict(),
        **AnswerOptions.from_settings(source.manifest["settings"]).settings(),
    }
    names = ("sampling", "seed", "system", "chat_template_kwargs", "prompt_date")
    kept = {name: source.manifest[name] for name in names if name in source.manifest}
    return TraceWriter(
        config.out,
        settings,
        model=identity.model,
        identity={
            "config_hash": identity.config_hash,
            "tokenizer_hash": identity.tokenizer_hash,
            "hidden_size": identity.hidden_size,
            "revision": identity.revision,
        },
        boundary=rule.to_dict(),
        source=str(real_path(config.traces)),
        **kept,
    )


def _dtype(config: ExtractConfig) -> str:
    on_cpu = config.accelerator == "cpu" or not torch.cuda.is_available()
    return (cpu_dtype() if config.dtype == "auto" and on_cpu else None) or config.dtype


def load_model(model: str, dtype: str, revision: str | None = None) -> "PreTrainedModel":
    """Load a Hugging Face model without its head; its output is the final-normed last layer.

    Args:
        model: model folder or Hugging Face id.
        dtype: number format; "auto" takes the model's own.
        revision: branch, tag or commit of a hub id; None is the main one.

    Raises:
        InputError: the model cannot be loaded.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    # Its bar stands for seconds, and would come between lines of ours.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        found = AutoModel.from_pretrained(model, dtype=dtype, revision=revision or "main")
        return found.eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"Expected a Hugging Face model in {model}, found: "
            f"{str(error).splitlines()[0].rstrip('.')}. "
            "Hint: choose another folder, or another id on the Hugging Face hub."
        ) from error


def _run(
    config: ExtractConfig,
    source: TraceDirectory,
    rule: BoundaryRule,
    writer: TraceWriter | None,
) -> None:
    model = load_model(config.model, _dtype(config), _revision(config, source))
    with lightning_run():
        trainer = make_trainer(
            accelerator=config.accelerator,
            devices="auto" if config.devices is None else config.devices,
            num_nodes=config.num_nodes,
            logger=False,
            callbacks=[PartWriter(config, source, rule, writer)],
            enable_checkpointing=False,
        )
        data = TraceData(source, config, rule, model.get_input_embeddings().num_embeddings)
        trainer.predict(StateExtractor(model), datamodule=data, return_predictions=False)


class StateExtractor(LightningModule):
    """Computes the states at the boundaries of a batch of traces."""

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model = model

    def predict_step(self, batch: TraceBatch, _batch_index: int) -> Tensor:
        """Return the states at the batch's boundaries [S, H], on the CPU."""
        if not batch.rows:
            return torch.empty(0)
        # Rows are padded on the right and attention is causal, so no mask is needed.
        hidden_BTH = self.model(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
        return hidden_BTH.flatten(0, 1)[batch.flat_S].cpu()


class TraceData(LightningDataModule):
    """The parts that are still to do, spread over the processes."""

    def __init__(
        self, source: TraceDirectory, config: ExtractConfig, rule: BoundaryRule, vocabulary: int
    ) -> None:
        super().__init__()
        self.source = source
        self.config = config
        self.rule = rule
        self.vocabulary = vocabulary
        self.parts: list[int] = []

    def setup(self, stage: str) -> None:
        """Find this process's parts."""
        done = TraceDirectory(self.config.out).num_parts
        todo = [
            part
            for part in range(done, self.source.num_parts)
            if not _piece(self.config.out, part).exists()
        ]
        self.parts = todo[self.trainer.global_rank :: self.trainer.world_size]

    def predict_dataloader(self) -> PartBatches:
        """Return the batches of this process's parts."""
        return PartBatches(
            self.source, self.parts, self.rule, self.config.batch_tokens, self.vocabulary
        )


class PartWriter(Callback):
    """Writes a part when its last batch is done, always in the order of the source."""

    def __init__(
        self,
        config: ExtractConfig,
        source: TraceDirectory,
        rule: BoundaryRule,
        writer: TraceWriter | None,
    ) -> None:
        self.config = config
        self.source = source
        self.rule = rule
        self.writer = writer
        self._states: dict[int, Tensor] = {}
        self._progress = Progress(0, "traces", shown=False)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show how many traces this process has to do."""
        parts = trainer.datamodule.parts
        listed = self.source.manifest["parts"]
        self._hidden_size = pl_module.model.config.get_text_config().hidden_size
        self._dtype = pl_module.model.dtype
        self._progress = Progress(
            sum(listed[part]["traces"]["rows"] for part in parts),
            "traces",
            shown=self.config.progress and trainer.is_global_zero,
            delay_s=2.0,
        )
        self._list_pieces()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: TraceBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the batch's states; with the last batch of a part, write the part."""
        if batch.rows:
            states = outputs.split(list(batch.steps))
            self._states |= dict(zip(batch.rows, states, strict=True))
        self._progress.advance(len(batch.rows))
        if not batch.last:
            return
        rows = self._rows(batch.part)
        nothing = torch.empty((0, self._hidden_size), dtype=self._dtype)
        hidden = [self._states.get(index, nothing) for index in range(len(rows))]
        self._progress.advance(len(rows) - len(self._states))
        self._states = {}
        if batch.part == 0 and not batch.rows:
            print(f"warning: {NO_BOUNDARY}", file=sys.stderr)
        if self.writer is not None and len(self.writer.manifest["parts"]) == batch.part:
            self.writer.add_part(rows, hidden)
        else:
            positions = [row["boundary_positions"] for row in rows]
            write_shard(_piece(self.config.out, batch.part), hidden, positions)
        self._list_pieces()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the other processes, then list what they wrote."""
        trainer.strategy.barrier("parts written")
        self._list_pieces()
        self._progress.stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the bar away: the error stands alone."""
        self._progress.stop(final=False)

    def _list_pieces(self) -> None:
        """Add the parts that other processes have finished, as far as none is missing before."""
        if self.writer is None:
            return
        while (piece := _piece(self.config.out, len(self.writer.manifest["parts"]))).exists():
            rows = self._rows(len(self.writer.manifest["parts"]))
            states = FeatureShard(piece).hidden()
            self.writer.add_part(
                rows, list(states.split([len(row["boundary_positions"]) for row in rows]))
            )
            piece.unlink()

    def _rows(self, part: int) -> list[dict[str, Any]]:
        return with_positions(self.source.part(part).to_pylist(), self.rule)


def _piece(out: Path, part: int) -> Path:
    return out / _PIECES / f"shard-{part:05d}.safetensors"
