"""The scorer as CUDA graphs: any number of rows, the scores of the scorer itself."""

import pytest
import torch

from step_infer.gpu_scorer import CapturedScorer, graph_sizes
from step_infer.scorer.network import StepScorer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("most", [1, 7, 8, 9, 64, 100, 256])
def test_a_graph_is_there_for_every_number_of_rows(most):
    sizes = graph_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    for rows in range(1, most + 1):
        padded = next(size for size in sizes if size >= rows)
        assert padded <= max(8, 2 * rows)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("depth", [0, 1, 2])
@torch.inference_mode()
def test_scores_of_any_number_of_rows_are_those_of_float32(depth, dtype):
    torch.manual_seed(depth)
    scorer = StepScorer(256, 128, depth).cuda()
    captured = CapturedScorer(scorer, 50, dtype)
    for rows in (50, 1, 8, 9, 33, 50, 2):
        hidden_BH = torch.randn(rows, 256, device="cuda").to(dtype)
        assert captured.fits(hidden_BH)
        found = captured.load(hidden_BH)().clone()
        expected = torch.sigmoid(scorer(hidden_BH.float()))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert not captured.fits(torch.zeros(51, 256, device="cuda", dtype=dtype))
    assert not captured.fits(torch.zeros(3, 256, device="cuda"))
