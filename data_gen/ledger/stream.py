"""Endless training batches: fresh questions, fresh traces, grouped by length.

Axes: B rows of a batch, T tokens.
"""

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from data_gen.ledger.questions import draw_numbers, question_text
from data_gen.ledger.reasoner import Reasoner
from data_gen.ledger.tokenizer import IM_END, PAD_ID, encode_array, prompt_text
from step_infer.client.prompt import SYSTEM_PROMPT

POOL_BATCHES = 16
"""Batches cut from one sorted pool: more make less padding, but a later first batch."""

LENGTH_STEP = 64
"""T is a multiple of this many tokens."""


class TraceBatch(NamedTuple):
    """Prompts with their responses, padded on the right."""

    ids_BT: torch.Tensor
    """Token ids, uint8 (the vocabulary has 104 tokens)."""
    prompt_B: torch.Tensor
    """Prompt lengths, tokens, int32."""
    length_B: torch.Tensor
    """Prompt and response lengths, tokens, int32."""


_Row = tuple[npt.NDArray[np.uint8], int]


class TraceStream(IterableDataset[TraceBatch]):
    """Batches of about `tokens_per_batch` tokens, the same for the same arguments.

    Every worker process makes every W-th batch from its own random stream, so the order depends
    on the number of workers W. `start` leaves out the first batches: a resumed training
    continues with the batch at which it was cut off.
    """

    def __init__(
        self,
        tokens_per_batch: int,
        *,
        split: str = "train",
        seed: int = 0,
        rank: int = 0,
        start: int = 0,
        system_share: float = 0.1,
        max_length: int = 4096,
    ) -> None:
        """Set up the stream.

        Args:
            tokens_per_batch: B x T with padding is at most this, tokens.
            split: questions come from this split only.
            seed: same seed, same batches.
            rank: device number; each has its own batches.
            start: batches to leave out.
            system_share: share of prompts with the paper's system text, 0 to 1; the others have
                none. The demo model then copes with both.
            max_length: longer rows are left out, tokens.
        """
        self.tokens_per_batch = tokens_per_batch
        self.split = split
        self.seed = seed
        self.rank = rank
        self.start = start
        self.system_share = system_share
        self.max_length = min(max_length, tokens_per_batch // LENGTH_STEP * LENGTH_STEP)

    def __iter__(self) -> Iterator[TraceBatch]:
        """Yield this worker's batches without end."""
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        # The loader asks worker 0 first, also when the stream starts in the middle.
        lane = (self.start + worker) % workers
        done = len(range(lane, self.start, workers))
        rng = random.Random(f"{self.split}/{self.seed}/{self.rank}/{workers}/{lane}")
        return itertools.islice(self._batches(rng), done, None)

    def _batches(self, rng: random.Random) -> Iterator[TraceBatch]:
        rows = self._rows(rng)
        pool: list[_Row] = []
        while True:
            tokens = 0
            while tokens < POOL_BATCHES * self.tokens_per_batch:
                row = next(rows)
                tokens += len(row[0])
                pool.append(row)
            pool.sort(key=lambda row: len(row[0]))
            groups: list[list[_Row]] = [[]]
            for row in pool:
                if (len(groups[-1]) + 1) * _padded(len(row[0])) > self.tokens_per_batch:
                    groups.append([])
                groups[-1].append(row)
            # The last group may be far from full: it waits for the next pool.
            pool = groups.pop()
            rng.shuffle(groups)
            yield from map(_collate, groups)

    def _rows(self, rng: random.Random) -> Iterator[_Row]:
        reasoner = Reasoner()
        while True:
            numbers = draw_numbers(self.split, rng)
            system = SYSTEM_PROMPT if rng.random() < self.system_share else ""
            prompt = prompt_text(question_text(numbers), system)
            ids_T = encode_array(prompt + reasoner.trace(numbers, rng).text + IM_END)
            if len(ids_T) <= self.max_length:
                yield ids_T, len(encode_array(prompt))


def _padded(length: int) -> int:
    return -(-length // LENGTH_STEP) * LENGTH_STEP


def _collate(rows: list[_Row]) -> TraceBatch:
    lengths = [len(ids_T) for ids_T, _ in rows]
    ids_BT = np.full((len(rows), _padded(max(lengths))), PAD_ID, dtype=np.uint8)
    for i, (ids_T, _) in enumerate(rows):
        ids_BT[i, : len(ids_T)] = ids_T
    return TraceBatch(
        torch.from_numpy(ids_BT),
        torch.tensor([prompt for _, prompt in rows], dtype=torch.int32),
        torch.tensor(lengths, dtype=torch.int32),
    )
