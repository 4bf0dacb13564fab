"""Requests held back: taken out of vLLM's own queues for one call, and put back in their places."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_harness import WORD, Script
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue

from step_infer.compat import held_back

pytestmark = pytest.mark.oldest

PLANS = st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=12)


def make_queue(policy, plan):
    queue = create_request_queue(policy)
    requests = []
    for number, (_, priority) in enumerate(plan):
        script = Script(f"r{number}", (WORD,), (WORD,), priority=priority)
        requests.append(script.request(float(number)))
        queue.add_request(requests[-1])
    return queue, {r.request_id for r, (held, _) in zip(requests, plan, strict=True) if held}


@pytest.mark.parametrize("policy", list(SchedulingPolicy))
@given(plan=PLANS, admitted=st.integers(0, 12), preempted=st.integers(0, 2))
def test_held_requests_are_out_of_reach_and_keep_their_places(policy, plan, admitted, preempted):
    queue, held = make_queue(policy, plan)
    before = [request.request_id for request in queue]
    with held_back([queue], lambda request: request.request_id in held) as count:
        assert count == len(held)
        inside = [request.request_id for request in queue]
        assert inside == [name for name in before if name not in held]
        gone = {queue.pop_request().request_id for _ in range(min(admitted, len(queue)))}
        for number in range(preempted):
            script = Script(f"p{number}", (WORD,), (WORD,), priority=-1)
            queue.prepend_request(script.request(float(-number)))
    returned = [f"p{number}" for number in reversed(range(preempted))]
    assert [r.request_id for r in queue] == returned + [n for n in before if n not in gone]


@pytest.mark.parametrize("policy", list(SchedulingPolicy))
def test_an_error_meanwhile_loses_nobody(policy):
    queue, held = make_queue(policy, [(True, 0), (False, 0), (True, 1)])
    with (
        pytest.raises(RuntimeError, match="meanwhile"),
        held_back([queue], lambda request: request.request_id in held),
    ):
        raise RuntimeError("meanwhile")
    assert [request.request_id for request in queue] == ["r0", "r1", "r2"]
