"""Token confidence: minus the mean log-probability of the top tokens."""

import math

import pytest
import torch

from step_infer import row_scorer as confidence
from step_infer.row_scorer import token_confidence


def reference(logits_BV):
    """DeepConf (arXiv 2508.15260), eq. 2, one row at a time in double precision."""
    found = []
    for row_V in logits_BV.double().tolist():
        total = math.log(sum(math.exp(x) for x in row_V))
        top = sorted(row_V, reverse=True)[:20]
        found.append(-sum(x - total for x in top) / len(top))
    return torch.tensor(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [7, 20, 500, 128 * 20, 128 * 21 + 5, 20_000])
def test_confidence_is_minus_the_mean_log_probability_of_the_top_tokens(dtype, vocabulary):
    logits_BV = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(0)).to(dtype) * 5
    found_B = token_confidence(logits_BV)
    assert found_B.dtype == torch.float32
    torch.testing.assert_close(found_B, reference(logits_BV).float(), rtol=1e-5, atol=1e-5)


def test_the_top_tokens_are_found_wherever_they_lie():
    logits_BV = torch.full((4, 128 * 40 + 9), -5.0)
    logits_BV[0, :20] = torch.arange(20.0)  # in one segment
    logits_BV[1, -20:] = torch.arange(20.0)  # in the rest behind the last segment, and before it
    logits_BV[2, ::200] = 1.0  # more ties than there are top tokens
    logits_BV[3, 7] = -math.inf
    torch.testing.assert_close(token_confidence(logits_BV), reference(logits_BV).float())
    logits_BV[0, 3000] = math.nan
    assert token_confidence(logits_BV).isnan().tolist() == [True, False, False, False]


def test_tokens_all_alike_give_the_logarithm_of_the_vocabulary():
    assert token_confidence(torch.zeros(1, 50)).item() == pytest.approx(math.log(50))


def test_a_batch_in_chunks_gives_what_whole_batches_give(monkeypatch):
    logits_BV = torch.randn(9, 40)
    whole_B = token_confidence(logits_BV)
    monkeypatch.setattr(confidence, "_CHUNK_LOGITS", 80)
    torch.testing.assert_close(token_confidence(logits_BV), whole_B)
