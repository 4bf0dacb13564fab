"""The pruning policy: who is stopped, and who never is."""

from hypothesis import given
from hypothesis import strategies as st
from running_traces import TRACES

from step_infer.policy import Memory, RunningTrace, admit, pick_victim


def trace(name, group="g", score=0.5, steps=3, blocks=10, order=0.0, **limits):
    return RunningTrace(name, group, score, steps, blocks, order, **limits)


def test_the_lowest_score_of_the_group_is_stopped():
    traces = [trace("a", score=0.7), trace("b", score=0.2), trace("c", score=0.4)]
    assert pick_victim(traces, {"g": 3}).request_id == "b"


def test_the_group_that_holds_most_blocks_loses_a_trace():
    traces = [
        trace("a", "small", score=0.1, blocks=5),
        trace("b", "small", score=0.1, blocks=5),
        trace("c", "large", score=0.9, blocks=20),
        trace("d", "large", score=0.8, blocks=20),
    ]
    assert pick_victim(traces, {"small": 2, "large": 2}).request_id == "d"


def test_blocks_of_unscored_traces_count_for_their_group():
    traces = [
        trace("a", "one", score=0.9, blocks=10),
        trace("b", "one", score=None, steps=0, blocks=50),
        trace("c", "two", score=0.1, blocks=20),
        trace("d", "two", score=0.1, blocks=20),
    ]
    assert pick_victim(traces, {"one": 2, "two": 2}).request_id == "a"


def test_a_trace_without_a_score_is_never_stopped():
    assert pick_victim([trace("a", score=None, steps=0)] * 4, {"g": 4}) is None


def test_a_trace_with_fewer_than_min_steps_scores_is_not_stopped():
    traces = [trace("a", score=0.1, steps=2, min_steps=3), trace("b", score=0.9, min_steps=3)]
    assert pick_victim(traces, {"g": 2}).request_id == "b"


def test_a_group_never_falls_below_min_keep():
    assert pick_victim([trace("a")], {"g": 1}) is None
    assert pick_victim([trace("a", min_keep=3), trace("b", min_keep=3)], {"g": 3}) is None
    # A finished trace counts: the last running one may go.
    assert pick_victim([trace("a")], {"g": 2}).request_id == "a"


def test_between_equal_scores_the_one_with_fewer_steps_then_the_newest_goes():
    traces = [trace("a", steps=5), trace("b", steps=4, order=1), trace("c", steps=4, order=2)]
    assert pick_victim(traces, {"g": 3}).request_id == "c"


@given(TRACES, st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)), st.randoms())
def test_victims_obey_every_limit_and_do_not_depend_on_the_order(traces, finished, random):
    kept = {
        group: finished.get(group, 0) + sum(t.group == group for t in traces) for group in "abc"
    }
    victim = pick_victim(traces, kept)
    shuffled = list(traces)
    random.shuffle(shuffled)
    other = pick_victim(shuffled, kept)

    def key(t):
        return None if t is None else (t.group, t.score, t.steps, t.order)

    assert key(other) == key(victim)
    allowed = [
        t
        for t in traces
        if t.score is not None and t.steps >= t.min_steps and kept[t.group] > t.min_keep
    ]
    assert (victim is None) == (not allowed)
    if victim is not None:
        assert victim in allowed
        assert victim.score == min(t.score for t in allowed if t.group == victim.group)


@given(TRACES, st.integers(1, 3))
def test_pruning_until_nothing_may_go_leaves_min_keep_in_each_group(traces, min_keep):
    traces = [
        RunningTrace(t.request_id, t.group, 0.5, 3, t.blocks, t.order, 1, min_keep) for t in traces
    ]
    sizes = {group: sum(t.group == group for t in traces) for group in "abc"}
    kept = dict(sizes)
    while (victim := pick_victim(traces, kept)) is not None:
        traces.remove(victim)
        kept[victim.group] -= 1
    assert kept == {group: min(size, min_keep) for group, size in sizes.items()}


def may_start(group, free, pressing, waited=0, limit=None):
    since = {group: 0} if waited else {}
    return group in admit({group}, since, waited, pressing, Memory(free, 100, 0.5), limit)[0]


def test_newcomers_wait_while_a_pruned_group_runs_and_memory_is_short():
    assert may_start("new", 0, pressing=())
    assert not may_start("new", 49, pressing={"g"})
    assert may_start("new", 50, pressing={"g"})


def test_a_group_is_held_no_longer_than_the_limit_unless_it_presses_itself():
    assert not may_start("new", 0, {"g"}, waited=7, limit=8)
    assert may_start("new", 0, {"g"}, waited=8, limit=8)
    assert may_start("new", 0, {"g"}, waited=0, limit=0)
    assert not may_start("new", 0, {"g"}, waited=10**6, limit=None)
    assert not may_start("g", 0, {"g"}, waited=10**6, limit=8)


STEPS = st.lists(
    st.tuples(
        st.sets(st.sampled_from("xyz")),  # others that press
        st.integers(0, 100),  # free blocks
        st.sets(st.sampled_from("abcd")),  # groups that get a trace
        st.sets(st.sampled_from("abcd")),  # groups whose traces vLLM takes in, if they may start
    ),
    max_size=80,
)


@given(STEPS, st.integers(0, 8))
def test_every_waiting_group_may_start_in_bounded_steps_whatever_the_running_ones_do(steps, limit):
    waiting, since, num_held, order = set(), {}, {}, []
    for step, (pressing, free, arrive, room) in enumerate(steps):
        waiting |= arrive
        memory = Memory(free, 100, 0.5)
        admitted, since = admit(waiting, since, step, pressing, memory, limit)
        assert admitted <= waiting
        assert since.keys() <= waiting
        order = [group for group in order if group in waiting]
        order += sorted(waiting - admitted - set(order))
        for group in waiting - admitted:
            num_held[group] = num_held.get(group, 0) + 1
            assert num_held[group] <= limit
            # First come, first served: none that was held first later is let in before it.
            later = {other for other in order if since[other] > since[group]}
            assert not later & admitted
        assert sorted(order, key=lambda group: (since[group], group)) == order
        waiting -= admitted & room
        num_held = {group: count for group, count in num_held.items() if group in waiting}
