"""When a vote is decided: `unbeatable` holds whatever comes, `likely` goes up with the lead."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step_infer.client.answers import vote
from step_infer.client.deciding import (
    CONSENSUS,
    LIKELY,
    NEVER,
    Ballot,
    Budget,
    Decision,
    Open,
    StopRule,
    decide,
    likely_rule,
)
from step_infer.errors import InputError

UNBEATABLE_RULE = StopRule()


def ballots(text: str) -> list[Ballot]:
    """Return a vote of each letter, in the order of the traces."""
    return [Ballot(trace, answer, 1.0) for trace, answer in enumerate(text)]


def still_open(count: int, start: int, most: float = 1.0) -> list[Open]:
    return [Open(trace, most) for trace in range(start, start + count)]


def likely(threshold: float, least_votes: int = 1) -> StopRule:
    return StopRule(LIKELY, threshold, least_votes)


# --- unbeatable ---


@pytest.mark.parametrize(
    ("votes", "to_come", "answer"),
    [
        ("aaa", 2, "a"),
        ("aaab", 1, "a"),
        ("aaab", 3, None),
        ("aab", 1, "a"),  # a tie, and the first trace said a
        ("baa", 1, None),  # the tie would go to b
        ("aaa", 3, "a"),  # the other three could only tie, later
        ("", 3, None),
    ],
)
def test_a_lead_that_cannot_be_caught_decides(votes: str, to_come: int, answer: str | None) -> None:
    found = decide(ballots(votes), still_open(to_come, len(votes)), UNBEATABLE_RULE)
    assert (found and found.answer) == answer


def test_a_tie_with_a_trace_of_a_lower_number_is_open() -> None:
    late = [Ballot(trace, "a", 1.0) for trace in (1, 2)]
    assert decide(late, [Open(0, 1.0), Open(3, 1.0)], UNBEATABLE_RULE) is None


def test_votes_without_a_bound_are_never_unbeatable() -> None:
    assert decide(ballots("aaaaa"), still_open(1, 5, math.inf), UNBEATABLE_RULE) is None


def test_an_answer_that_is_still_compared_could_go_to_any_rival() -> None:
    others = still_open(2, 5)
    known = [*ballots("aaab"), Ballot(4, "c", 1.0)]
    assert decide(known, others, UNBEATABLE_RULE) == Decision("a", 1.0)
    compared = [*ballots("aaab"), Ballot(4, "c", 1.0, settled=False)]
    assert decide(compared, others, UNBEATABLE_RULE) is None


ANSWERS = [f"{number}{unit}" for number in (5, 7) for unit in ("", "cm", "m")]


def same(first: str, second: str) -> bool:
    """A number without a unit equals the number with any."""
    return first[0] == second[0] and (first[1:] == second[1:] or not first[1:] or not second[1:])


@settings(max_examples=400)
@given(st.data())
def test_nothing_that_comes_changes_a_decided_vote(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    order = data.draw(st.permutations(range(count)))
    ended = data.draw(st.integers(1, count - 1))
    whole = data.draw(st.booleans())
    weight = st.sampled_from([1.0, 2.0]) if whole else st.floats(0.0, 1.0)
    most = 2.0 if whole else 1.0
    answers = st.sampled_from(data.draw(st.sampled_from([ANSWERS, ANSWERS[:3], ANSWERS[1:3]])))
    so_far = [Ballot(trace, data.draw(answers), data.draw(weight)) for trace in order[:ended]]
    coming = [Open(trace, most) for trace in order[ended:]]
    found = decide(so_far, coming, UNBEATABLE_RULE, same)
    if found is None:
        return
    for _ in range(5):
        ends = [
            Ballot(other.trace, data.draw(st.sampled_from(ANSWERS)), data.draw(weight))
            for other in coming
            if data.draw(st.booleans())
        ]
        everything = sorted([*so_far, *ends], key=lambda ballot: ballot.trace)
        outcome = vote([b.answer for b in everything], [b.weight for b in everything], same)
        assert outcome.answer is not None
        assert same(outcome.answer, found.answer)


@settings(max_examples=300)
@given(st.text("ab", min_size=1, max_size=6), st.integers(1, 3))
def test_unbeatable_is_as_early_as_can_be_for_equal_weights(votes: str, to_come: int) -> None:
    found = decide(ballots(votes), still_open(to_come, len(votes)), UNBEATABLE_RULE)
    ends = itertools.product(["a", "b", "c", None], repeat=to_come)
    winners = {vote([*votes, *end]).answer for end in ends}
    assert (found is not None) == (len(winners) == 1)


def test_an_answer_is_not_sure_by_the_weight_of_one_that_may_leave_it() -> None:
    # Two of "5" outweigh all, but they join what most have written: "5m" now, "5cm" perhaps.
    votes = [Ballot(i, "5m", 0.1) for i in range(4)] + [Ballot(4 + i, "5cm", 0.1) for i in range(3)]
    votes += [Ballot(7 + i, "5", 1.0) for i in range(2)]
    assert decide(votes, still_open(2, 9, 0.1), UNBEATABLE_RULE, same) is None


def test_an_answer_without_a_unit_may_leave_for_another_unit() -> None:
    # Six of "5m" would draw the four "5" away from the five "5cm".
    votes = [Ballot(i, "5cm", 1.0) for i in range(5)] + [Ballot(5 + i, "5", 1.0) for i in range(4)]
    assert decide(votes, still_open(6, 9), UNBEATABLE_RULE, same) is None
    assert decide(votes[:5], still_open(4, 9), UNBEATABLE_RULE, same) == Decision("5cm", 1.0)


def test_answers_that_stay_together_count_together() -> None:
    def equal(first: str, second: str) -> bool:
        return {first, second} <= {"1/2", "0.5"} or first == second

    votes = [Ballot(i, answer, 1.0) for i, answer in enumerate(["1/2", "0.5", "0.5", "3"])]
    bound = decide(votes, still_open(1, 4), UNBEATABLE_RULE, equal, lambda a: a != "3")
    assert bound == Decision("0.5", 1.0)
    assert decide(votes, still_open(1, 4), UNBEATABLE_RULE, equal) is None


def test_never_decides_nothing() -> None:
    assert decide(ballots("aaaa"), [], StopRule(NEVER)) is None


# --- likely ---


def test_a_chance_is_that_of_the_posterior() -> None:
    """Against drawing the shares of the answers and then the votes, many times."""
    votes, to_come = "aaaaaabb", 9
    found = decide(ballots(votes), still_open(to_come, len(votes)), likely(1e-9))
    assert found is not None
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([6.5, 2.5, 1.0], size=200_000)
    ends = rng.multinomial(to_come, shares) + np.array([6, 2, 0])
    lost_b = np.mean(ends[:, 1] >= ends[:, 0])
    lost_new = np.mean(ends[:, 2] >= ends[:, 0])
    assert found.chance == pytest.approx(1 - lost_b - lost_new, abs=0.003)


def test_a_chance_grows_with_the_lead_and_falls_with_what_is_to_come() -> None:
    def chance(votes: str, to_come: int) -> float:
        found = decide(ballots(votes), still_open(to_come, len(votes)), likely(1e-9))
        assert found is not None
        return found.chance

    assert chance("aaaab", 8) < chance("aaaaab", 8) < chance("aaaaaab", 8)
    assert chance("aaaab", 16) < chance("aaaab", 8) < chance("aaaab", 2)
    assert chance("aaaab", 2) == 1.0


def test_traces_that_would_weigh_little_leave_the_leader_likelier() -> None:
    votes = ballots("aaab")
    low = decide(votes, [Open(i, 1.0, 0.1) for i in range(4, 12)], likely(1e-9))
    high = decide(votes, [Open(i, 1.0, 0.9) for i in range(4, 12)], likely(1e-9))
    assert low is not None
    assert high is not None
    assert low.chance > high.chance


def test_likely_waits_for_its_threshold_and_its_least_votes() -> None:
    others = still_open(8, 6)
    found = decide(ballots("aaaaab"), others, likely(1e-9))
    assert found is not None
    assert decide(ballots("aaaaab"), others, likely(found.chance)) == found
    assert decide(ballots("aaaaab"), others, likely(min(1.0, found.chance + 1e-6))) is None
    assert decide(ballots("aaaaab"), others, likely(1e-9, least_votes=7)) is None


def test_many_traces_and_answers_give_a_chance_all_the_same() -> None:
    votes = [Ballot(i, str(i % 40), 0.5) for i in range(200)]
    found = decide(votes, still_open(300, 200), likely(1e-12))
    assert found is None or 0.0 <= found.chance <= 1.0
    alone = decide(ballots("a"), still_open(500, 1), likely(1e-12))
    assert alone is not None
    assert 0.0 < alone.chance < 1.0


# --- consensus, settings, budgets ---


def test_consensus_is_the_leader_s_part_of_the_weight() -> None:
    rule = StopRule(CONSENSUS, 0.75, least_votes=4)
    assert decide(ballots("aaab"), still_open(9, 4), rule) == Decision("a", 0.75)
    assert decide(ballots("aab"), still_open(9, 3), rule) is None
    assert decide(ballots("aabb"), still_open(9, 4), rule) is None


def test_a_threshold_comes_from_the_card_of_the_scorer() -> None:
    rule = likely_rule({"score": {"threshold": 0.97}}, "score")
    assert (rule.name, rule.threshold) == (LIKELY, 0.97)
    with pytest.raises(InputError, match="step-eval calibrate writes one"):
        likely_rule({"score": {"threshold": 0.97}}, "uniform")


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf, "9", True, [9], 10**400 * -1])
def test_a_budget_that_no_trace_can_meet_is_refused(limit) -> None:
    with pytest.raises(InputError, match="budget of more than 0 seconds, found .* Hint: leave it"):
        Budget(seconds=limit)
    with pytest.raises(InputError, match="budget of at least 1 token, found .* Hint: leave it"):
        Budget(tokens=limit)


def test_a_budget_names_the_limit_that_is_reached() -> None:
    budget = Budget(seconds=10, tokens=500)
    assert budget.spent(9.9, 499) is None
    assert budget.spent(10, 0) == "seconds"
    assert budget.spent(0, 500) == "tokens"
    assert Budget().spent(1e9, 10**12) is None
