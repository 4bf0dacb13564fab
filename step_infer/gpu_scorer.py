"""Two forms of the step scorer for a GPU: on its 16-bit matrix units, and as CUDA graphs.

`SplitScorer` gives the result of float32 on the 16-bit units. A product in float32 takes some of
the GPU's cores for long. States of 16 bits need none: a float32 weight is the sum of two 16-bit
numbers but for 1 part in 65,000, products of 16-bit numbers are exact in float32, and the matrix
units add them up in float32. So one product with both halves of the weights side by side does it.
`CapturedScorer` is one launch a step where it would be ten.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from step_infer.scorer.network import StepScorer


def split(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two tensors of a 16-bit type whose sum is a float32 tensor, but for 1 part in 65,000.

    Args:
        weight: float32, of any shape.
        dtype: bfloat16 or float16.
    """
    high = weight.to(dtype)
    return high, (weight - high.float()).to(dtype)


class SplitScorer:
    """A step scorer for states of one 16-bit type on a CUDA device."""

    def __init__(self, scorer: StepScorer, dtype: torch.dtype) -> None:
        """Split the first layer's weights; the others are small and stay float32."""
        first = scorer.net[0]
        assert isinstance(first, nn.Linear)
        self._both_HW = torch.cat(split(first.weight.detach(), dtype)).t()
        self._bias_W = first.bias.detach()
        self._rest = scorer.net[1:]

    def __call__(self, hidden_BH: Tensor) -> Tensor:
        """Return one float32 logit a row [B] for hidden states [B, H] of the scorer's type."""
        both_BW = torch.mm(hidden_BH, self._both_HW, out_dtype=torch.float32)
        high_BW, low_BW = both_BW.chunk(2, dim=1)
        return self._rest(high_BW.add_(low_BW).add_(self._bias_W)).squeeze(-1)


SMALLEST = 8
"""Rows of the smallest graph; each other one has twice the rows of the one before."""


def graph_sizes(most: int) -> list[int]:
    """Return the numbers of rows to capture, ascending, so that up to `most` rows fit in one."""
    doubled = (SMALLEST << number for number in itertools.count())
    return [*itertools.takewhile(lambda size: size < most, doubled), most]


class CapturedScorer:
    """Scores up to a fixed number of rows of one 16-bit type on a CUDA device.

    Rows are copied into the states that the graphs read, which are padded to the next graph's
    size.
    """

    def __init__(self, scorer: StepScorer, most: int, dtype: torch.dtype) -> None:
        """Capture the graphs; vLLM does so with its own after a model is loaded.

        Args:
            scorer: on the CUDA device.
            most: rows of the largest call.
            dtype: of the hidden states, bfloat16 or float16.
        """
        self._score = SplitScorer(scorer, dtype)  # the graphs read its weights where they lie
        first = next(scorer.parameters())
        self._states_BH = torch.zeros(most, first.shape[1], dtype=dtype, device=first.device)
        self._graphs: list[tuple[int, torch.cuda.CUDAGraph, Tensor]] = []
        pool, stream = None, torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode():
            for size in reversed(graph_sizes(most)):  # the smaller ones fit in the largest's memory
                rows_BH = self._states_BH[:size]
                # On the same stream: a first call takes the working memory of matrix products,
                # which must not lie in the graphs' pool.
                with torch.cuda.stream(stream):
                    torch.sigmoid(self._score(rows_BH))
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                    scores_B = torch.sigmoid(self._score(rows_BH))
                pool = graph.pool()
                self._graphs.insert(0, (size, graph, scores_B))

    def fits(self, hidden_BH: Tensor) -> bool:
        """Return whether a call may have these states."""
        same = hidden_BH.dtype == self._states_BH.dtype
        return same and len(hidden_BH) <= len(self._states_BH)

    def load(self, hidden_BH: Tensor) -> Callable[[], Tensor]:
        """Copy hidden states [B, H] for the graphs; return what scores them.

        That returns the scores [B]; the next call overwrites them. It may run on another stream
        than the copy, after it, and before states are loaded again.
        """
        rows = len(hidden_BH)
        self._states_BH[:rows].copy_(hidden_BH)
        _, graph, scores_B = next(found for found in self._graphs if found[0] >= rows)

        def replay() -> Tensor:
            graph.replay()
            return scores_B[:rows]

        return replay
