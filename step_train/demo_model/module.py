"""The demo language model as Lightning sees it: loss, optimiser, batches.

Axes: B rows of a batch, T tokens, H hidden size, V vocabulary.
"""

import math
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from data_gen.ledger.stream import LENGTH_STEP, TraceBatch, TraceStream
from step_train.demo_model.config import LedgerLMConfig
from step_train.demo_model.export import MAX_POSITIONS

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

VALIDATION_BATCHES = 4

_WEIGHT_DECAY = 0.1
"""AdamW's, on matrices only."""


class LedgerLM(L.LightningModule):
    """Next-token training of a given causal language model, on the responses only."""

    def __init__(self, net: "Qwen3ForCausalLM", config: LedgerLMConfig) -> None:
        super().__init__()
        self.net = net
        self.config = config
        self.head = self._head
        if config.compile:
            # One graph serves all layers and all batch shapes: compiled once, in seconds.
            for layer in net.model.layers:
                layer.compile(dynamic=True)
            self.head = torch.compile(self._head, dynamic=True)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return the last layer's states before the final norm, [B, T, H].

        The same computation as `net.model`, but without its mask making: rows are padded on the
        right and attention is causal, so no mask is needed and the fast kernels apply.
        """
        model = self.net.model
        hidden_BTH = model.embed_tokens(ids_BT)
        positions_1T = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        rotary = model.rotary_emb(hidden_BTH, positions_1T)
        for layer in model.layers:
            hidden_BTH = layer(hidden_BTH, attention_mask=None, position_embeddings=rotary)
        return hidden_BTH

    def _head(self, hidden_BTH: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        logits_BTV = self.net.lm_head(self.net.model.norm(hidden_BTH)).float()
        return nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=-100
        )

    def _loss(self, batch: TraceBatch) -> torch.Tensor:
        ids_BT = batch.ids_BT.long()
        index_T = torch.arange(1, ids_BT.shape[1] + 1, device=ids_BT.device)
        # Position t predicts token t+1, where that is a token of the response.
        learned = (index_T >= batch.prompt_B[:, None]) & (index_T < batch.length_B[:, None])
        targets_BT = ids_BT.roll(-1, dims=1).masked_fill(~learned, -100)
        return self.head(self(ids_BT), targets_BT)

    def training_step(self, batch: TraceBatch, batch_idx: int) -> torch.Tensor:
        """Return the mean loss of a batch's response tokens, nats."""
        loss = self._loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: TraceBatch, batch_idx: int) -> None:
        """Log the held-out loss, nats a token."""
        self.log("val_loss", self._loss(batch), batch_size=len(batch.ids_BT), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW on a cosine schedule with linear warm-up."""
        config = self.config
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": _WEIGHT_DECAY},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
        )

        def factor(step: int) -> float:
            if step < config.warmup_steps:
                return (step + 1) / config.warmup_steps
            done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the settings, so that a resumed run can be checked against them."""
        checkpoint["config"] = self.config.result_settings()


class LedgerData(L.LightningDataModule):
    """Endless training batches, and a few held-out ones from another split's questions."""

    def __init__(self, config: LedgerLMConfig, start: int = 0) -> None:
        super().__init__()
        self.config = config
        self.start = start

    def train_dataloader(self) -> DataLoader[TraceBatch]:
        """Return batches from step `start` on, this device's own."""
        config = self.config
        workers = config.workers or 0
        stream = TraceStream(
            config.tokens_per_batch,
            seed=config.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            start=self.start,
            max_length=MAX_POSITIONS,
        )
        return DataLoader(
            stream,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[TraceBatch]:
        """Return the held-out batches: the same in every run and on every device."""
        # Small batches: their number then does not depend much on the training's batch size.
        tokens = min(self.config.tokens_per_batch, 1024 * LENGTH_STEP)
        stream = iter(TraceStream(tokens, split="scorer-train", system_share=0.0))
        batches = [next(stream) for _ in range(VALIDATION_BATCHES)]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
