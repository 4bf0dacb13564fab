"""Batches of traces for a forward pass: part by part, of similar length, within a token budget.

Axes: B traces of a batch, T tokens, S steps of the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_gen.traces.directory import TraceDirectory
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryRule

PAD_ID = 0
"""Fills rows on the right, where causal attention never looks."""


class TraceBatch(NamedTuple):
    """Some traces of one part."""

    ids_BT: Tensor
    """Prompt and response up to the last boundary."""
    flat_S: Tensor
    """Every boundary's place in the flattened [B * T]."""
    part: int
    rows: tuple[int, ...]
    """The traces' row numbers in their part [B]."""
    steps: tuple[int, ...]
    """How many boundaries each has [B]."""
    last: bool
    """Whether it is the part's last batch."""


def with_positions(rows: list[dict[str, Any]], rule: BoundaryRule) -> list[dict[str, Any]]:
    """Return a part's rows with the rule's boundaries; scores of other boundaries are dropped."""
    placed = []
    for row in rows:
        positions = rule.positions(row["token_ids"])
        changed = positions != row["boundary_positions"]
        fields: dict[str, Any] = {"boundary_positions": positions}
        if changed:
            fields |= {"step_scores": None, "trace_score": None, "step_confidences": None}
        placed.append(row | fields)
    return placed


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group traces of similar length, the longest first.

    Args:
        lengths: tokens of each trace; traces of length 0 are left out.
        batch_tokens: most tokens of a batch, padding included; a longer trace is alone.

    Returns:
        For each batch the indices of its traces.
    """
    batches: list[list[int]] = []
    widest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not lengths[index]:
            continue
        if not batches or (len(batches[-1]) + 1) * widest > batch_tokens:
            batches.append([])
            widest = lengths[index]
        batches[-1].append(index)
    return batches


@dataclass
class PartBatches:
    """Batches of whole parts, one part after the other."""

    source: TraceDirectory
    parts: Sequence[int]
    rule: BoundaryRule
    batch_tokens: int
    vocabulary: int
    """Rows of the model's embedding; every token id is below it."""

    def __iter__(self) -> Iterator[TraceBatch]:
        columns = ("prompt_token_ids", "token_ids", "boundary_positions")
        for part in self.parts:
            rows = with_positions(self.source.part(part, columns).to_pylist(), self.rule)
            yield from self._batches(part, rows)

    def _batches(self, part: int, rows: list[dict[str, Any]]) -> Iterator[TraceBatch]:
        read = []
        for row in rows:
            positions = row["boundary_positions"]
            end = positions[-1] + 1 if positions else 0
            read.append(row["prompt_token_ids"] + row["token_ids"][:end] if end else [])
        groups = length_batches([len(tokens) for tokens in read], self.batch_tokens)
        if not groups:
            empty = torch.empty((0, 0), dtype=torch.long)
            yield TraceBatch(empty, empty.flatten(), part, (), (), True)
        for number, group in enumerate(groups):
            ids_BT = torch.full((len(group), len(read[group[0]])), PAD_ID)
            places = []
            for b, index in enumerate(group):
                ids_BT[b, : len(read[index])] = torch.tensor(read[index])
                row = rows[index]
                offset = b * ids_BT.shape[1] + len(row["prompt_token_ids"])
                places.append(torch.tensor(row["boundary_positions"]) + offset)
            least, most = int(ids_BT.min()), int(ids_BT.max())
            if most >= self.vocabulary or least < 0:
                raise InputError(
                    f"Expected token ids from 0 to {self.vocabulary - 1} (model), found "
                    f"{least if least < 0 else most} in part {part} of "
                    f"{self.source.path}. Hint: extract with the model that made the traces."
                )
            yield TraceBatch(
                ids_BT,
                torch.cat(places),
                part,
                tuple(group),
                tuple(len(place) for place in places),
                number == len(groups) - 1,
            )
