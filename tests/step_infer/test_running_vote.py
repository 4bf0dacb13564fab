"""The vote of a question while its traces run."""

import math

from step_infer.client.answers import vote as vote_of
from step_infer.client.deciding import Budget, StopRule
from step_infer.client.grading import Grader
from step_infer.client.running_vote import RunningVote
from step_infer.client.trace import Sampling, Trace, TracePlan, in_waves, one_each, trace_weight


def ended(number, answer, score=None, reason="stop", filtered=False):
    return Trace(
        "q", number, None, [1], [2], "", reason, answer, trace_score=score, filtered=filtered
    )


def plan(number, vote, question="q"):
    return TracePlan(question, number, (1,), None, Sampling(), vote=vote)


def test_it_closes_with_the_trace_that_decides():
    vote = RunningVote(range(5), one_each)
    for number in range(3):
        assert vote.closed is None
        vote.add(ended(number, "7"))
    assert (vote.closed, vote.why) == ("decided", "unbeatable")
    assert vote.decision.answer == "7"


def test_traces_that_were_stopped_or_filtered_do_not_vote_and_add_nothing():
    vote = RunningVote(range(5), one_each)
    vote.add(ended(0, "7"))
    vote.add(ended(1, None, reason="pruned"))
    vote.add(ended(2, "8", filtered=True))
    assert vote.closed is None
    vote.add(ended(3, None))  # ran to its end without an answer
    assert vote.closed == "decided"


def test_a_trace_that_is_filtered_after_its_end_is_left_out_from_then_on():
    vote = RunningVote(range(5), one_each)
    first = ended(0, "8")
    vote.add(first)
    first.filtered = True
    vote.add(ended(1, "7"))
    vote.add(ended(2, "7"))
    vote.add(ended(3, None))
    assert (vote.closed, vote.decision.answer) == ("decided", "7")


def test_a_trace_without_a_score_does_not_outvote_two_that_are_scored():
    traces = [ended(0, "8"), ended(1, "7", score=0.3), ended(2, "7", score=0.3)]
    found = vote_of([trace.answer for trace in traces], [trace_weight(trace) for trace in traces])
    assert found.answer == "7"
    assert (trace_weight(ended(0, "8")), one_each(ended(0, "8"))) == (0.5, 1.0)
    for weigh in (trace_weight, one_each):
        assert weigh(ended(0, "8", reason="pruned")) == 0


def test_the_last_trace_decides_nothing():
    vote = RunningVote(range(2), one_each)
    vote.add(ended(1, "8"))
    vote.add(ended(0, "7"))
    assert vote.closed is None


def test_weights_without_a_bound_leave_it_open():
    vote = RunningVote(range(3), one_each, most=math.inf)
    vote.add(ended(0, "7"))
    vote.add(ended(1, "7"))
    assert vote.closed is None


def test_equal_answers_in_other_words_count_together():
    with Grader() as grader:
        vote = RunningVote(range(5), one_each, grader=grader)
        for number, answer in enumerate(["1/2", r"\frac{1}{2}", "0.5"]):
            vote.add(ended(number, answer))
        assert vote.closed == "decided"


def test_an_answer_that_is_still_compared_waits_for_its_verdict():
    """Only math-verify can compare these two: until it has, the vote is open."""
    answers = [r"\frac{n!}{n}", "(n-1)!"]
    with Grader() as grader:
        vote = RunningVote(range(7), one_each, grader=grader)
        for number in range(1, 6):
            vote.add(ended(number, answers[number > 1]))
        assert grader.pending(set(answers)) == set(answers)
        assert vote.closed is None
        assert grader.equal(*answers) is True  # waits for it
        assert vote.check(0.0) == "decided"


def test_answers_that_no_canonical_form_reads_vote_by_their_text_without_waiting():
    answers = [rf"\sum_{{k={start}}}^\infty \frac{{1}}{{k^3}}" for start in range(1, 40)]
    with Grader() as grader:
        vote = RunningVote(range(80), one_each, grader=grader)
        for number in range(78):
            vote.add(ended(number, answers[number % len(answers)]))
        assert grader.pending(set(answers)) == set()
        same = grader.same(answers)
        assert same(answers[0], answers[0])
        assert not same(answers[0], answers[1])


def test_likely_goes_by_what_running_traces_would_weigh():
    def closed(score):
        rule = StopRule("likely", 0.9, 3)
        vote = RunningVote(range(9), trace_weight, rule=rule, expect=float)
        assert vote.watches
        for number in range(4, 9):
            vote.see(number, 100, score)
        for number in range(4):
            vote.add(ended(number, "7" if number else "8", score=0.9))
        return vote.closed

    assert closed(0.05) == "decided"
    assert closed(0.95) is None


def test_a_budget_closes_it_with_the_limit_that_is_reached():
    vote = RunningVote(range(4), one_each, budget=Budget(seconds=5, tokens=100))
    assert vote.watches
    assert vote.check(50.0) is None  # nothing has begun
    vote.begin(0, 50.0)
    vote.see(0, 60)
    vote.see(1, 39)
    assert vote.check(54.9) is None
    vote.see(1, 40)
    assert (vote.check(54.9), vote.why) == ("over_budget", "tokens")
    slow = RunningVote(range(4), one_each, budget=Budget(seconds=5))
    slow.begin(0, 50.0)
    assert (slow.check(55.0), slow.why) == ("over_budget", "seconds")


def test_waves_keep_so_many_traces_of_a_question_running_and_fill_up_with_the_next_question():
    votes = {name: RunningVote(range(4), one_each) for name in "ab"}
    questions = [[plan(n, votes[name], name) for n in range(4)] for name in "ab"]
    orders = in_waves(questions, 2)

    def begin():
        order = next(orders)
        if order is not None and order.vote.closed is None:
            order.vote.begin(order.trace_id, 0.0)
        return None if order is None else order.key

    assert [begin() for _ in range(5)] == [("a", 0), ("a", 1), ("b", 0), ("b", 1), None]
    votes["a"].add(ended(0, "7"))
    assert [begin(), begin()] == [("a", 2), None]
    votes["a"].add(ended(1, "7"))
    votes["a"].add(ended(2, "7"))
    assert votes["a"].closed == "decided"
    assert [begin(), begin()] == [("a", 3), None]  # the one that need not begin is handed out too
    votes["b"].add(ended(0, "1"))
    votes["b"].add(ended(1, "2"))
    assert [begin(), begin()] == [("b", 2), ("b", 3)]
    assert list(orders) == []
