"""The scorer in 16-bit halves: its scores are those of float32."""

import pytest
import torch

from step_infer.gpu_scorer import SplitScorer, split
from step_infer.scorer.network import StepScorer

pytestmark = pytest.mark.gpu

HALVES = [torch.bfloat16, torch.float16]
DEPTHS = [0, 1, 2]


def make(depth, dtype, device, hidden_size=256, width=128):
    torch.manual_seed(depth)
    scorer = StepScorer(hidden_size, width, depth).to(device)
    # As of a trained scorer: weights of very different sizes, and states with a few huge numbers.
    scorer.net[0].weight.data.mul_(torch.rand(hidden_size, device=device) * 8)
    hidden_BH = torch.randn(64, hidden_size, device=device)
    hidden_BH[:, :3] *= 50
    return scorer, hidden_BH.to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_halves_of_a_weight_add_up_to_it(dtype):
    weight = torch.randn(1000) * torch.logspace(-3, 1, 1000)
    high, low = split(weight, dtype)
    assert high.dtype == low.dtype == dtype
    error = (high.double() + low.double() - weight.double()).abs()
    assert (error <= weight.double().abs() / 65_000 + 6e-8).all()
    assert (high.double() - weight.double()).abs().max() > 100 * error.max(), "one half does it"


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dtype", HALVES)
@torch.inference_mode()
def test_scores_are_those_of_float32(monkeypatch, dtype, depth):
    scorer, hidden_BH = make(depth, dtype, "cpu")
    expected = torch.sigmoid(scorer(hidden_BH))
    product = lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype)  # noqa: E731
    monkeypatch.setattr(torch, "mm", product)  # torch has the mixed one for CUDA only
    found = torch.sigmoid(SplitScorer(scorer, dtype)(hidden_BH))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    rounded = StepScorer(256, 128, depth)
    rounded.load_state_dict(scorer.state_dict())
    rounded.net[0].weight.data = scorer.net[0].weight.to(dtype).float()
    distance = (torch.sigmoid(rounded(hidden_BH)) - expected).abs().max()
    assert distance > 4 * (found - expected).abs().max(), "weights of 16 bits would do"


@pytest.mark.parametrize("depth", DEPTHS)
@torch.inference_mode()
def test_torch_has_the_product_that_is_needed(depth):
    scorer, hidden_BH = make(depth, torch.bfloat16, "meta")
    found = SplitScorer(scorer, torch.bfloat16)(hidden_BH)
    assert (found.shape, found.dtype) == ((64,), torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dtype", HALVES)
@torch.inference_mode()
def test_scores_on_a_gpu_are_those_of_float32_and_the_same_each_time(dtype, depth):
    scorer, hidden_BH = make(depth, dtype, "cuda", 4096, 512)
    expected = torch.sigmoid(scorer.double().net(hidden_BH.double()).squeeze(-1))
    half = SplitScorer(scorer.float(), dtype)
    found = torch.sigmoid(half(hidden_BH))
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=0)
    assert torch.equal(found, torch.sigmoid(half(hidden_BH)))
