"""The hook in front of compute_logits: first call of a step only, and never in the way."""

import numpy as np
import pytest
import torch

from step_infer import row_scorer
from step_infer.row_scorer import RowScorer, token_confidence
from step_infer.scorer.network import StepScorer

pytestmark = pytest.mark.gpu


def doubled(hidden_states):
    return hidden_states * 2


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    return StepScorer(8)


def test_only_the_first_call_of_a_step_is_scored(scorer):
    hook = RowScorer(doubled, scorer, capture=False)
    first, second = torch.randn(3, 8), torch.randn(5, 8)
    assert torch.equal(hook(first), first * 2)
    assert hook.take() is None
    hook.arm()
    hook(first)
    hook(second)
    scores = hook.take().result().scores_B
    expected = torch.sigmoid(scorer(first)).detach().numpy()
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert hook.take() is None


def test_a_step_without_logits_or_whose_output_was_lost_leaves_nothing_to_the_next(scorer):
    hook = RowScorer(doubled, scorer, capture=False)
    rows = torch.randn(3, 8)
    hook.arm()
    assert hook.take() is None
    hook(rows)
    assert hook.take() is None, "a step that is not scored comes after one without logits"
    hook.arm()
    hook(rows)
    hook.arm()
    assert hook.take() is None


def test_captured_rows_are_copies_with_the_same_bits(scorer):
    hook = RowScorer(doubled, scorer, capture=True)
    hidden = torch.randn(3, 8).to(torch.bfloat16)
    kept = hidden.clone()
    hook.arm()
    hook(hidden)
    hidden.zero_()  # the model runner uses its buffer again
    rows = hook.take().result()
    assert rows.dtype == "bfloat16"
    assert torch.equal(torch.from_numpy(rows.hidden_BH).view(torch.bfloat16), kept)


def test_confidences_are_those_of_the_first_calls_logits(scorer):
    hook = RowScorer(doubled, scorer, capture=False, confidence=True)
    first = torch.randn(3, 8)
    hook.arm()
    hook(first)
    hook(torch.randn(3, 8))
    rows = hook.take().result()
    assert rows.count == 3
    expected = token_confidence(first * 2)
    np.testing.assert_allclose(rows.confidences_B, expected.numpy(), rtol=1e-6)


def test_an_error_in_scoring_never_reaches_the_model(scorer):
    hook = RowScorer(doubled, scorer, capture=False, confidence=True)
    wrong = torch.randn(3, 9)
    hook.arm()
    assert torch.equal(hook(wrong), wrong * 2)
    assert hook.take().result().failed
    hook.arm()
    hook(torch.randn(3, 8))
    rows = hook.take().result()
    assert rows.failed, "the scheduler must hear of it, though one step's output may be lost"
    assert rows.count == 0


def test_scoring_is_queued_after_the_logits(scorer):
    order = []

    def logits(hidden_states):
        order.append("logits")
        return hidden_states

    hook = RowScorer(logits, scorer, capture=False)
    hook._scorer = lambda hidden: order.append("scores") or scorer(hidden)
    hook.arm()
    hook(torch.randn(3, 8))
    assert order == ["logits", "scores"]


class AsOnCuda(torch.Tensor):
    """Rows in the host's memory that say they lie on a CUDA device."""

    is_cuda = True


def test_steps_before_the_graphs_are_captured_do_not_keep_them_away(monkeypatch, scorer):
    """The V2 runner of vLLM warms up with whole steps before it captures graphs."""

    def split(net, dtype):
        return lambda rows: net(rows.as_subclass(torch.Tensor))

    captured = []
    monkeypatch.setattr(row_scorer, "SplitScorer", split)
    monkeypatch.setattr(row_scorer, "CapturedScorer", lambda *made_of: captured.append(made_of))
    hook = RowScorer(doubled, scorer, capture=False)
    hook.arm()
    hook(torch.randn(3, 8).to(torch.bfloat16).as_subclass(AsOnCuda))
    assert hook.take().result().count == 3
    hook.capture_graphs(64, torch.bfloat16)
    assert captured == [(scorer, 64, torch.bfloat16)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graph_rows", [None, 100, 20])
def test_rows_are_scored_beside_the_models_stream(graph_rows):
    """The model's stream is busy and its memory is used again: the scores are those of the rows."""
    torch.manual_seed(1)
    scorer = StepScorer(64).cuda()
    busy = torch.randn(4096, 4096, device="cuda")
    hook = RowScorer(doubled, scorer, capture=True, confidence=True)
    hook.arm()
    hook(torch.zeros(2, 64, device="cuda", dtype=torch.bfloat16))  # the V2 runner's warm-up
    assert hook.take().result().count == 2
    if graph_rows is not None:
        hook.capture_graphs(graph_rows, torch.bfloat16)
    assert (hook._captured is not None) == (graph_rows is not None)
    for _ in range(20):
        for _ in range(5):
            busy = torch.nn.functional.normalize(busy @ busy)
        rows = torch.randn(64, 64).pin_memory()
        hidden = rows.to("cuda", torch.bfloat16, non_blocking=True) * 1
        hook.arm()
        logits = hook(hidden)
        pending = hook.take()
        expected = torch.sigmoid(scorer(hidden.clone())).detach()
        confidences = token_confidence(logits.clone())
        logits.zero_()
        kept = hidden.cpu()
        del hidden, logits
        torch.full((64, 64), 9.0, device="cuda", dtype=torch.bfloat16)
        found = pending.result()
        np.testing.assert_allclose(found.scores_B, expected.cpu(), rtol=1e-4)
        np.testing.assert_allclose(found.confidences_B, confidences.cpu(), rtol=1e-4)
        assert torch.equal(torch.from_numpy(found.hidden_BH).view(torch.bfloat16), kept)
