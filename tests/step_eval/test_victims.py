"""Other victims, as pure functions: the policy stays as it is, another number decides."""

import dataclasses
import math

from hypothesis import given
from hypothesis import strategies as st
from running_traces import TRACES

from step_eval.methods.victims import VICTIMS, victim_rank
from step_infer.policy import RunningTrace, pick_victim


@given(
    st.sampled_from(VICTIMS),
    TRACES,
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)),
    st.randoms(),
)
def test_another_choice_of_the_victim_changes_the_trace_and_nothing_else(
    victim, traces, finished, random
):
    kept = {
        group: finished.get(group, 0) + sum(t.group == group for t in traces) for group in "abc"
    }

    def number():
        return random.choice([None, random.uniform(-5, 5)])

    ranked = [
        t
        if t.score is None or victim == "score"
        else dataclasses.replace(
            t, score=victim_rank(victim, random.randint(0, 9), number(), number())
        )
        for t in traces
    ]
    usual, other = pick_victim(traces, kept), pick_victim(ranked, kept)
    if usual is None:
        assert other is None
        return
    assert other.group == usual.group
    assert other.score is not None
    assert other.steps >= other.min_steps
    assert kept[other.group] > other.min_keep
    if victim == "score":
        assert other == usual
        return
    rivals = [
        t
        for t in ranked
        if t.group == other.group
        and t.score is not None
        and t.steps >= t.min_steps
        and kept[t.group] > t.min_keep
    ]
    assert other.score == min(t.score for t in rivals)


@given(st.integers(0, 9), st.none() | st.floats(0, 9), st.none() | st.floats(-9, 9))
def test_each_victim_goes_by_its_own_number(tokens, confidence, rank):
    found = {
        name: victim_rank(name, tokens, confidence, rank) for name in VICTIMS if name != "score"
    }
    assert found == {
        "youngest": tokens,
        "longest": -tokens,
        "least-confident": math.inf if confidence is None else confidence,
        "rank": math.inf if rank is None else rank,
    }


def test_a_trace_without_the_number_asked_for_goes_last():
    ranks = victim_rank("rank", 5, None, None), victim_rank("rank", 5, None, 7.0)
    traces = [RunningTrace(n, "g", rank, 3, 10, 0.0) for n, rank in zip("ab", ranks, strict=True)]
    assert pick_victim(traces, {"g": 2}).request_id == "b"
    assert pick_victim(traces[:1], {"g": 2}).request_id == "a"
