"""Statistics on records made up so that the answer is known."""

import itertools
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import record, trace

from step_eval.comparison import compare, outcome, summarise
from step_eval.curves import auroc_by_progress, score_curve, scored_traces
from step_eval.records import QuestionRecord
from step_eval.results import _branches
from step_eval.statistics import auroc, bootstrap_weights, interval, question_mean
from step_eval.stops import describe_stops, stop_totals, stops
from step_eval.votes import SHOWN_VOTES, has_signal, vote_rule
from step_infer.errors import InputError

VOTES = {"sc": "uniform", "step": "score"}


def answered(question_id, right, **more):
    return record(question_id, [trace(answer="7" if right else "3")], **more)


def test_a_record_survives_its_line():
    before = record("q", [trace(answer=None), trace(1, score=0.25, scores=[0.25, None])])
    assert QuestionRecord.from_json(before.to_json()) == before


def test_outcome_sums_up_the_traces_and_leaves_pruned_ones_out_of_the_vote():
    traces = [
        trace(0, "7", score=0.9, tokens=10),
        trace(1, "3", score=0.2, tokens=20),
        trace(2, "3", score=0.3, tokens=30),
        trace(3, None, finish_reason="pruned", score=0.1, tokens=40),
    ]
    found = outcome(record("q", traces, "step"), "score")
    assert (found.answer, found.right) == ("7", True)
    assert (found.tokens, found.pruned, found.waiting_share) == (100, 1, 0.25)
    assert found.trace_accuracy == pytest.approx(1 / 3)
    assert outcome(record("q", traces, "step"), "uniform").answer == "3"


def test_an_answer_that_could_not_be_graded_counts_as_wrong():
    bad = record("q", [trace(answer="?", correct=None)])
    bad.answers[0].correct = bad.traces[0].correct = None
    assert not outcome(bad, "uniform").right
    summary = summarise([bad], "uniform", draws=10)
    assert (summary.ungradable, summary.no_answer) == (1, 0)


@pytest.mark.parametrize(
    ("rule", "winner"),
    [
        ("uniform", "b"),
        ("score", "b"),
        ("score^4", "a"),
        ("best", "a"),
        ("score-top-1", "a"),
        ("score-top-2", "a"),
        ("score-top-3", "b"),
    ],
)
def test_vote_rules_weigh_scores(rule, winner):
    weights = vote_rule(rule)([0.9, 0.5, 0.5])
    assert ("a" if weights[0] > weights[1] + weights[2] else "b") == winner


def test_a_trace_without_a_score_weighs_as_one_that_could_be_either():
    assert vote_rule("score^2")([None, 0.3]) == [0.25, 0.09]
    assert vote_rule("best")([None, None]) == [1.0, 1.0]


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=20), st.integers(1, 25))
def test_only_the_traces_of_the_highest_scores_vote(scores, count):
    weights = vote_rule(f"score-top-{count}")(scores)
    known = sorted((s for s in scores if s is not None), reverse=True)
    if not known:
        assert weights == [1.0] * len(scores)
        return
    assert sorted(weights, reverse=True)[: len(known[:count])] == known[:count]
    assert sum(weights) == pytest.approx(sum(known[:count]))
    assert all(w in (0, s) for w, s in zip(weights, scores, strict=True) if s is not None)


def test_a_family_shares_its_weights_and_inherited_tokens_are_counted_once():
    # 0 has a child and a grandchild: their three votes for "7" weigh as much as one.
    family = [
        trace(0, "7", score=0.6, tokens=100),
        trace(1, "3", score=0.8, tokens=90),
        trace(2, "7", score=0.9, tokens=120, parent=0, inherited=80),
        trace(3, "7", score=0.6, tokens=150, parent=2, inherited=110),
    ]
    found = record("q", family)
    assert outcome(found, "score").answer == "7"
    assert outcome(found, "score-shared").answer == "3"
    assert outcome(found, "score").tokens == 100 + 90 + 40 + 40


def test_votes_go_by_the_number_that_they_name():
    traces = [
        trace(0, "7", score=0.1, mean_confidence=9.0, lowest_confidence=1.0),
        trace(1, "3", score=0.9, mean_confidence=2.0, lowest_confidence=1.5),
    ]
    found = {rule: outcome(record("q", traces), rule).answer for rule in SHOWN_VOTES}
    assert found == {
        "uniform": "7",
        "score": "3",
        "score^4": "3",
        "score-top-5": "3",
        "score-shared": "3",
        "best": "3",
        "confidence": "7",
        "lowest-confidence": "3",
    }
    bare = [trace(0), trace(1, "3", mean_confidence=2.0)]
    assert [rule for rule in SHOWN_VOTES if has_signal(rule, bare)] == ["uniform", "confidence"]


@pytest.mark.parametrize("rule", ["scores", "score^", "score^-1", "score-top-0", "score-top", ""])
def test_an_unknown_vote_rule_is_named(rule):
    with pytest.raises(InputError, match="Expected a vote out of uniform, score"):
        vote_rule(rule)


def test_summary_weighs_each_question_the_same_however_often_it_was_asked():
    records = [answered("a", True), answered("a", True, repeat=1), answered("b", False)]
    summary = summarise(records, "uniform", draws=100)
    assert summary.metrics["accuracy"].value == pytest.approx(0.5)
    assert (summary.questions, summary.repeats) == (2, 2)


def test_the_repeats_of_a_question_are_drawn_together():
    _, drawn = bootstrap_weights(["a", "b", "a", "b", "b"], draws=50)
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, 1] == drawn[:, 3]).all()
    assert (drawn[:, 1] == drawn[:, 4]).all()
    assert drawn.std(axis=0).min() > 0


def test_the_interval_covers_the_truth_when_only_repeats_vary():
    rng = np.random.default_rng(5)
    plain, drawn = bootstrap_weights([f"q{i // 4}" for i in range(160)], draws=500)
    covered = 0
    for _ in range(400):
        values = rng.normal(size=160)
        found = interval(plain @ values, drawn @ values, 40)
        covered += found.low <= 0 <= found.high
    assert 0.91 <= covered / 400 <= 0.975


@pytest.mark.parametrize("questions", [10, 50])
def test_the_interval_of_normal_figures_holds_their_mean_95_times_of_100(questions):
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(1000):
        found = question_mean(rng.normal(3, 2, size=questions))
        covered += found.low <= 3 <= found.high
    assert 0.935 <= covered / 1000 <= 0.965  # plain percentiles: 0.90 of 10 questions


def test_scipy_and_scikit_learn_are_loaded_by_the_first_figure_that_needs_them():
    code = (
        "import sys\nfrom step_eval.command import main\nimport step_eval.results\n"
        "sys.argv = ['step-eval', '--help']\ntry:\n    main()\nexcept SystemExit:\n"
        "    print('loaded:', sorted({'scipy', 'sklearn'} & set(sys.modules)))\n"
        "step_eval.statistics.auroc([True, False], [0.2, 0.1])\n"
        "print('then:', 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: " in done.stdout
    assert "loaded: []" in done.stdout
    assert "then: True" in done.stdout


def test_bootstrap_weights_of_every_draw_sum_to_one():
    plain, drawn = bootstrap_weights(["a", "a", "b", "c", "c", "c"], draws=50)
    assert plain == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 9, 1 / 9, 1 / 9])
    assert drawn.sum(axis=1) == pytest.approx(np.ones(50))
    assert drawn.mean(axis=0) == pytest.approx(plain, abs=0.1)


def test_the_interval_of_a_share_agrees_with_the_binomial():
    records = [answered(f"q{i}", i % 2 == 0) for i in range(100)]
    found = summarise(records, "uniform").metrics["accuracy"]
    assert (found.low, found.high) == (
        pytest.approx(0.40, abs=0.015),
        pytest.approx(0.60, abs=0.015),
    )


def test_a_clear_difference_is_shown_with_its_direction():
    rng = random.Random(1)
    times = [rng.uniform(8, 12) for _ in range(40)]
    before = [answered(f"q{i}", False, seconds=s) for i, s in enumerate(times)]
    after = [answered(f"q{i}", True, method="step", seconds=s / 2) for i, s in enumerate(times)]
    found = compare(before, after, VOTES)
    assert found.differences["seconds"].verdict == "better"
    assert found.differences["seconds"].relative.value == pytest.approx(-0.5)
    assert found.differences["seconds"].relative.high == pytest.approx(-0.5)
    assert found.differences["accuracy"].difference.value == pytest.approx(1)
    assert found.differences["accuracy"].verdict == "better"
    assert found.differences["accuracy"].relative is None


def test_a_difference_in_noise_is_not_shown():
    rng = random.Random(2)
    before = [answered(f"q{i}", rng.random() < 0.7) for i in range(60)]
    after = [answered(f"q{i}", rng.random() < 0.7, method="step") for i in range(60)]
    found = compare(before, after, VOTES)
    assert found.differences["accuracy"].verdict == "no difference shown"
    assert found.differences["tokens"].verdict == "no difference shown"
    assert found.differences["tokens"].difference.value == 0


def test_one_question_alone_shows_nothing():
    before = [answered("q", False, seconds=9, repeat=r) for r in (0, 1)]
    after = [answered("q", True, method="step", seconds=3, repeat=r) for r in (0, 1)]
    found = compare(before, after, VOTES).differences
    assert {d.verdict for d in found.values()} == {"no difference shown"}
    seconds = found["seconds"].difference
    assert (seconds.value, seconds.low, seconds.high) == (-6, None, None)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = random.Random(3)
    shown = 0
    for _ in range(100):
        before = [answered(f"q{i}", rng.random() < 0.5) for i in range(40)]
        after = [answered(f"q{i}", rng.random() < 0.5, method="step") for i in range(40)]
        verdict = compare(before, after, VOTES, draws=500).differences["accuracy"].verdict
        shown += verdict != "no difference shown"
    assert shown <= 13


def test_pairing_shows_a_small_difference_that_questions_vary_more_than():
    before = [answered(f"q{i}", True, seconds=10.0 * i + 10) for i in range(30)]
    after = [answered(f"q{i}", True, method="step", seconds=10.0 * i + 9) for i in range(30)]
    assert compare(before, after, VOTES).differences["seconds"].verdict == "better"


def test_only_what_both_have_done_is_compared():
    before = [answered("a", True), answered("b", True), answered("b", True, repeat=1)]
    after = [answered("b", False, method="step"), answered("c", True, method="step")]
    found = compare(before, after, VOTES, draws=20)
    assert (found.questions, found.pairs) == (1, 1)
    assert (found.lost, found.gained) == ([("b", 0)], [])
    assert compare(before, [answered("c", True, method="step")], VOTES) is None


def test_auroc_is_the_share_of_pairs_in_order():
    rng = random.Random(4)
    right = [rng.random() < 0.4 for _ in range(60)]
    scores = [round(rng.random() + 0.2 * label, 1) for label in right]
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for (a, x), (b, y) in itertools.product(zip(scores, right, strict=True), repeat=2)
        if x and not y
    ]
    assert auroc(right, scores) == pytest.approx(sum(pairs) / len(pairs))
    with pytest.raises(ValueError, match="one class"):
        auroc([True, True], [0.1, 0.2])


def scored(trace_id, answer, scores, **more):
    positions = [9 + 10 * i for i in range(len(scores))]
    hashes = [position + 1000 for position in positions]
    values = {"positions": positions, "scores": scores, "prefix_hashes": hashes}
    return trace(trace_id, answer, tokens=len(scores) * 10 + 10, **values | more)


def test_scores_that_only_know_the_question_rank_nothing_within_it():
    records = []
    for number in range(20):
        easy = number % 2
        level = 0.9 if easy else 0.1
        answers = ["7" if (i < 5) == bool(easy) or i == 2 else "3" for i in range(6)]
        traces = [scored(i, a, [level] * 5, score=level) for i, a in enumerate(answers)]
        records.append(record(f"q{number}", traces, "step"))
    traces = scored_traces(records, [])
    last = auroc_by_progress(traces, "mean")[-1]
    assert last.overall > 0.75
    assert last.within == pytest.approx(0.5)
    assert last.questions == 20


def test_traces_of_one_outcome_have_no_auroc():
    traces = scored_traces([record("q", [scored(0, "7", [0.5] * 4)], "step")], [])
    point = auroc_by_progress(traces, "mean")[-1]
    assert (point.overall, point.within, point.questions, point.traces) == (None, None, 0, 1)


def test_auroc_rises_when_scores_part_late():
    traces = [
        scored(i, "7" if i % 2 else "3", [0.5] * 5 + [0.8 if i % 2 else 0.2] * 5) for i in range(10)
    ]
    known = scored_traces([record("q", traces, "step")], [])
    points = auroc_by_progress(known, "last")
    assert points[2].within == pytest.approx(0.5)
    assert points[-1].within == pytest.approx(1.0)
    right, wrong = score_curve(known, True), score_curve(known, False)
    assert (right.traces, wrong.traces) == (5, 5)
    assert right.mean[-1] == pytest.approx(0.8)
    assert wrong.mean[-1] == pytest.approx(0.2)
    assert right.mean[1] == pytest.approx(0.5)


def test_a_pruned_trace_takes_the_outcome_of_its_twin_with_the_same_start():
    whole = scored(0, "7", [0.5] * 8)
    cut = scored(0, None, [0.4] * 3, score=0.4, finish_reason="pruned", correct=None)
    after, before = [record("q", [cut], "step")], [record("q", [whole])]
    known = scored_traces(after, before)
    assert known[0].right
    assert known[0].progress == [pytest.approx(10 * i / whole.tokens) for i in (1, 2, 3)]
    late = auroc_by_progress(known, "mean")[-1]
    assert late.traces == 0
    [stop] = stops(after, before)
    assert (stop.saved, stop.whole_right, stop.score) == (whole.tokens - cut.tokens, True, 0.4)
    assert stop.progress == cut.tokens / whole.tokens
    found = stop_totals([stop])
    assert (found.pruned, found.known, found.would_be_right) == (1, 1, 1)
    assert (found.tokens_saved, found.estimated) == (whole.tokens - cut.tokens, 0)


@pytest.mark.parametrize(
    "change", [{"prefix_hashes": [1, 2, 3]}, {"positions": [9, 19, 30]}, {"seed": 5}]
)
def test_a_pruned_trace_without_such_a_twin_is_left_out(change):
    whole = scored(0, "7", [0.5] * 8)
    cut = scored(0, None, [0.4] * 3, **{"finish_reason": "pruned", "correct": None} | change)
    after, before = [record("q", [cut], "step")], [record("q", [whole])]
    assert scored_traces(after, before) == []
    found = stop_totals(stops(after, before))
    assert (found.pruned, found.known, found.tokens_saved) == (1, 0, 0)
    # What it saved is guessed from the other traces of the question, and said to be a guess.
    assert (found.estimated, found.tokens_estimated) == (1, whole.tokens - cut.tokens)


def test_without_a_baseline_the_estimate_comes_from_longer_traces_of_the_same_question():
    cut = trace(0, None, tokens=100, finish_reason="pruned")
    ended = [trace(1, tokens=90), trace(2, tokens=150), trace(3, tokens=250)]
    longest = trace(0, None, tokens=300, finish_reason="pruned")
    records = [record("q", [cut, *ended], "step"), record("p", [longest], "step")]
    found = stop_totals(stops(records, []))
    assert (found.pruned, found.known, found.estimated) == (2, 0, 1)
    assert found.tokens_estimated == (50 + 150) / 2


def test_stopped_traces_are_counted_by_progress_score_and_question():
    before, after = [], []
    for number, (answer, steps, score) in enumerate([("7", 2, 0.1), ("3", 6, 0.2), ("3", 2, 0.3)]):
        before.append(scored(number, answer, [0.5] * 9))
        after.append(
            scored(number, None, [score] * steps, score=score, finish_reason="pruned", correct=None)
        )
    sc, step = [record("q", before)], [record("q", after, "step")]
    found = describe_stops(stops(step, sc), step, sc)
    assert [(row["right"], row["wrong"]) for row in found["by_progress"]] == (
        [(0, 0), (0, 0), (1, 1), (0, 0), (0, 0), (0, 0), (0, 1), (0, 0), (0, 0), (0, 0)]
    )
    assert (found["by_score"][0]["right"], found["by_score"][-1]["wrong"]) == (1, 1)
    assert sum(row["right"] + row["wrong"] for row in found["saved_bins"]) == 3
    assert found["saved_mean"] == pytest.approx((70 + 30 + 70) / 3)
    assert found["baseline_right"] == pytest.approx(1 / 3)
    assert found["baseline_tokens"] == 300
    [row] = found["questions"]
    assert (row["pruned"], row["known"], row["right"], row["right_left"]) == (3, 3, 1, 0)
    assert (row["progress"], row["score"]) == (pytest.approx(0.3), pytest.approx(0.1))


def branch(trace_id, answer, whole, inherited, **more):
    """Return a trace that has the first steps of another."""
    found = scored(trace_id, answer, whole, **more)
    found.parent, found.inherited = 0, inherited
    return found


def test_inherited_steps_are_their_parents_in_curves_and_aurocs():
    parent = scored(0, "3", [0.2, 0.2, 0.2, 0.2])
    child = branch(1, "7", [0.2, 0.2, 0.9, 0.9], inherited=20)
    known = scored_traces([record("q", [parent, child], "step")], [])
    assert [trace.inherited for trace in known] == [0, 2]
    # Both have steps at 1/5, 2/5, 3/5 and 4/5 of their length; the first two are the parent's.
    points = {point.progress: point for point in auroc_by_progress(known, "last")}
    assert [points[at].traces for at in (0.2, 0.5, 0.6, 1.0)] == [1, 1, 2, 2]
    assert points[1.0].within == 1.0
    curve = score_curve(known, True)
    assert [i for i, mean in enumerate(curve.mean) if mean is not None] == [6, 8]
    assert curve.mean[6] == curve.mean[8] == pytest.approx(0.9)


def test_tokens_of_stopped_branches_are_their_own_and_late_ones_tell_of_no_earlier_length():
    stopped = trace(0, None, tokens=100, finish_reason="pruned")
    child = trace(9, None, tokens=160, finish_reason="pruned", parent=1, inherited=120)
    ended = [
        trace(1, tokens=150),
        trace(2, tokens=250, parent=1, inherited=120),  # began later than at 100
        trace(3, tokens=190, parent=1, inherited=90),
    ]
    records = [record("q", [stopped, child, *ended], "branch")]
    found = stops(records, [])
    assert [stop.own_tokens for stop in found] == [100, 40]
    assert [stop.expected_left for stop in found] == [(50 + 90) / 2, (90 + 30) / 2]
    told = describe_stops(found, records, [])
    assert told["mean_tokens"] == 70
    # As a baseline, with the same question: what its branches inherited is generated once.
    base = [record("q", [trace(0), *ended], "branch")]
    assert describe_stops(found, records, base)["baseline_tokens"] == 100 + 150 + 130 + 100


def test_what_the_cache_had_is_told_of_the_branches_that_began():
    began = trace(1, tokens=90, parent=0, inherited=60, cached_tokens=64)
    never = trace(2, None, tokens=60, parent=0, inherited=60, finish_reason="decided")
    found = record("q", [trace(0), began, never], "branch")
    assert _branches([found]) == {
        "traces": 2,
        "inherited_tokens": 120,
        "prefix_tokens": found.prompt_tokens + 60,
        "cached_tokens": 64,
    }
