"""Tensor, pipeline and data parallelism: scores, positions and pruning.

On CUDA devices where there are two, else on the CPU engine, whose two ranks share the cores; so the
traces are few. A rank's sampled tokens may differ from those of one process (other kernels, other
rounding); what must agree are the scores of the same tokens, so each trace is compared with a
forward pass in one process.
"""

import dataclasses
from functools import partial

import pytest
import torch
from engine_precision import DTYPE, SCORE_TOLERANCE, SHARED_GPU
from places import CHECKPOINT, SCORER
from server_harness import PROMPT, QUESTION, serve

from step_infer.client.engine import CPU_BLOCK_SIZE, CUDA_BLOCK_SIZE
from step_infer.client.llm import StepLLM
from step_infer.client.trace import Sampling
from step_infer.doctor.live_check import DirectForward
from step_infer.scorer.network import load_scorer

ON_CUDA = torch.cuda.is_available()
pytestmark = [
    pytest.mark.engine,
    pytest.mark.gpu,
    pytest.mark.alone,
    pytest.mark.skipif(ON_CUDA and torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

KV_TOKENS, KV_BYTES = 1600, 2**29
# All-reduce kernels other than NCCL's need GPUs that share memory windows (in virtual machines they
# may not), and some are compiled at the first start. How ranks add up is not tested here.
PLAIN_ALL_REDUCE = {
    "disable_custom_all_reduce": True,
    "compilation_config": {"pass_config": {"fuse_allreduce_rms": False}},
}
OTHER_ALL_REDUCE = ("VLLM_ALLREDUCE_USE_FLASHINFER", "VLLM_ALLREDUCE_USE_SYMM_MEM")
KINDS = {
    "tensor": {"tensor_parallel_size": 2},
    "pipeline": {"pipeline_parallel_size": 2},
}
if ON_CUDA:
    KINDS["tensor"] |= PLAIN_ALL_REDUCE
    KINDS["pipeline"] |= {"enforce_eager": True}  # CUDA graphs come with the tensor-parallel engine
else:
    # The buffers for the states of the stage before are made in a profile run, which vLLM's CPU
    # engine leaves out in eager mode.
    KINDS["pipeline"] |= {
        "enforce_eager": False,
        "compilation_config": {"mode": 1, "backend": "eager"},
    }
QUESTIONS = [
    QUESTION,
    "430+981+819+156+921+716+635+879+292+418+196+181+756 mod 1000 = ?",
    "275+316+704+588+143+967+820+431+659+212+398+545+177 mod 1000 = ?",
]
SCORING_RANKS = {"tensor": [True, False], "pipeline": [False, True]}


@pytest.fixture(scope="module")
def forward():
    return DirectForward(str(CHECKPOINT), *load_scorer(SCORER), dtype="float32")


@pytest.fixture(scope="module", params=KINDS)
def parallel(request):
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
        environment.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # to look into the workers
        for name in OTHER_ALL_REDUCE:
            environment.setenv(name, "0")
        with StepLLM(
            str(CHECKPOINT),
            SCORER,
            kv_budget_tokens=KV_TOKENS,
            max_model_len=1600,
            max_num_seqs=8,
            **{"kv_cache_memory_bytes": KV_BYTES, **SHARED_GPU},
            dtype=DTYPE,
            distributed_executor_backend="mp",
            **KINDS[request.param],
        ) as llm:
            yield request.param, llm


def plans_of(llm, question_id, question, n, max_tokens):
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=max_tokens)
    return llm.plan(question_id, question, n, sampling, seed=0, system="")


def check(forward, prompt, tokens, positions, scores, pruned=False):
    expected = forward.score(prompt, tokens)
    assert len(scores) == len(positions) > 0
    assert len(expected.positions) - len(positions) in ((0, 1) if pruned else (0,))
    assert positions == expected.positions[: len(positions)]
    difference = (torch.tensor(scores) - expected.scores_S[: len(scores)]).abs().max()
    assert difference <= SCORE_TOLERANCE


def has_scorer(worker):
    return worker.row_scorer is not None


@pytest.mark.nightly
def test_only_the_rank_whose_output_is_read_scores(parallel):
    kind, llm = parallel
    assert llm._llm.collective_rpc(has_scorer) == SCORING_RANKS[kind]


@pytest.mark.nightly
def test_scores_over_two_ranks_equal_those_of_one_process(parallel, forward):
    llm = parallel[1]
    # Each of another question: traces of one may be alike.
    plans = [p for i, q in enumerate(QUESTIONS) for p in plans_of(llm, f"q{i}", q, 1, 300)]
    traces = list(llm.stream([dataclasses.replace(plan, group=None) for plan in plans]))
    assert len({tuple(trace.token_ids) for trace in traces}) == 3
    for trace in traces:
        assert not trace.pruned
        check(
            forward,
            trace.prompt_token_ids,
            trace.token_ids,
            trace.boundary_positions,
            trace.step_scores,
        )


def count_scored(worker):
    """Let a worker count, from now on, the rows that it hands out for each step."""
    hook = worker.row_scorer
    if hook is not None:
        take, worker.counted = type(hook).take, []

        def counted():
            rows = take(hook)
            worker.counted.append(0 if rows is None else rows.result().count)
            return rows

        hook.take = counted


def counted(worker):
    """Stop counting, and return the counts: one for each step."""
    if worker.row_scorer is not None:
        del worker.row_scorer.take
    return vars(worker).pop("counted", None)


@pytest.mark.nightly
def test_traces_that_join_others_are_scored_from_then_on_over_two_ranks(parallel, forward):
    from vllm import SamplingParams

    llm = parallel[1]
    inner, prompt = llm._llm.llm_engine, PROMPT.format(QUESTION)
    llm._llm.collective_rpc(count_scored)
    others = SamplingParams(temperature=1.0, max_tokens=300, ignore_eos=True)
    opted = SamplingParams(temperature=1.0, max_tokens=150, extra_args={"step": {}})
    ended, joined = [], False
    inner.add_request("other", prompt, others)
    while inner.has_unfinished_requests():
        done = inner.step()
        ended += [request for request in done if request.finished]
        if not joined and any(len(request.outputs[0].token_ids) > 30 for request in done):
            joined = True
            for number in range(3):
                inner.add_request(f"trace{number}", prompt, opted)
    [steps] = filter(None, llm._llm.collective_rpc(counted))
    assert len(ended) == 4
    for request in ended:
        if request.request_id == "other":
            assert request.kv_transfer_params is None
        else:
            tokens, step = request.outputs[0].token_ids, request.kv_transfer_params["step"]
            check(forward, request.prompt_token_ids, tokens, step["positions"], step["scores"])
    first = next(number for number, rows in enumerate(steps) if rows)
    assert first > 30, "nobody had asked for scores"
    assert 0 < sum(map(bool, steps)) < len(steps) - 80, "nobody asks any more"


def test_short_memory_prunes_over_two_ranks(parallel, forward):
    llm = parallel[1]
    before = llm.stats().preemptions
    traces = list(llm.stream(plans_of(llm, "q", QUESTION, 6, 700)))
    assert 0 < sum(trace.pruned for trace in traces) < 6
    assert llm.stats().preemptions == before
    for trace in traces:
        check(
            forward,
            trace.prompt_token_ids,
            trace.token_ids,
            trace.boundary_positions,
            trace.step_scores,
            trace.pruned,
        )
    stats = llm.stats()
    assert (stats.running, stats.waiting) == (0, 0)


def test_two_engines_behind_one_server_score_and_prune(tmp_path, forward, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    block_size = CUDA_BLOCK_SIZE if ON_CUDA else CPU_BLOCK_SIZE
    kv_blocks = KV_TOKENS // block_size + 1
    flags = ["--data-parallel-size", "2", "--dtype", DTYPE]
    if ON_CUDA:
        flags += ["--kv-cache-memory-bytes", str(KV_BYTES), "--gpu-memory-utilization", "0.3"]
        flags += ["--enforce-eager"]
    with serve(tmp_path, kv_blocks, *flags) as server:

        def ask(number):
            return server.chat("shared", max_tokens=500, seed=number)

        responses = server.answers_at_once(*(partial(ask, number) for number in range(12)))
        engines = {
            line.partition('engine="')[2].partition('"')[0]
            for line in server.metrics()
            if line.startswith("vllm:generation_tokens_total{") and not line.endswith(" 0.0")
        }
        assert engines == {"0", "1"}, "all requests went to one engine"
        assert server.gauge("num_preemptions_total") == 0
        for rank in ("0", "1"):  # both engines step once more, and their last counts come
            server.chat(None, max_tokens=20, extra_headers={"X-data-parallel-rank": rank})
        metrics = server.step_metrics()
        events = server.settled_events(engines=2)
    pruned = [r.kv_transfer_params["step"]["pruned"] for r in responses]
    assert 0 < sum(pruned) < len(pruned)
    assert metrics["step_pruned_total"] == sum(pruned)
    assert [e["event"] for e in events].count("prune") == sum(pruned)
    assert {event["engine"] for event in events} == {0, 1}
    scored = [metrics[f'step_score_count{{engine="{n}",model_name="demo"}}'] for n in (0, 1)]
    assert min(scored) > 0
    steps = (response.kv_transfer_params["step"] for response in responses)
    assert sum(scored) == sum(len(step["scores"]) for step in steps)
    for response in responses:
        step = response.kv_transfer_params["step"]
        if step["scores"]:
            check(
                forward,
                response.prompt_token_ids,
                response.choices[0].token_ids,
                step["positions"],
                step["scores"],
                step["pruned"],
            )
