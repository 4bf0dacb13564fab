"""Token confidence: how sure the model is of its next token (DeepConf, arXiv 2508.15260, eq. 2).

Shapes: B rows, V vocabulary, S segments of the vocabulary, K top tokens, L logits of a segment.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

TOP_TOKENS = 20
"""The likeliest tokens K that a confidence looks at; fewer where the vocabulary has fewer."""
SEGMENT = 128
"""Logits L whose maximum says whether one of them can be among the likeliest."""
_CHUNK_LOGITS = 2**25  # keeps two float32 copies below 256 MiB, whatever the batch


def token_confidence(logits_BV: Tensor) -> Tensor:
    """Return minus the mean natural-log probability of each row's top tokens, float32 [B].

    Of the model's own distribution (temperature 1), whatever the sampling; higher is surer.

    Args:
        logits_BV: the model's logits [B, V] of any float type.
    """
    if logits_BV.is_cuda:
        from step_infer.scorer.confidence_kernel import fused_confidence  # Triton: with a GPU only

        return fused_confidence(logits_BV, TOP_TOKENS, SEGMENT)
    rows = max(1, _CHUNK_LOGITS // logits_BV.shape[-1])
    return torch.cat([_confidence(chunk_BV) for chunk_BV in logits_BV.split(rows)])


def _confidence(logits_BV: Tensor) -> Tensor:
    top_BK = _top(logits_BV, min(TOP_TOKENS, logits_BV.shape[-1]))
    likeliest_B = log_softmax(logits_BV, dim=-1, dtype=torch.float32).amax(dim=-1)
    top_BK = top_BK.float()
    return top_BK.amax(dim=-1) - top_BK.mean(dim=-1) - likeliest_B


def _top(logits_BV: Tensor, k: int) -> Tensor:
    """Return each row's k largest logits [B, K].

    They lie in the k segments of the largest maxima: what lies elsewhere is no larger than any of
    these maxima. A maximum of each segment costs one pass; sorting all logits would cost many.
    """
    segments = logits_BV.shape[-1] // SEGMENT
    if segments <= k:
        return logits_BV.topk(k, dim=-1).values
    whole = segments * SEGMENT
    parts_BSL = logits_BV[:, :whole].unflatten(-1, (segments, SEGMENT))
    best_BK1 = parts_BSL.amax(dim=-1).topk(k, dim=-1).indices[..., None]
    kept_BKL = parts_BSL.gather(1, best_BK1.expand(-1, -1, SEGMENT))
    candidates_BC = torch.cat([kept_BKL.flatten(1), logits_BV[:, whole:]], dim=-1)
    return candidates_BC.topk(k, dim=-1).values
