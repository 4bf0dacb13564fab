"""KV connectors beside scoring and pruning in a real engine: vLLM's own offloading, and late frees.

Offloading stores the blocks of traces and loads them when a preempted one resumes, so that rows of
its loaded tokens are never computed again. The other connector keeps the blocks of whatever ended
for some steps. The KV cache is short: traces without a group are preempted, those with one pruned.
"""

import pytest
import torch
from direct_engine import direct_engine
from engine_precision import FLOAT32_TOLERANCE
from kv_connectors import keeping, offloading
from places import CHECKPOINT, SCORER
from server_harness import PROMPT, QUESTION

from step_infer import compat
from step_infer.doctor.live_check import DirectForward
from step_infer.scorer.network import load_scorer

pytestmark = [pytest.mark.engine, pytest.mark.oldest]

NUM_TRACES = 12
NUM_BLOCKS = 60  # the traces want some 140
CONNECTORS = {"offloading": offloading(2**28), "late frees": keeping(4)}


@pytest.fixture(scope="module")
def forward():
    return DirectForward(str(CHECKPOINT), *load_scorer(SCORER), dtype="float32")


@pytest.fixture(scope="module", params=list(CONNECTORS))
def engine(request):
    with direct_engine(
        scheduler_cls="step_infer.scheduler.StepScheduler",
        kv_transfer_config=CONNECTORS[request.param],
        num_gpu_blocks_override=NUM_BLOCKS,
        max_model_len=1024,
        max_num_batched_tokens=64,
        dtype="float32",
    ) as llm:
        yield request.param, llm


def preemptions(llm):
    return sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")


def sample(engine, forward, step):
    """Return the requests, with checked scores, and how many preemptions there were."""
    from vllm import SamplingParams

    _, llm = engine
    before = preemptions(llm)
    requests = llm.generate(
        [PROMPT.format(QUESTION)] * NUM_TRACES,
        SamplingParams(temperature=1.0, max_tokens=360, ignore_eos=True, extra_args={"step": step}),
        use_tqdm=False,
    )
    for request in requests:
        found = request.kv_transfer_params["step"]
        expected = forward.score(request.prompt_token_ids, request.outputs[0].token_ids)
        count = len(found["positions"])
        assert found["positions"] == expected.positions[:count]
        assert len(expected.positions) - count <= int(found["pruned"])
        found_S = torch.tensor(found["scores"])
        torch.testing.assert_close(
            found_S, expected.scores_S[:count], atol=FLOAT32_TOLERANCE, rtol=0
        )
    assert sum(len(request.kv_transfer_params["step"]["scores"]) for request in requests) > 30
    return requests, preemptions(llm) - before


def settle(llm):
    """Let an engine without requests make the steps that its connector still wants."""
    core = llm.llm_engine.engine_core.engine_core
    for _ in range(50):
        if not core.scheduler.requests:
            break
        core.step_fn()
    scheduler = core.scheduler
    assert not scheduler.requests
    assert compat.free_blocks(scheduler) == NUM_BLOCKS - 1
    return scheduler


def test_scores_are_right_though_blocks_were_stored_and_loaded_or_kept_back(engine, forward):
    from vllm.distributed.kv_transfer.kv_transfer_state import get_kv_transfer_group

    name, llm = engine
    requests, preempted = sample(engine, forward, {})
    assert preempted > 0, "the cache was not short: the test shows nothing"
    assert not any(request.kv_transfer_params["step"]["pruned"] for request in requests)
    if name == "offloading":
        worker = get_kv_transfer_group().connector_worker.worker
        assert worker.loaded > 0, "no block was loaded: the test shows nothing"
    settle(llm)


def test_pruning_goes_on_beside_a_connector_and_its_freed_blocks_are_counted(engine, forward):
    name, llm = engine
    totals = llm.llm_engine.engine_core.engine_core.scheduler.counters.totals
    before = totals.freed_kv_blocks
    requests, preempted = sample(engine, forward, {"group": "g"})
    stopped = [r for r in requests if r.outputs[0].stop_reason == "pruned"]
    assert 0 < len(stopped) < NUM_TRACES
    scheduler = settle(llm)
    assert scheduler.counters.totals.freed_kv_blocks - before >= len(stopped)
    if name == "offloading":
        assert preempted == 0
        return
    # Where blocks come late vLLM preempts until they do.
    for request in requests:
        both = {"step"} if request in stopped else {"step", "blocks"}
        assert request.kv_transfer_params.keys() == both
