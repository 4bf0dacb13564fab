"""Models of other shapes in a real engine: mixtures of experts, and layers with a sliding window.

Random weights, and a KV cache that is short: traces are preempted without a group and pruned with
one. A model with both kinds of layers has a group of KV blocks for each.
"""

import shutil

import pytest
import torch
from direct_engine import direct_engine
from places import CHECKPOINT

from step_eval.replay.shapes import write_scorer
from step_infer import compat
from step_infer.doctor.live_check import DirectForward
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.network import load_scorer

pytestmark = pytest.mark.engine

SIZES = {"vocab_size": 104, "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 128}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "eos_token_id": 2}
SIZES |= {"max_position_embeddings": 2048, "pad_token_id": 0, "initializer_range": 0.2}
NUM_TRACES = 16


def experts():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    routing = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **routing))


def sliding():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    layers = ["sliding_attention", "full_attention"] * 2
    shape = {"sliding_window": 64, "layer_types": layers, "query_pre_attn_scalar": 32}
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, **shape))


SHAPES = {"experts": (experts, 1), "sliding window": (sliding, 2)}
"""What makes the model, and how many groups of KV blocks it has."""


@pytest.fixture(scope="module", params=list(SHAPES))
def engine(request, tmp_path_factory):
    """Yield an engine, its scheduler, and a forward pass of its model and scorer."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    make, groups = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("shape")
    torch.manual_seed(0)
    make().save_pretrained(folder)
    for path in CHECKPOINT.iterdir():
        if "token" in path.name:
            shutil.copy(path, folder)
    scorer = tmp_path_factory.mktemp("scorer") / "scorer.safetensors"
    rule = BoundaryRule("stride", frozenset(), None, stride=11)
    write_scorer(scorer, folder, str(folder), rule)
    # An engine that ran before in this process left its groups, and those of a dense model lack one
    # for experts.
    cleanup_dist_env_and_memory()
    options = {
        "scheduler_cls": "step_infer.scheduler.StepScheduler",
        "additional_config": {"step": {"scorer": str(scorer)}},
        "kv_cache_memory_bytes": 2**28,
        "num_gpu_blocks_override": 70 * groups,
        "max_num_seqs": NUM_TRACES,
        "max_model_len": 512,
        "max_num_batched_tokens": 128,
        "dtype": "float32",
    }
    with direct_engine(folder, **options) as llm:
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        assert len(scheduler.kv_cache_manager.coordinator.single_type_managers) == groups
        forward = DirectForward(str(folder), *load_scorer(scorer), dtype="float32")
        yield llm, scheduler, forward


def preemptions(llm):
    return sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions")


def sample(engine, step):
    """Return the requests, with checked scores; preemptions, and by how much growth was missed."""
    from vllm import SamplingParams

    llm, scheduler, forward = engine
    before = preemptions(llm)
    requests = llm.generate(
        [{"prompt_token_ids": [10 + number, *range(30, 60)]} for number in range(NUM_TRACES)],
        SamplingParams(temperature=1.0, max_tokens=300, ignore_eos=True, extra_args={"step": step}),
        use_tqdm=False,
    )
    for request in requests:
        found = request.kv_transfer_params["step"]
        expected = forward.score(request.prompt_token_ids, request.outputs[0].token_ids)
        count = len(found["positions"])
        assert count > 0
        assert found["positions"] == expected.positions[:count]
        assert len(expected.positions) - count <= int(found["pruned"])
        found_S = torch.tensor(found["scores"])
        torch.testing.assert_close(found_S, expected.scores_S[:count], atol=0.001, rtol=0)
    assert compat.free_blocks(scheduler) == scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1
    return requests, preemptions(llm) - before


def test_scores_equal_a_forward_pass_though_traces_were_preempted(engine):
    requests, preempted = sample(engine, {})
    assert preempted > 0, "the cache was not short: the test shows nothing"
    assert not any(request.kv_transfer_params["step"]["pruned"] for request in requests)


def test_short_memory_prunes_instead_of_preempting(engine):
    requests, preempted = sample(engine, {"group": "g"})
    stopped = sum(request.kv_transfer_params["step"]["pruned"] for request in requests)
    assert 0 < stopped < NUM_TRACES
    assert preempted == 0
    assert engine[1].counters.totals.freed_kv_blocks >= stopped
