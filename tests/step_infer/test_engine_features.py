"""Features of vLLM's engine beside the adapter: each request's scores are those of its own rows.

One engine as `vllm.LLM` starts it, with prefix caching, chunked prefill of 64 tokens a step and
priority scheduling, and one with LoRA (vLLM's CPU engine cannot give prompt logprobs beside LoRA).
Every trace is compared with a forward pass over its own tokens.
"""

import json

import pytest
import torch
from direct_engine import direct_engine
from engine_precision import FLOAT32_TOLERANCE
from places import CHECKPOINT, SCORER
from safetensors.torch import save_file
from server_harness import PROMPT, QUESTION
from vllm_log import untouched_vllm_log

from step_infer.doctor.live_check import DirectForward
from step_infer.scorer.network import load_scorer

pytestmark = pytest.mark.engine

LORA_RANK = 8


def write_lora(folder):
    """Write a random LoRA adapter of the demo model, large enough to change its states."""
    config = json.loads((CHECKPOINT / "config.json").read_text())
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    out = config["num_attention_heads"] * config["head_dim"]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors[f"{name}A.weight"] = torch.randn(LORA_RANK, hidden, generator=generator) * 0.1
        tensors[f"{name}B.weight"] = torch.randn(out, LORA_RANK, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": LORA_RANK, "lora_alpha": 16, "target_modules": ["q_proj"]}
    about |= {"task_type": "CAUSAL_LM", "bias": "none", "base_model_name_or_path": str(CHECKPOINT)}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def forward():
    return DirectForward(str(CHECKPOINT), *load_scorer(SCORER), dtype="float32")


def start_engine(**options):
    return direct_engine(
        scheduler_cls="step_infer.scheduler.StepScheduler",
        num_gpu_blocks_override=200,
        max_model_len=1024,
        max_num_batched_tokens=64,
        dtype="float32",
        **options,
    )


@pytest.fixture(scope="module")
def engine():
    with start_engine(enable_prefix_caching=True, scheduling_policy="priority") as llm:
        yield llm


@pytest.fixture(scope="module")
def lora_engine():
    with start_engine(enable_lora=True, max_lora_rank=LORA_RANK) as llm:
        yield llm


def generate(engine, count=1, priority=None, lora=None, prompts=None, **options):
    """Return the finished requests; `count` of them, or one for each prompt."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    defaults = {"temperature": 1.0, "max_tokens": 250, "extra_args": {"step": {"group": "g"}}}
    prompts = prompts or [PROMPT.format(QUESTION)] * count
    return engine.generate(
        prompts,
        SamplingParams(**defaults | options),
        use_tqdm=False,
        priority=priority,
        lora_request=LoRARequest("tiny", 1, str(lora)) if lora else None,
    )


def check(forward, request, tokens=None, at_least=1):
    """Compare a request's scores with a forward pass over the same tokens."""
    step = request.kv_transfer_params["step"]
    tokens = request.outputs[0].token_ids if tokens is None else tokens
    expected = forward.score(request.prompt_token_ids, tokens)
    assert len(step["positions"]) >= at_least
    assert step["positions"] == expected.positions
    torch.testing.assert_close(
        torch.tensor(step["scores"]), expected.scores_S, atol=FLOAT32_TOLERANCE, rtol=0
    )


def test_chunked_prefill_and_the_prefix_cache_leave_the_scores_right(engine, forward):
    for request in generate(engine, 3) + generate(engine, 2):
        check(forward, request, at_least=2)
    assert request.num_cached_tokens > 0


@pytest.mark.parametrize("others", [0, 3])
def test_prompt_logprobs_call_compute_logits_again_and_do_not_change_scores(
    engine, forward, others
):
    # Their prompts need several chunks, and the calls for them fall into others' steps.
    prompts = [PROMPT.format(QUESTION)] * others + [PROMPT.format(QUESTION) * 3]
    requests = generate(engine, prompts=prompts, prompt_logprobs=2, logprobs=3)
    assert len(requests[-1].prompt_token_ids) > 128
    for request in requests:
        assert len(request.prompt_logprobs) == len(request.prompt_token_ids)
        assert len(request.outputs[0].logprobs) == len(request.outputs[0].token_ids)
        check(forward, request)


def test_requests_with_prompt_logprobs_come_while_others_generate(engine, forward):
    from vllm import SamplingParams

    inner = engine.llm_engine
    base = {"temperature": 1.0, "max_tokens": 200, "extra_args": {"step": {}}}
    finished, late = [], False
    for number in range(3):
        inner.add_request(f"early{number}", PROMPT.format(QUESTION), SamplingParams(**base))
    while inner.has_unfinished_requests():
        done = inner.step()
        finished += [output for output in done if output.finished]
        if not late and any(len(o.outputs[0].token_ids) > 40 for o in done):
            late = True
            params = SamplingParams(**base, prompt_logprobs=1)
            inner.add_request("late", PROMPT.format(QUESTION) * 3, params)
    assert late
    assert len(finished) == 4
    for request in finished:
        check(forward, request)


def test_stop_strings_end_a_trace_with_its_scores(engine, forward):
    (request,) = generate(engine, stop=["S3"], temperature=0)
    assert request.outputs[0].finish_reason == "stop"
    assert request.outputs[0].stop_reason == "S3"
    check(forward, request, at_least=2)


def test_min_tokens_and_ignored_eos(engine, forward):
    (request,) = generate(engine, min_tokens=200, max_tokens=220)
    assert len(request.outputs[0].token_ids) >= 200
    check(forward, request)


def test_structured_output_masks_logits_not_scores(engine, forward):
    from vllm.sampling_params import StructuredOutputsParams

    grammar = StructuredOutputsParams(regex=r"(S[0-9] [0-9]{3}\n\n){6}")
    bound = generate(engine, 6, structured_outputs=grammar)
    for request in bound:
        assert request.outputs[0].text.count("\n\n") == 6
        check(forward, request, at_least=0)
    assert any(request.kv_transfer_params["step"]["scores"] for request in bound)


def test_requests_with_priorities_are_scored(engine, forward):
    requests = generate(engine, 4, priority=[3, 2, 1, 0])
    for request in requests:
        check(forward, request)


def test_children_of_one_request_are_scored_each(engine, forward):
    (request,) = generate(engine, n=3, extra_args={"step": {}})
    choices = request.kv_transfer_params["step"]["choices"]
    assert len(choices) == len(request.outputs) == 3
    for choice, output in zip(choices, request.outputs, strict=True):
        expected = forward.score(request.prompt_token_ids, output.token_ids)
        assert choice["positions"] == expected.positions
        assert (torch.tensor(choice["scores"]) - expected.scores_S).abs().max() <= FLOAT32_TOLERANCE


def test_a_lora_request_is_answered_without_scores_beside_scored_ones(
    lora_engine, forward, tmp_path
):
    lora = write_lora(tmp_path / "tiny")
    with_lora = generate(lora_engine, 1, lora=lora, max_tokens=60, temperature=0)
    plain = generate(lora_engine, 2, max_tokens=120, temperature=0)
    assert with_lora[0].outputs[0].token_ids != plain[0].outputs[0].token_ids[:60], "no effect"
    assert "without a LoRA adapter" in with_lora[0].kv_transfer_params["step"]["error"]
    for request in plain:
        check(forward, request)


def test_sleep_is_ignored_on_the_cpu_and_scores_go_on(engine, forward):
    if torch.cuda.is_available():
        pytest.skip("CUDA engines do sleep")
    inner = engine.llm_engine
    inner.sleep(1)
    inner.wake_up()
    (request,) = generate(engine)
    check(forward, request)


def test_an_engine_that_is_asked_for_boundaries_alone_reports_them_and_complains_of_nothing(caplog):
    rule = load_scorer(SCORER)[1].boundary_rule
    with (
        start_engine(additional_config={"step": {"boundary": rule.to_dict()}}) as llm,
        untouched_vllm_log(),
    ):
        (request,) = generate(llm)
    positions = request.kv_transfer_params["step"]["positions"]
    assert positions == rule.positions(request.outputs[0].token_ids)
    assert len(positions) > 2
    assert "not scored" not in caplog.text
