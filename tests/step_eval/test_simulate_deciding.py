"""Simulated methods that stop when the vote is decided: where they stop, and what they answer."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step_eval.command import command
from step_eval.recorded.traces import PoolTrace
from step_eval.simulation.config import SimulateConfig, method_label
from step_eval.simulation.deciding import Voting
from step_eval.simulation.drawn import DrawnTraces, draw_pool
from step_eval.simulation.engine import simulate
from step_eval.simulation.question import Setting, figures, finished, run_question
from step_eval.simulation.schedule import EngineShape, Pruning, SimulatedTrace
from step_eval.simulation.sweep import engine_shape, run_task
from step_eval.simulation.timing import Timing
from step_eval.votes import most_weight, vote_rule
from step_infer.client.deciding import LEAST_VOTES, LIKELY, NEVER, UNBEATABLE, StopRule
from step_infer.errors import InputError

SMALL = DrawnTraces(right_tokens=200, wrong_tokens=260, step_tokens=20, max_tokens=400)
ANY = StopRule(LIKELY, 1e-9, LEAST_VOTES)


def scored(traces, seed):
    """Return step scores that know a little of which trace is right."""
    rng = np.random.default_rng(seed)
    return [
        rng.beta(3 + trace.right, 3, len(trace.positions)).round(1).tolist() for trace in traces
    ]


@settings(max_examples=40)
@given(
    st.integers(0, 10_000),
    st.integers(2, 24),
    st.sampled_from([0.2, 0.4, 1.0]),
    st.sampled_from(["sc", "sc-score", "step", "longest"]),
    st.sampled_from(["score", "score^4", "uniform"]),
    st.sampled_from(["mean", "last", "min"]),
)
def test_a_decided_vote_gives_the_answer_of_all_traces(
    seed, count, budget, method, vote, aggregator
):
    [question] = draw_pool(SMALL, 1, count, seed).questions
    scores = scored(question.traces, seed)
    longest = max(question.prompt_tokens + trace.tokens for trace in question.traces)
    blocks = max(longest, round(budget * count * 350)) // 16 + 2
    plain = Setting(method, EngineShape(blocks), Pruning(aggregator), vote)
    schedule = run_question(plain, question.traces, question.prompt_tokens, scores)
    whole = figures(schedule, plain, question.traces, Timing(), scores)
    stopping = Setting(method, plain.shape, plain.pruning, vote, StopRule(UNBEATABLE))
    found = figures(schedule, stopping, question.traces, Timing(), scores)
    assert whole["decided"] == whole["changed"] == 0
    assert found["changed"] == 0
    assert found["accuracy"] == whole["accuracy"]
    for name in ("seconds", "tokens", "pruned", "preemptions"):
        assert found[name] <= whole[name]
    assert found["decided"] > 0 or found == whole


def test_stopping_saves_time_on_most_questions_and_likely_saves_more():
    pool = draw_pool(SMALL, 40, 16, seed=3)
    names = "sc,sc+decided,sc+likely,step,step+decided,step+likely"
    config = SimulateConfig(
        "unused", drawn=SMALL, num_traces=[16], kv_budget=[0.4], methods=names, likely_threshold=0.9
    )
    cells = {
        cell.method: cell.figures
        for scorer in (None, 0.7)
        for cell in run_task(config, pool, Timing(), (1.0, scorer))
    }
    assert cells.keys() == set(names.split(","))
    for plain in ("sc", "step"):
        whole, sure, likely = (cells[plain + suffix] for suffix in ("", "+decided", "+likely"))
        assert np.mean(sure["seconds"]) < 0.9 * np.mean(whole["seconds"])
        assert np.mean(likely["seconds"]) < 0.9 * np.mean(sure["seconds"])
        assert np.mean(np.array(sure["decided"]) > 0) > 0.5
        assert sum(sure["changed"]) == 0
        assert np.mean(likely["changed"]) < 0.2


def test_a_method_is_simulated_as_without_those_that_stop():
    pool = draw_pool(SMALL, 6, 8, seed=1)
    found = []
    for methods in ("sc,step", "sc,sc+decided,step,step+decided"):
        config = SimulateConfig(
            "unused", drawn=SMALL, num_traces=[8], kv_budget=[0.3], methods=methods
        )
        cells = [c for s in (None, 0.7) for c in run_task(config, pool, Timing(), (1.0, s))]
        found.append({c.method: c.figures for c in cells})
    assert {name: found[1][name] for name in found[0]} == found[0]


def hundred(tokens, answer):
    return PoolTrace(tokens, (), answer, answer == "a")


def stops(traces, rule, vote="uniform", scores=None):
    """Return after how many ended traces a rule calls the vote decided."""
    schedule = simulate(EngineShape(1000), [SimulatedTrace("q", 5, t.tokens) for t in traces])
    voting = Voting(traces, vote, "mean", scores)
    return [(place + 1, decision.answer) for place, decision in voting.decisions(schedule, rule)]


def test_the_leader_is_sure_when_the_rest_cannot_catch_it():
    traces = [hundred(10 * (n + 1), answer) for n, answer in enumerate("aabaab")]
    assert stops(traces, StopRule())[0] == (4, "a")
    assert stops(traces, StopRule(NEVER)) == []
    # A trace without an answer can add nothing, once it has ended.
    traces[2] = hundred(30, None)
    assert stops(traces, StopRule())[0] == (4, "a")


def test_likely_says_nothing_before_a_few_votes_nor_after_the_last():
    traces = [hundred(10 * (n + 1), "a") for n in range(8)]
    assert [count for count, _ in stops(traces, ANY)] == list(range(LEAST_VOTES, 8))


@pytest.mark.parametrize(("aggregator", "count"), [("min", 2), ("mean", 3)])
def test_a_score_that_cannot_rise_is_a_bound(aggregator, count):
    # The lead is 1.8. Each of two others can still come to 1, or to no more than its lowest step.
    ended = [PoolTrace(60 + 10 * n, (5,), "a", True, scores=(0.9,)) for n in range(2)]
    others = [PoolTrace(80 + 10 * n, (5, 70), "b", False, scores=(0.3, 0.3)) for n in range(2)]
    traces = [*ended, *others]
    schedule = simulate(EngineShape(1000), [SimulatedTrace("q", 5, t.tokens) for t in traces])
    voting = Voting(traces, "score", aggregator)
    place, decision = next(voting.decisions(schedule, StopRule()))
    assert (place + 1, decision.answer) == (count, "a")


@pytest.mark.parametrize("vote", ["best", "score-top-3"])
def test_a_vote_without_a_bound_is_open_to_the_end(vote):
    traces = [hundred(10 * (n + 1), "a") for n in range(8)]
    scores = [[0.9]] * 8
    assert stops(traces, StopRule(), vote, scores) == []
    assert stops(traces, ANY, vote, scores) == []


@pytest.mark.parametrize("vote", ["uniform", "score", "score^4"])
def test_no_vote_weighs_more_than_its_bound(vote):
    assert max(vote_rule(vote)([None, 0.0, 0.3, 1.0])) <= most_weight(vote)


def test_a_cut_schedule_has_every_trace_once_and_the_work_up_to_there():
    [question] = draw_pool(SMALL, 1, 12, seed=0).questions
    pool = draw_pool(SMALL, 1, 12, seed=0)
    shape = engine_shape(SimulateConfig("unused"), pool, 12, 0.3)
    setting = Setting("step", shape, Pruning())
    scores = scored(question.traces, 0)
    whole = run_question(setting, question.traces, question.prompt_tokens, scores)
    assert whole.pruned
    for place in range(12):
        cut = whole.decided_at(place)
        assert sorted(cut.order) == list(range(12))
        assert {*cut.pruned, *cut.decided, *finished(cut)} == set(range(12))
        assert cut.order[: place + 1] == whole.order[: place + 1]
        assert all(a <= b for a, b in zip(cut.tokens, whole.tokens, strict=True))
        assert max(cut.ended_after.values()) == cut.work == whole.ended_after[whole.order[place]]
    assert whole.decided_at(11).tokens == whole.tokens


def test_names_of_methods_that_stop():
    assert method_label("step") == "STEP"
    assert method_label("step+decided") == "STEP+decided"
    assert method_label("random+likely") == "random victim+likely"


def test_what_stops_shows_its_own_columns(tmp_path, capsys):
    options = ["--limit", "4", "--num-traces", "[8]", "--kv-budget", "[0.3]", "--auroc", "[0.7]"]
    headings = ("needed", "changed")
    for methods, shown in (("sc,step", False), ("sc,step+decided", True)):
        out = tmp_path / methods
        command(["simulate", *options, "--methods", methods, "--out", str(out)])
        printed, page = capsys.readouterr().out, (out / "simulation.html").read_text()
        assert all((word in printed) == shown for word in headings)
        assert ("<th>Not needed</th><th>Answers changed</th>" in page) == shown
    cells = json.loads((out / "simulation.json").read_text())["cells"]
    [found] = [cell["figures"] for cell in cells if cell["method"] == "step+decided"]
    assert found["changed"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["decided"]["value"] > 0


def test_likely_without_a_threshold_is_refused_before_anything_is_simulated(tmp_path):
    argv = ["simulate", "--methods", "sc,step+likely", "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"likely with the vote score in the scorer card"):
        command(argv)
    assert not (tmp_path / "out").exists()
