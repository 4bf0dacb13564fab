"""The scheduler of the ablations: who is stopped goes by another number, and nothing else does."""

import pytest
from scheduler_harness import BOUNDARY, EOS, WORD, Engine, Script, check_empty, make_scheduler

from step_eval.methods.victim_scheduler import RankedOptions, VictimScheduler
from step_eval.methods.victims import VICTIMS
from step_infer.errors import InputError
from step_infer.scheduler import StepScheduler

pytestmark = pytest.mark.oldest

STEP = (WORD, WORD, WORD, BOUNDARY)


def trace(name, steps=10, **options):
    tokens = (WORD + len(name), *STEP * steps, EOS)
    return Script(name, (WORD,) * 3, tokens, options={"group": "g", **options})


def engine(num_blocks, in_flight=1, **settings):
    return Engine(make_scheduler(VictimScheduler, num_blocks, **settings), in_flight)


def run(engine_, scripts):
    for script in scripts:
        engine_.add(script)
    engine_.run()
    check_empty(engine_.scheduler)
    return [name for name in engine_.ended if engine_.pruned(name)]


def stopped(victim, in_flight=1, ranks=(None,) * 6, **settings):
    """Return the traces t0 to t5 in the order in which they are stopped."""
    engine_ = engine(40, in_flight, victim=victim, confidence=True, **settings)
    scripts = [
        trace(f"t{n}", **({} if rank is None else {"rank": rank})) for n, rank in enumerate(ranks)
    ]
    found = run(engine_, scripts)
    assert engine_.preemptions == 0
    return engine_, found


@pytest.mark.parametrize("in_flight", [0, 1], ids=["sync", "async"])
def test_a_rank_that_comes_with_the_request_decides_who_is_stopped(in_flight):
    ranks = [3, -1.5, 6, 0, 5, 4]
    _, found = stopped("rank", in_flight, ranks)
    assert len(found) >= 2
    assert found == [f"t{n}" for n in sorted(range(6), key=lambda n: ranks[n])][: len(found)]


def test_an_oracle_stops_every_wrong_trace_before_a_right_one():
    right = [1, 0, 1, 0, 0, 1]
    engine_, found = stopped("rank", ranks=[float(r) for r in right], min_keep=2)
    assert len(found) >= 3
    assert {"t1", "t3", "t4"} >= set(found[:3])
    assert stopped("score", min_keep=2)[1] != found
    assert all("score" in engine_.report(name) for name in found)


@pytest.mark.parametrize("victim", ["youngest", "longest"])
def test_the_length_decides_who_is_stopped(victim):
    engine_ = engine(40, victim=victim)
    for n in range(6):
        engine_.add(trace(f"t{n}"))
        for _ in range(2):  # each starts two tokens behind the one before it
            engine_.step()
    engine_.run()
    check_empty(engine_.scheduler)
    found = [name for name in engine_.ended if engine_.pruned(name)]
    expected = [f"t{n}" for n in range(6)]
    if victim == "youngest":
        expected.reverse()
    assert len(found) >= 2
    assert found == expected[: len(found)]


def test_the_least_confident_trace_is_stopped():
    engine_, found = stopped("least-confident")
    assert found
    of = engine_.runner.confidence
    gone = set()
    for name in found:
        count = len(engine_.tokens[name])
        means = {
            other: sum(of[other, i] for i in range(count)) / count
            for other in engine_.ended
            if other not in gone
        }
        assert engine_.report(name)["confidence"] == pytest.approx(means[name])
        assert means[name] == min(means.values())
        gone.add(name)


@pytest.mark.parametrize("victim", VICTIMS)
def test_unscored_traces_and_those_with_too_few_steps_stay_whoever_is_chosen(victim):
    settings = {"victim": victim, "confidence": True, "min_steps": 4}
    engine_ = engine(26, **settings)
    silent = [
        Script(f"silent{n}", (WORD,) * 3, (WORD,) * 40, max_tokens=40, options={"group": "g"})
        for n in range(2)
    ]
    found = run(engine_, [*silent, *(trace(f"t{n}") for n in range(4))])
    assert found
    assert all(name.startswith("t") for name in found)
    assert all(len(engine_.report(name)["scores"]) >= 4 for name in found)


def test_the_scheduler_itself_knows_no_ranks(caplog):
    engine_ = Engine(make_scheduler(StepScheduler, 40), 1)
    engine_.add(trace("a", rank=1.0))
    engine_.run()
    assert "found 'rank'" in engine_.report("a")["error"]
    assert "Expected a step option out of group, prune" in caplog.text
    assert "found 'rank'" in caplog.text


@pytest.mark.parametrize("rank", ["first", True, 10**400])
def test_a_rank_that_is_no_finite_number_is_refused(rank):
    with pytest.raises(InputError, match="rank to be a finite number, found "):
        RankedOptions.from_extra_args({"step": {"group": "a", "rank": rank}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"victim": "oldest"}, "least-confident, rank, found 'oldest'"),
        ({"victim": "least-confident"}, "confidence beside victim least-confident, found none"),
    ],
)
def test_a_victim_that_cannot_be_is_refused_at_the_start(settings, message):
    with pytest.raises(InputError, match=message):
        make_scheduler(VictimScheduler, 40, **settings)
