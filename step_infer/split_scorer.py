"""The step scorer on a GPU's 16-bit matrix units, with the result of float32.

A product in float32 takes some of the GPU's cores for long. States of 16 bits need none: a float32
weight is the sum of two 16-bit numbers but for 1 part in 65,000, products of 16-bit numbers are
exact in float32, and the matrix units add them up in float32. So one product with both halves of
the weights side by side does it.
"""

import torch
from torch import Tensor, nn

from step_infer.scorer import StepScorer


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
