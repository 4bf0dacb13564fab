"""Temperature: one number by which logits are divided so that scores are probabilities.

Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599), section 4.2. It changes
no step's rank, only how sure the scores are. Axes: S steps.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from step_eval.statistics import Bools
from step_infer.scorer.network import StepScorer
from step_train.evaluation.metrics import ece

_BOUND = 100.0
"""Largest temperature, and the inverse of the smallest: logits that tell nothing have none."""


def calibrate(label_S: Bools, logits_S: Tensor) -> dict[str, Any]:
    """Fit a temperature, and say what it does.

    Args:
        label_S: of the validation questions' steps; never the test questions'.
        logits_S: of the same steps.

    Returns:
        "temperature", "ece_before" and "ece_after" (expected calibration error) and "on".
    """
    temperature = fit_temperature(label_S, logits_S)
    logits = logits_S.double()
    return {
        "temperature": temperature,
        "ece_before": ece(label_S, torch.sigmoid(logits).numpy()),
        "ece_after": ece(label_S, torch.sigmoid(logits / temperature).numpy()),
        "on": "validation questions",
    }


def fit_temperature(label_S: Bools, logits_S: Tensor) -> float:
    """Return the temperature of the least binary cross-entropy, from 0.01 to 100 (L-BFGS)."""
    logits = logits_S.double()
    labels = torch.from_numpy(label_S.astype(np.float64))
    # The loss is convex in the inverse of the temperature.
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(logits * inverse, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    found = float(inverse.detach())
    return 1 / min(max(found, 1 / _BOUND), _BOUND)


@torch.no_grad()
def fold_temperature(scorer: StepScorer, temperature: float) -> None:
    """Divide the last layer, so that the scorer's own logits are calibrated."""
    last = scorer.net[-1]
    assert isinstance(last, nn.Linear)
    last.weight.div_(temperature)
    last.bias.div_(temperature)
