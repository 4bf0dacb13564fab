"""Who becomes a parent, and when: what must hold of the policy whatever the traces are."""

import random

from hypothesis import given
from hypothesis import strategies as st

from step_infer.client.branching import Branching, Candidate, Room, pick_parents
from step_infer.client.running_vote import RunningVote
from step_infer.client.trace import Trace, branch_seed

WHOLE = st.integers(0, 40)
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        trace_id=st.integers(0, 60),
        score=st.none() | st.floats(0, 1),
        own_tokens=WHOLE,
        point=WHOLE,
        most_tokens=st.integers(1, 40),
        prompt_tokens=st.integers(1, 10),
        children=st.integers(0, 3),
    ),
    max_size=12,
    unique_by=lambda candidate: candidate.trace_id,
)
ROOMS = st.builds(
    Room,
    stopped=st.integers(0, 12),
    branched=st.integers(0, 12),
    live=st.integers(0, 12),
    most_live=st.integers(1, 12),
    spare_tokens=st.integers(-50, 400),
    closed=st.booleans(),
)
OPTIONS = st.builds(
    Branching,
    min_tokens=st.integers(1, 30),
    max_children=st.integers(1, 3),
)


@given(CANDIDATES, ROOMS, OPTIONS, st.none() | st.integers(0, 9))
def test_only_able_traces_get_children_and_no_more_than_there_is_room_for(
    candidates: list[Candidate], room: Room, options: Branching, seed: int | None
) -> None:
    random_ = None if seed is None else random.Random(seed)
    chosen = pick_parents(candidates, room, options, random_)
    by_id = {candidate.trace_id: candidate for candidate in candidates}
    assert len(set(chosen)) == len(chosen)
    if room.closed or room.branched >= room.stopped or room.live >= room.most_live:
        assert chosen == []
    assert room.branched + len(chosen) <= max(room.stopped, room.branched)
    assert room.live + len(chosen) <= max(room.most_live, room.live)
    needed = sum(by_id[i].prompt_tokens + by_id[i].point for i in chosen)
    assert needed <= max(room.spare_tokens, 0)
    for trace_id in chosen:
        parent = by_id[trace_id]
        assert parent.score is not None
        assert parent.own_tokens >= options.min_tokens
        assert 0 < parent.point < parent.most_tokens
        assert parent.children < options.max_children


@given(CANDIDATES, ROOMS, OPTIONS)
def test_the_best_are_chosen_and_the_order_of_the_traces_does_not_matter(
    candidates: list[Candidate], room: Room, options: Branching
) -> None:
    chosen = pick_parents(candidates, room, options)
    assert chosen == pick_parents(candidates[::-1], room, options)
    scores = {candidate.trace_id: candidate.score for candidate in candidates}
    found = [scores[trace_id] for trace_id in chosen]
    assert found == sorted(found, reverse=True)  # type: ignore[type-var]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 3))
def test_children_never_outnumber_the_stopped_and_no_prefix_is_carried_on_too_often(
    stops: list[int], max_children: int
) -> None:
    # Waiting children have no tokens of their own: counted as live, they are not replaced.
    options = Branching(min_tokens=5, max_children=max_children)
    traces = {i: Candidate(i, i / 8, 9, 6, 40, 2, 0) for i in range(8)}
    live, stopped, branched = set(traces), 0, 0
    for stop in stops:
        for trace_id in sorted(live)[:stop]:
            live.discard(trace_id)
            stopped += 1
        room = Room(stopped, branched, len(live), 8, 10_000)
        running = [traces[trace_id] for trace_id in live]
        for parent in pick_parents(running, room, options):
            old = traces[parent]
            traces[parent] = Candidate(parent, old.score, 9, 6, 40, 2, old.children + 1)
            child = len(traces)
            traces[child] = Candidate(child, old.score, 0, 6, 40, 2, 0)
            live.add(child)
            branched += 1
        assert branched <= stopped
        assert len(live) <= 8
    assert all(trace.children <= max_children for trace in traces.values())
    assert all(trace.children == 0 for i, trace in traces.items() if i >= 8)


def test_random_parents_are_the_same_ones_with_the_same_seed_and_others_than_the_best() -> None:
    candidates = [Candidate(i, i / 20, 9, 6, 40, 2, 0) for i in range(20)]
    room = Room(4, 0, 8, 20, 10_000)
    options = Branching(min_tokens=5)
    chosen = [pick_parents(candidates, room, options, random.Random(seed)) for seed in range(9)]
    again = [pick_parents(candidates, room, options, random.Random(seed)) for seed in range(9)]
    assert chosen == again
    assert len({tuple(found) for found in chosen}) > 1
    assert pick_parents(candidates, room, options) == [19, 18, 17, 16]


def test_each_child_of_a_trace_has_a_seed_of_its_own() -> None:
    seeds = {branch_seed(seed, number) for seed in range(30) for number in range(30)}
    assert len(seeds) == 900
    assert branch_seed(7, 0) == branch_seed(7, 0) < 2**31


def test_a_vote_waits_for_children_that_have_begun() -> None:
    vote = RunningVote(range(2), lambda trace: 1.0)
    for trace_id in range(5):
        vote.begin(trace_id, 0.0)
    for trace_id in (0, 1):
        vote.add(Trace("q", trace_id, None, [], [], "", "stop", "5"))
    assert vote.check(1.0) is None
    vote.add(Trace("q", 2, None, [], [], "", "stop", "5"))
    assert vote.check(1.0) == "decided"
