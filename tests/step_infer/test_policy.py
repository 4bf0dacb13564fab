"""The pruning policy: who is stopped, and who never is."""

from hypothesis import given
from hypothesis import strategies as st

from step_infer.policy import RunningTrace, admit, pick_victim


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


TRACES = st.lists(
    st.builds(
        RunningTrace,
        st.uuids().map(str),
        st.sampled_from("abc"),
        st.none() | st.floats(0, 1),
        st.integers(0, 5),
        st.integers(0, 100),
        st.floats(0, 9),
        st.integers(1, 3),
        st.integers(1, 3),
    ),
    max_size=20,
)


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


def test_newcomers_wait_while_a_pruned_group_runs_and_memory_is_short():
    assert admit(0, 100, 0.5, pruned_running=False)
    assert not admit(49, 100, 0.5, pruned_running=True)
    assert admit(50, 100, 0.5, pruned_running=True)
