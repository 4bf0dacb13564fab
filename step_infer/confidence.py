"""Token confidence: how sure a model is of its next token (DeepConf, arXiv 2508.15260, eq. 2)."""

import torch
from torch import Tensor

TOP_TOKENS = 20
"""The likeliest tokens k that a confidence looks at; fewer where the vocabulary has fewer."""
_CHUNK_LOGITS = 2**24  # keeps the float32 copy below 64 MiB, whatever the batch


def token_confidence(logits_BV: Tensor) -> Tensor:
    """Return minus the mean natural-log probability of each row's top tokens, float32 [B].

    Of the model's own distribution (temperature 1), whatever the sampling; higher is surer.

    Args:
        logits_BV: the model's logits [B, V] of any float type.
    """
    rows = max(1, _CHUNK_LOGITS // logits_BV.shape[-1])
    return torch.cat([_confidence(chunk_BV.float()) for chunk_BV in logits_BV.split(rows)])


def _confidence(logits_BV: Tensor) -> Tensor:
    top_BK = logits_BV.topk(min(TOP_TOKENS, logits_BV.shape[-1]), dim=-1).values
    return logits_BV.logsumexp(dim=-1) - top_BK.mean(dim=-1)
