"""Token confidence: minus the mean log-probability of the top tokens.

On a GPU it is two Triton kernels. Elsewhere a second run of these tests, started by one of them,
looks at those in Triton's interpreter.
"""

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch

from step_infer.scorer import token_confidence as confidence

pytestmark = pytest.mark.gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def token_confidence(logits_BV):
    if INTERPRETED:
        from step_infer.scorer.confidence_kernel import fused_confidence

        return fused_confidence(logits_BV, confidence.TOP_TOKENS, confidence.SEGMENT)
    return confidence.token_confidence(logits_BV.to(DEVICE)).cpu()


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="this is the second run, or a GPU's")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_the_gpus_kernels_pass_these_tests_in_tritons_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" in done.stdout
    assert " passed" in done.stdout


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
    logits_BV[3] = -math.inf
    logits_BV[3, 130:160] = torch.arange(30.0)  # fewer segments with a finite logit than top tokens
    torch.testing.assert_close(token_confidence(logits_BV), reference(logits_BV).float())
    logits_BV[0, 3000] = math.nan
    assert token_confidence(logits_BV).isnan().tolist() == [True, False, False, False]


def test_tokens_all_alike_give_the_logarithm_of_the_vocabulary():
    assert token_confidence(torch.zeros(1, 50)).item() == pytest.approx(math.log(50))


def test_rows_may_lie_apart_and_there_may_be_none():
    logits_BV = torch.randn(4, 600)[:, 8:300]
    torch.testing.assert_close(token_confidence(logits_BV), reference(logits_BV).float())
    logits_BV = torch.randn(4, 600)[:, ::2]
    torch.testing.assert_close(token_confidence(logits_BV), reference(logits_BV).float())
    assert token_confidence(torch.zeros(0, 50)).shape == (0,)


@pytest.mark.skipif(not INTERPRETED and DEVICE == "cpu", reason="needs the kernels")
@pytest.mark.parametrize("kernel", ["_reduce_chunks", "_confidence"])
def test_the_kernels_of_one_row_serve_for_any_number_of_rows(monkeypatch, kernel):
    from step_infer.scorer import confidence_kernel

    compiled, addresses = getattr(confidence_kernel, kernel), set()

    class Watched:
        def __getitem__(self, grid):
            def launch(*args):
                # Triton has a kernel for those that 16 divides, and one for others.
                addresses.update(a.data_ptr() % 16 for a in args if torch.is_tensor(a))
                return compiled[grid](*args)

            return launch

    monkeypatch.setattr(confidence_kernel, kernel, Watched())
    for rows in (1, 2, 3):
        token_confidence(torch.randn(rows, 10_000))
    assert addresses == {0}


def test_a_batch_in_chunks_gives_what_whole_batches_give(monkeypatch):
    logits_BV = torch.randn(9, 40)
    whole_B = token_confidence(logits_BV)
    monkeypatch.setattr(confidence, "_CHUNK_LOGITS", 80)
    torch.testing.assert_close(token_confidence(logits_BV), whole_B)
