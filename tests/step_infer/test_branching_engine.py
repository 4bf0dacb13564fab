"""Branches in a real engine: what a child inherits, and what it is charged for."""

import random
from dataclasses import replace

import pytest
from engine_precision import ANY_BATCH
from places import CHECKPOINT, SCORER
from settled_events import mark_by, read_settled_events

from step_infer.client.branching import Branching
from step_infer.client.llm import StepLLM
from step_infer.client.trace import Inherited, Sampling, branch_seed
from step_infer.errors import InputError
from step_infer.scorer.aggregate import AGGREGATORS

pytestmark = pytest.mark.engine

SAMPLING = Sampling(1.0, 1.0, 0)
QUESTION = "What is 776 + 911 + 302 + 518 + 127 + 644 modulo 1000?"
MAX_MODEL_LEN = 2048
N = 16


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "events.jsonl"


@pytest.fixture(scope="module")
def llm(log):
    with StepLLM(
        str(CHECKPOINT),
        str(SCORER),
        max_model_len=MAX_MODEL_LEN,
        kv_budget_tokens=5 * 1024,
        event_log=log,
        **ANY_BATCH,
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def result(llm):
    """Return a question's result, and what the engine generated for it."""
    before = llm.stats().generated_tokens
    (result,) = llm.generate(
        [QUESTION],
        N,
        SAMPLING,
        system="",
        progress=False,
        sampler=Branching(min_tokens=64).stream,
        stop_rule="never",
    )
    return result, llm.stats().generated_tokens - before


def family(result):
    by_id = {trace.trace_id: trace for trace in result.traces}
    children = [trace for trace in result.traces if trace.parent is not None]
    assert children, "nothing was branched: the test says nothing"
    return by_id, children


def test_children_take_the_places_of_stopped_traces(result, llm):
    result, _ = result
    by_id, children = family(result)
    stopped = sum(trace.pruned for trace in result.traces)
    assert 0 < len(children) <= stopped
    assert sorted(by_id) == list(range(N + len(children)))
    assert {trace.trace_id for trace in children} == set(range(N, N + len(children)))
    for trace in children:
        parent = by_id[trace.parent]
        siblings = [child for child in children if child.parent == trace.parent]
        assert len(siblings) <= Branching().max_children
        assert parent.own_tokens >= 64
        seeds = {branch_seed(parent.seed, number) for number in range(len(siblings))}
        assert trace.seed in seeds


def test_a_child_begins_with_its_parents_tokens_scores_and_boundaries(result, llm):
    result, _ = result
    by_id, children = family(result)
    aggregate = AGGREGATORS[llm.card.aggregator]
    for trace in children:
        parent, point = by_id[trace.parent], trace.inherited
        assert trace.token_ids[:point] == parent.token_ids[:point]
        assert point - 1 in parent.boundary_positions
        count = parent.boundary_positions.index(point - 1) + 1
        assert trace.boundary_positions[:count] == parent.boundary_positions[:count]
        assert trace.step_scores[:count] == parent.step_scores[:count]
        assert trace.boundary_positions == llm.rule.positions(trace.token_ids)
        assert trace.trace_score == pytest.approx(aggregate(trace.step_scores))
        assert trace.text.startswith(llm.tokenizer.decode(trace.token_ids[:point]))
        assert trace.prompt_token_ids == parent.prompt_token_ids
        assert len(trace.prompt_token_ids) + len(trace.token_ids) <= MAX_MODEL_LEN


def test_inherited_tokens_are_counted_once(result):
    result, generated = result
    _, children = family(result)
    own = sum(trace.own_tokens for trace in result.traces)
    with_twice = sum(len(trace.token_ids) for trace in result.traces)
    assert own < with_twice
    # A trace that was pruned had a token or two in flight, which came to nobody.
    assert own <= generated <= own + 3 * len(result.traces)


def test_events_name_a_parent_as_its_own_event_does(result, log, llm):
    result, _ = result
    _, children = family(result)
    events, _ = read_settled_events([log], mark_by(llm))
    by_request = {event["request"]: event for event in events}
    # vLLM adds to each name what makes it unique.
    traces = {request.rpartition("-")[0]: event for request, event in by_request.items()}
    for trace in children:
        event = traces[f"{trace.question_id}/{trace.trace_id}"]
        parent = by_request[event["parent"]]
        assert parent is traces[f"{trace.question_id}/{trace.parent}"]
        assert event["inherited"] == trace.inherited
        # Of a pruned trace the engine had a token or two that came to nobody.
        assert 0 <= event["tokens"] - len(trace.token_ids) <= 3


def test_most_of_a_prefix_is_found_in_the_cache(result, llm):
    result, _ = result
    _, children = family(result)
    for trace in children:
        whole = len(trace.prompt_token_ids) + trace.inherited
        assert trace.cached_tokens <= whole - 1
        assert trace.cached_tokens % llm.block_size == 0
    found = sum(trace.cached_tokens for trace in children)
    whole = sum(len(trace.prompt_token_ids) + trace.inherited for trace in children)
    assert found > 0.5 * whole


def branch(llm, plan, trace, count, **changes):
    """Return an order that goes on from a trace's boundary."""
    point = trace.boundary_positions[count - 1] + 1
    inherited = Inherited(
        trace.trace_id, tuple(trace.token_ids[:point]), tuple(trace.step_scores[:count])
    )
    return replace(plan, trace_id=99, inherited=replace(inherited, **changes))


@pytest.fixture(scope="module")
def whole(llm):
    """Return a greedy trace that ran to its end, with its order."""
    plan = llm.plan("greedy", QUESTION, 1, Sampling(0.0), system="")[0]
    (trace,) = llm.stream([plan])
    assert len(trace.boundary_positions) > 3
    return plan, trace


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_greedy_branch_is_its_parent_again(llm, whole, count):
    plan, trace = whole
    (child,) = llm.stream([branch(llm, plan, trace, count)])
    assert child.token_ids == trace.token_ids
    assert child.text == trace.text
    assert child.finish_reason == trace.finish_reason
    assert child.boundary_positions == trace.boundary_positions
    assert child.step_scores == pytest.approx(trace.step_scores, abs=2e-3)
    assert child.trace_score == pytest.approx(trace.trace_score, abs=2e-3)
    assert child.answer == trace.answer


def test_a_branch_ends_where_its_parent_would_for_its_length(llm, whole):
    plan, trace = whole
    point = trace.boundary_positions[0] + 1
    plan = replace(plan, sampling=Sampling(0.0, max_tokens=point + 7))
    (child,) = llm.stream([branch(llm, plan, trace, 1)])
    assert child.finish_reason == "length"
    assert child.token_ids == trace.token_ids[: point + 7]
    assert child.own_tokens == 7


def test_a_history_that_does_not_fit_is_refused_and_the_trace_goes_on(llm, whole):
    plan, trace = whole
    with pytest.warns(UserWarning, match="Expected step option inherit with a score"):
        (child,) = llm.stream([branch(llm, plan, trace, 2, scores=(0.5,))])
    assert child.token_ids == trace.token_ids
    assert child.step_scores == []


def test_a_thousand_branch_points_leave_nothing_behind(llm, whole):
    plan, trace = whole
    rng = random.Random(0)
    orders = []
    for number in range(1000):
        count = rng.randint(1, len(trace.boundary_positions))
        order = branch(llm, plan, trace, count)
        point = len(order.inherited.token_ids)
        sampling = Sampling(1.0, 1.0, 0, max_tokens=point + rng.randint(1, 3))
        orders.append(replace(order, trace_id=100 + number, sampling=sampling))
    ended = list(llm.stream(orders, max_in_flight=64))
    assert len(ended) == 1000
    assert sum(trace.own_tokens for trace in ended) <= 3000
    (again,) = llm.stream([plan])
    assert again.token_ids == trace.token_ids
    assert llm.stats().kv_use == 0.0
    core = llm._engine.engine_core.engine_core
    assert core.scheduler.requests == {}
    assert core.scheduler.live.traces == core.scheduler.live.kept == {}


def test_an_engine_without_prefix_caching_is_refused(llm, monkeypatch):
    monkeypatch.setattr(llm, "prefix_caching", False)
    with pytest.raises(InputError, match="found one without prefix caching"):
        llm.generate([QUESTION], 2, sampler=Branching().stream, progress=False)
