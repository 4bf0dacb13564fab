"""The step scorer as CUDA graphs: one launch a step where it would be ten, off the host's path."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from step_infer.scorer import StepScorer
from step_infer.split_scorer import SplitScorer

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
        """Tell whether a call may have these states."""
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
