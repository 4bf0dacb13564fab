"""The adapter in a real vLLM engine: scores against a Hugging Face forward, and pruning.

One engine serves all tests: a KV cache far too small for the traces, so that they are preempted or
pruned, a token budget so small that prompts and resumed traces are computed in chunks, and the
prefix cache on, as vLLM has it by default. Without seeds: the CPU engine cannot have both.
"""

import dataclasses
import logging
import os
import warnings

import pytest
import torch
from engine_precision import DTYPE, SCORE_TOLERANCE, SHARED_GPU
from places import CHECKPOINT, SCORER
from settled_events import mark_by, read_settled_events

from step_infer.client.engine import engine_arguments, leave_a_core
from step_infer.client.llm import StepLLM
from step_infer.client.trace import Sampling
from step_infer.errors import InputError
from step_infer.scorer.network import load_scorer

pytestmark = [pytest.mark.engine, pytest.mark.gpu, pytest.mark.oldest]

QUESTIONS = [
    "618+487+934+246+799+358+171+866+529+402+755+183+690 mod 1000 = ?",
    "905+377+482+659+768+190+543+825+314+968+271+856+437 mod 1000 = ?",
]
SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=1400)
KV_BUDGET = 3072


def process_state():
    """Return what a later engine of this process would log: variables and vLLM's own level."""
    names = ("VLLM_LOGGING_LEVEL", "PYTHONWARNINGS", "TORCH_CPP_LOG_LEVEL")
    return [os.environ.get(name) for name in names], logging.getLogger("vllm").level


@pytest.fixture(scope="module")
def state_before_start():
    import vllm.logger  # noqa: F401 -- sets the level once, when it is first imported

    logger = logging.getLogger("vllm")
    before = logger.level
    logger.setLevel("WARNING")
    yield process_state()
    logger.setLevel(before)


@pytest.fixture(scope="module")
def event_log(tmp_path_factory):
    return tmp_path_factory.mktemp("adapter") / "events.jsonl"


@pytest.fixture(scope="module")
def llm(event_log, state_before_start):
    with StepLLM(
        str(CHECKPOINT),
        SCORER,
        kv_budget_tokens=KV_BUDGET,
        max_model_len=1600,
        enable_chunked_prefill=True,
        max_num_batched_tokens=64,
        max_num_seqs=32,
        dtype=DTYPE,
        **SHARED_GPU,
        capture=True,
        confidence=True,
        event_log=event_log,
    ) as engine:
        yield engine
        short, long = engine.plan("last", QUESTIONS[0], 2, SAMPLING, seed=None, system="")
        short = dataclasses.replace(short, sampling=Sampling(max_tokens=1))
        reader = engine.stream([short, long])
        assert next(reader).trace_id == 0
    calls_after_close(engine, reader)


def calls_after_close(engine, reader):
    # At the end of the process, when a reader may be dropped, vLLM's modules are gone already.
    aborted = []
    engine._engine.abort_request = aborted.append
    reader.close()
    assert aborted == []
    with pytest.raises(InputError, match="a running engine, found one that was closed"):
        engine.generate(QUESTIONS[:1], n=1, progress=False)


@pytest.fixture(scope="module")
def state_after_start(llm):
    return process_state()


def test_an_engines_start_leaves_the_process_as_it_was(state_before_start, state_after_start):
    assert state_after_start == state_before_start


def test_an_engine_in_this_process_leaves_a_core_to_others_until_it_ends(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    before = torch.get_num_threads()
    on_cuda = torch.cuda.is_available()
    try:
        torch.set_num_threads(4)
        for arguments, threads in (({}, 4 if on_cuda else 3), ({"tensor_parallel_size": 2}, 4)):
            give_back = leave_a_core(arguments)
            assert torch.get_num_threads() == threads
            give_back()
            assert torch.get_num_threads() == 4
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        leave_a_core({})
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_a_kv_budget_is_a_whole_number():
    with pytest.raises(InputError, match="in whole tokens, found '6000'"):
        engine_arguments(str(CHECKPOINT), {}, "6000")


def plans(llm, n, grouped):
    orders = []
    for number, question in enumerate(QUESTIONS):
        for order in llm.plan(f"q{number}", question, n, SAMPLING, seed=None, system=""):
            group = order.group if grouped else None
            orders.append(dataclasses.replace(order, group=group))
    return orders


@pytest.fixture(scope="module")
def preempted(llm):
    """Traces without a group: scored, never pruned, so vLLM preempts and resumes them."""
    before = llm.stats().preemptions
    traces = list(llm.stream(plans(llm, 8, grouped=False)))
    return traces, llm.stats().preemptions - before


@pytest.fixture(scope="module")
def pruned(llm):
    before = llm.stats().preemptions
    traces = list(llm.stream(plans(llm, 8, grouped=True)))
    return traces, llm.stats().preemptions - before


def reference(traces):
    """Return positions, states, scores and mean confidences of a Hugging Face forward."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    scorer, card = load_scorer(SCORER)
    for trace in traces:
        ids = torch.tensor([trace.prompt_token_ids + trace.token_ids])
        with torch.inference_mode():
            hidden_TH = model.model(ids).last_hidden_state[0]
            top_TK = model.lm_head(hidden_TH).float().log_softmax(-1).topk(20).values
        confidence_T = -top_TK.mean(-1)[len(trace.prompt_token_ids) - 1 : -1]
        mean_T = confidence_T.cumsum(0) / torch.arange(1, len(confidence_T) + 1)
        positions = card.boundary_rule.positions(trace.token_ids)
        rows = torch.tensor(positions, dtype=torch.long) + len(trace.prompt_token_ids)
        with torch.inference_mode():
            yield positions, hidden_TH[rows], torch.sigmoid(scorer(hidden_TH[rows])), mean_T


def check_against_reference(traces):
    for trace, expected in zip(traces, reference(traces), strict=True):
        positions, hidden_SH, scores_S, mean_T = expected
        assert trace.boundary_positions == positions, "a boundary was missed or counted twice"
        found_S = torch.tensor(trace.step_scores)
        assert found_S.shape == scores_S.shape
        assert (found_S - scores_S).abs().max() <= SCORE_TOLERANCE
        assert trace.hidden_SH.shape == hidden_SH.shape
        error = (trace.hidden_SH.float() - hidden_SH.float()).norm() / hidden_SH.float().norm()
        assert error < 0.02
        confidences_S = torch.tensor(trace.step_confidences)
        torch.testing.assert_close(confidences_S, mean_T[positions], atol=0.02, rtol=0)
        assert trace.mean_token_confidence == pytest.approx(mean_T[-1].item(), abs=0.02)


def test_scores_equal_a_forward_pass_though_traces_were_preempted_and_resumed(preempted):
    traces, preemptions = preempted
    assert preemptions > 0, "the cache was not short: the test shows nothing"
    assert len(traces) == 16
    assert sum(len(trace.boundary_positions) for trace in traces) > 100
    check_against_reference(traces)


def test_without_a_group_nothing_is_pruned(preempted):
    assert {trace.finish_reason for trace in preempted[0]} <= {"stop", "length"}


def test_short_memory_prunes_instead_of_preempting(pruned):
    traces, preemptions = pruned
    stopped = [trace for trace in traces if trace.pruned]
    assert stopped
    assert preemptions == 0
    assert all(trace.answer is None for trace in stopped)
    assert all(trace.step_scores for trace in stopped)
    for name in ("q0", "q1"):
        assert any(trace.question_id == name and not trace.pruned for trace in traces)


def test_scores_of_pruned_and_surviving_traces_equal_a_forward_pass(pruned):
    # A pruned trace's last boundary may still wait for its row: then the engine has one less.
    traces = pruned[0]
    survivors = [trace for trace in traces if not trace.pruned]
    check_against_reference(survivors)
    for trace, (positions, _, scores_S, mean_T) in zip(traces, reference(traces), strict=True):
        count = len(trace.step_scores)
        assert trace.boundary_positions == positions[:count]
        assert len(positions) - count <= (1 if trace.pruned else 0)
        assert (torch.tensor(trace.step_scores) - scores_S[:count]).abs().max() <= SCORE_TOLERANCE
        confidences_S = torch.tensor(trace.step_confidences)
        torch.testing.assert_close(confidences_S, mean_T[positions[:count]], atol=0.02, rtol=0)
        assert trace.mean_token_confidence == pytest.approx(mean_T[-1].item(), abs=0.02)


def test_the_event_log_has_a_line_for_each_trace(llm, event_log, preempted, pruned):
    events, left_out = read_settled_events([event_log], mark_by(llm))
    assert left_out == 0
    for traces, in_group in ((preempted[0], False), (pruned[0], True)):
        lines = [event for event in events if (event["group"] is not None) == in_group]
        expected = sorted((t.pruned, len(t.token_ids), len(t.step_scores)) for t in traces)
        found = ((e["event"] == "prune", e["tokens"], e["steps"]) for e in lines[: len(traces)])
        assert sorted(found) == expected
    assert max(event["kv_use"] for event in events) > 0.5


def test_the_engine_is_empty_afterwards(llm, pruned):
    stats = llm.stats()
    assert (stats.running, stats.waiting) == (0, 0)


def test_generate_votes_over_the_survivors(llm):
    [result] = llm.generate(
        QUESTIONS[:1], n=8, sampling=SAMPLING, seed=None, system="", progress=False
    )
    assert [trace.trace_id for trace in result.traces] == list(range(8))
    voters = {index for _, _, members in result.vote.groups for index in members}
    assert voters == {t.trace_id for t in result.traces if t.answer is not None}
    assert result.answer == result.vote.groups[0][0]
    weights = [t.trace_score for t in result.traces if t.answer == result.answer]
    assert result.vote.groups[0][1] == pytest.approx(sum(weights))


def asking(llm, **options):
    """Return the order for one short trace with other options."""
    sampling = dataclasses.replace(SAMPLING, max_tokens=8)
    (order,) = llm.plan("asking", QUESTIONS[0], 1, sampling, seed=None, system="")
    return dataclasses.replace(order, options=options)


def test_an_order_with_an_option_that_is_none_is_refused_before_it_is_sampled(llm):
    before = llm.stats().generated_tokens
    with pytest.raises(InputError, match="Expected a step option out of .*, found 'windw'"):
        list(llm.stream([asking(llm, windw=5)]))
    with pytest.raises(InputError, match="min_keep a whole number >= 1, found 0"):
        list(llm.stream([asking(llm, min_keep=0)]))
    assert llm.stats().generated_tokens == before


def test_a_trace_that_the_engine_does_not_score_is_told_of_once(llm, monkeypatch):
    monkeypatch.setattr(llm, "_checks_options", False)  # as with a scheduler of the user's own
    orders = [dataclasses.replace(asking(llm, windw=5), trace_id=n) for n in range(3)]
    with pytest.warns(UserWarning, match="Trace asking/. has no scores. Expected a step option"):
        traces = list(llm.stream(orders))
    assert [trace.step_scores for trace in traces] == [[], [], []]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(llm.stream(orders))) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n": 2.5}, "at least 1 trace a question, found 2.5"),
        ({"n": "4"}, "found '4'"),
        ({"questions": [QUESTIONS[0], None]}, "a text as question 1, found None"),
        ({"questions": [QUESTIONS[0], "1+\ud800"]}, r"lone surrogates, found '\\ud800'"),
        ({"questions": [QUESTIONS[0], "1+" * 2000]}, "shorter than the context .* question 1"),
        ({"sampling": {"top_k": 0}}, "Expected a Sampling, found {'top_k': 0}"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_sampled(llm, changed, message):
    before = llm.stats().generated_tokens
    order = {"questions": QUESTIONS[:1], "n": 1, "sampling": SAMPLING, "seed": None}
    with pytest.raises(InputError, match=message):
        llm.generate(**{**order, "system": "", "progress": False, **changed})
    assert llm.stats().generated_tokens == before
