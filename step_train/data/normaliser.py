"""Input normalisation for training, folded into the first layer at export. Axes: B rows, H size."""

import torch
from torch import Tensor, nn

from step_infer.scorer.network import StepScorer
from step_train.data.feature_blocks import EvaluationBatches, FeatureRows
from step_train.data.trace_table import TraceTable


class Normaliser(nn.Module):
    """Gives every entry of the hidden state mean 0 and standard deviation 1."""

    mean_H: Tensor
    std_H: Tensor

    def __init__(self, hidden_size: int) -> None:
        """Make one that changes nothing."""
        super().__init__()
        self.register_buffer("mean_H", torch.zeros(hidden_size, dtype=torch.float64))
        self.register_buffer("std_H", torch.ones(hidden_size, dtype=torch.float64))

    def forward(self, hidden_BH: Tensor) -> Tensor:
        """Return the normalised states, float32 [B, H]."""
        return (hidden_BH.float() - self.mean_H.float()) / self.std_H.float()

    def measure(self, rows: FeatureRows, table: TraceTable) -> None:
        """Take mean and deviation of the steps of some traces, read once, a block at a time.

        An entry that never changes keeps deviation 1.
        """
        total = torch.zeros_like(self.mean_H)
        squares = torch.zeros_like(self.mean_H)
        # Of differences from the first state: sums of squares alone lose small deviations.
        shift: Tensor | None = None
        for hidden_BH, _ in EvaluationBatches(rows, table):
            hidden = hidden_BH.double()
            if shift is None:
                shift = hidden[0].clone()
            hidden -= shift
            total += hidden.sum(0)
            squares += hidden.square_().sum(0)
        assert shift is not None
        mean = total / table.num_steps
        std = (squares / table.num_steps - mean.square()).clamp_min(0).sqrt()
        self.mean_H.copy_(mean + shift)
        self.std_H.copy_(torch.where(std > 0, std, torch.ones_like(std)))

    @torch.no_grad()
    def fold(self, scorer: StepScorer) -> None:
        """Change the scorer's first layer so that it takes states as the model gives them."""
        first = scorer.net[0]
        assert isinstance(first, nn.Linear)
        weight = first.weight.double() / self.std_H
        first.bias.copy_(first.bias.double() - weight @ self.mean_H)
        first.weight.copy_(weight)
