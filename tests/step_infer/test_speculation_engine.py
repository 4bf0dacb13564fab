"""Speculative decoding in a real engine: every boundary among accepted drafts has its own score.

One engine for each drafter, with a KV cache that is short, so that traces are preempted or pruned
with drafts in them. Greedy: vLLM's CPU engine spoils what it samples from drafts at a temperature,
with the adapter or without.
"""

import itertools

import pytest
import torch
from direct_engine import direct_engine
from eagle_drafter import write_eagle
from engine_precision import DTYPE, SCORE_TOLERANCE, SHARED_GPU
from places import CHECKPOINT, SCORER
from server_harness import PROMPT

from data_gen.ledger.questions import iter_questions
from step_infer.doctor.live_check import DirectForward
from step_infer.scorer.network import load_scorer

pytestmark = [pytest.mark.engine, pytest.mark.gpu, pytest.mark.oldest]

DRAFTED = 3
DRAFTERS = {
    "ngram": {"prompt_lookup_min": 2, "prompt_lookup_max": 4},
    "draft_model": {"model": str(CHECKPOINT)},
    "eagle": {},
}
NUMBERS = itertools.count()
NUM_TRACES = 12
MAX_TOKENS = 300
NUM_BLOCKS = 200  # the traces want some 270; until they have scores, some 190


@pytest.fixture(scope="module")
def forward():
    return DirectForward(str(CHECKPOINT), *load_scorer(SCORER), dtype="float32")


@pytest.fixture(scope="module")
def confidences_of():
    """Return what gives the confidence of each of a trace's tokens by a forward pass."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()

    def confidences_of(prompt, tokens):
        with torch.inference_mode():
            logits_TV = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        return -logits_TV.float().log_softmax(-1).topk(20).values.mean(-1)

    return confidences_of


def metric(llm, name):
    return sum(m.value for m in llm.get_metrics() if m.name == f"vllm:{name}")


class Watched:
    """An engine with speculative decoding, and what it did for the last traces.

    Each question is asked again after its answer, so that the answer's boundaries are drafted too.
    """

    def __init__(self, llm):
        self.llm = llm
        self.counts = {}
        questions = itertools.islice(iter_questions("test", 0), NUM_TRACES)
        answered = self.generate([PROMPT.format(question.text) for question in questions])
        self.prompts = [
            {
                "prompt_token_ids": [
                    *r.prompt_token_ids,
                    *r.outputs[0].token_ids,
                    *r.prompt_token_ids,
                ]
            }
            for r in answered
        ]

    def generate(self, prompts, **options):
        """Return the finished requests; `last_of_steps` has their last tokens of engine steps."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, **options)
        engine, finished = self.llm.llm_engine, {}
        names = [f"{next(NUMBERS)}" for _ in prompts]
        self.last_of_steps = {name: set() for name in names}
        for name, prompt in zip(names, prompts, strict=True):
            engine.add_request(name, prompt, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                self.last_of_steps[output.request_id].add(len(output.outputs[0].token_ids) - 1)
                if output.finished:
                    finished[output.request_id] = output
        return [finished[name] for name in names]

    def sample(self, group):
        """Sample a trace of each question."""
        names = ("num_preemptions", "spec_decode_num_accepted_tokens")
        before = {name: metric(self.llm, name) for name in names}
        step = {} if group is None else {"group": group}
        requests = self.generate(self.prompts, extra_args={"step": step})
        self.counts = {name: metric(self.llm, name) - before[name] for name in names}
        self.counts["among_drafts"] = sum(
            position not in self.last_of_steps[request.request_id]
            for request in requests
            for position in request.kv_transfer_params["step"]["positions"]
        )
        return requests


@pytest.fixture(scope="module", params=list(DRAFTERS))
def engine(request, tmp_path_factory):
    drafter = DRAFTERS[request.param]
    if request.param == "eagle":
        drafter = {"model": write_eagle(tmp_path_factory.mktemp("eagle"))}
    with direct_engine(
        own_process=True,  # vLLM 0.32 starts no other engine where n-grams were looked up
        scheduler_cls="step_infer.scheduler.StepScheduler",
        additional_config={"step": {"scorer": str(SCORER), "confidence": True}},
        speculative_config={
            "method": request.param,
            "num_speculative_tokens": DRAFTED,
            **drafter,
        },
        num_gpu_blocks_override=NUM_BLOCKS,
        max_model_len=1024,
        max_num_batched_tokens=128,
        dtype=DTYPE,
        **SHARED_GPU,
    ) as llm:
        yield Watched(llm)


@pytest.fixture(scope="module")
def preempted(engine):
    """Traces without a group: scored, never pruned, so vLLM preempts and resumes them."""
    return engine.sample(None), dict(engine.counts)


@pytest.fixture(scope="module")
def pruned(engine):
    return engine.sample("g"), dict(engine.counts)


def check(request, forward, confidences_of, waiting=0):
    """Compare scores and confidences with a forward pass; `waiting`: boundaries it may lack."""
    step, tokens = request.kv_transfer_params["step"], request.outputs[0].token_ids
    expected = forward.score(request.prompt_token_ids, tokens)
    count = len(step["positions"])
    assert step["positions"] == expected.positions[:count], "a boundary was counted twice"
    assert len(expected.positions) - count <= waiting, "a boundary was missed"
    found_S = torch.tensor(step["scores"])
    torch.testing.assert_close(found_S, expected.scores_S[:count], atol=SCORE_TOLERANCE, rtol=0)
    confidence_T = confidences_of(request.prompt_token_ids, tokens)
    mean_T = confidence_T.cumsum(0) / torch.arange(1, len(tokens) + 1)
    found_S = torch.tensor(step["confidences"])
    torch.testing.assert_close(found_S, mean_T[step["positions"]], atol=0.02, rtol=0)
    assert step["confidence"] == pytest.approx(mean_T[-1].item(), abs=0.02)
    return count


def test_scores_of_accepted_drafts_equal_a_forward_pass_though_traces_were_preempted(
    preempted, forward, confidences_of
):
    requests, counts = preempted
    assert counts["num_preemptions"] > 0, "the cache was not short: the test shows nothing"
    assert counts["spec_decode_num_accepted_tokens"] > 100, "no draft was accepted"
    assert counts["among_drafts"] > 10, "no boundary was a draft: the test shows nothing"
    assert {request.outputs[0].finish_reason for request in requests} <= {"stop", "length"}
    assert sum(check(request, forward, confidences_of) for request in requests) > 40


def test_short_memory_prunes_instead_of_preempting_traces_with_drafts(
    pruned, forward, confidences_of
):
    requests, counts = pruned
    stopped = [r for r in requests if r.outputs[0].stop_reason == "pruned"]
    assert 0 < len(stopped) < NUM_TRACES
    assert counts["num_preemptions"] == 0
    assert counts["spec_decode_num_accepted_tokens"] > 100
    for request in requests:
        check(request, forward, confidences_of, waiting=int(request in stopped))


def test_drafts_leave_the_engine_empty(engine, pruned):
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    assert [metric(engine.llm, name) for name in names] == [0, 0, 0]
