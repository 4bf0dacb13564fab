"""Sleep and wake-up of a CUDA engine: the scorer's weights and scores survive."""

import pytest
import torch
from places import CHECKPOINT, SCORER

from step_infer.client.llm import StepLLM
from step_infer.client.trace import Sampling

pytestmark = [
    pytest.mark.engine,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="vLLM sleeps on CUDA only"),
]

QUESTION = "618+487+934+246+799+358+171+866+529+402+755+183+690 mod 1000 = ?"


def greedy(llm):
    sampling = Sampling(temperature=0.0, top_p=1.0, top_k=0, max_tokens=1400)
    [trace] = llm.stream(llm.plan("q", QUESTION, 1, sampling, system=""))
    return trace


def test_scores_after_a_sleep_are_those_before():
    with StepLLM(
        str(CHECKPOINT),
        SCORER,
        max_model_len=1600,
        enable_sleep_mode=True,
        gpu_memory_utilization=0.1,
    ) as llm:
        before = greedy(llm)
        llm._llm.sleep(level=1)
        llm._llm.wake_up()
        after = greedy(llm)
    assert before.token_ids == after.token_ids
    assert before.boundary_positions == after.boundary_positions
    assert len(before.step_scores) > 5
    assert before.step_scores == pytest.approx(after.step_scores, abs=1e-3)
