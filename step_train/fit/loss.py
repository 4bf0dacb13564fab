"""The loss of a batch of steps: the paper's, and its variants.

Axes: B rows of a batch, S steps of the training split.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from step_train.data.trace_table import TraceTable

Weights = npt.NDArray[np.float64]


class StepLoss:
    """Weighted binary cross-entropy (STEP, arXiv 2601.09093, section 4.1), and a ranking loss."""

    def __init__(
        self,
        table: TraceTable,
        *,
        trace_weighting: str = "none",
        early_discount: float = 0.0,
        label_smoothing: float = 0.0,
        ranking_weight: float = 0.0,
    ) -> None:
        """Take the training split; the defaults are the paper's.

        Args:
            table: the training split's traces.
            trace_weighting: "trace" gives every trace the same weight, "none" every step.
            early_discount: how much less than the last step of a trace the first ones weigh, 0 to
                1; in between, the weight grows with progress.
            label_smoothing: labels are this / 2 and 1 - this / 2 instead of 0 and 1.
            ranking_weight: weight of the ranking loss against the cross-entropy.
        """
        # Four bytes a step, eight with weights: what a trace's steps share is kept once a trace.
        trace_S = np.repeat(np.arange(len(table), dtype=np.int32), table.steps_N)
        weight_S = None
        whole, right = float(table.num_steps), float(table.positive_steps)
        if trace_weighting != "none" or early_discount:
            weight_S = step_weights(table, trace_weighting, early_discount)
            whole, right = float(weight_S.sum()), float(weight_S[table.correct_N[trace_S]].sum())
        self.pos_weight = (whole - right) / right
        """Weight of a right step's loss against a wrong one's: both classes count the same."""
        self.ranking_weight = ranking_weight
        smooth_N = table.correct_N * (1 - label_smoothing) + label_smoothing / 2
        # Not buffers of a module: those are sent around before every step of several processes.
        self._arrays = {
            "trace": torch.from_numpy(trace_S),
            "label": torch.from_numpy(table.correct_N),
            "target": torch.from_numpy(smooth_N.astype(np.float32)),
            "question": torch.from_numpy(table.question_N),
            "pos_weight": torch.tensor(self.pos_weight, dtype=torch.float32),
        }
        if weight_S is not None:
            self._arrays["weight"] = torch.from_numpy(weight_S.astype(np.float32))

    @property
    def nbytes(self) -> int:
        """Memory that the loss keeps, bytes."""
        return sum(array.nbytes for array in self._arrays.values())

    def __call__(self, logits_B: Tensor, step_B: Tensor) -> Tensor:
        """Return the sum of the samples' losses; the ranking loss counts once for each sample.

        Args:
            logits_B: the scorer's.
            step_B: number of each row in the training split.
        """
        self._arrays = {name: array.to(logits_B.device) for name, array in self._arrays.items()}
        arrays, step_B = self._arrays, step_B.to(logits_B.device)
        trace_B = arrays["trace"][step_B]
        loss = binary_cross_entropy_with_logits(
            logits_B,
            arrays["target"][trace_B],
            weight=arrays["weight"][step_B] if "weight" in arrays else None,
            pos_weight=arrays["pos_weight"],
            reduction="sum",
        )
        if self.ranking_weight:
            ranking = ranking_loss(logits_B, arrays["label"][trace_B], arrays["question"][trace_B])
            loss = loss + self.ranking_weight * len(logits_B) * ranking
        return loss


def step_weights(table: TraceTable, trace_weighting: str, early_discount: float) -> Weights:
    """Return the weight of every step's loss [S], on average 1."""
    steps_S = np.repeat(table.steps_N, table.steps_N)
    number_S = np.arange(1, table.num_steps + 1) - np.repeat(table.first_step_N, table.steps_N)
    weight_S = 1 - early_discount * (1 - number_S / steps_S)
    if trace_weighting == "trace":
        weight_S /= np.repeat(np.add.reduceat(weight_S, table.first_step_N), table.steps_N)
    weights: Weights = weight_S / weight_S.mean()
    return weights


def ranking_loss(logits_B: Tensor, right_B: Tensor, question_B: Tensor) -> Tensor:
    """Return the mean logistic loss of the pairs of a right and a wrong step of one question.

    0 where the batch has no such pair. RankNet (Burges et al., 2005), within question: what
    pruning needs is the order among one question's traces, and cross-entropy also rewards telling
    easy questions from hard ones.
    """
    right, wrong = torch.where(right_B)[0], torch.where(~right_B)[0]
    pairs = question_B[right].unsqueeze(1) == question_B[wrong].unsqueeze(0)
    first, second = torch.where(pairs)
    margin_P = logits_B[right[first]] - logits_B[wrong[second]]
    return softplus(-margin_P).sum() / max(1, len(margin_P))
