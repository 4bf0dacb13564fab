"""Where nothing is to be pruned, StepScheduler does exactly what vLLM's AsyncScheduler does."""

import random

import pytest
from scheduler_harness import (
    BOUNDARY,
    EOS,
    THINK_END,
    WORD,
    Engine,
    Script,
    blocks,
    check_blocks,
    check_empty,
    make_scheduler,
    plain,
    row_score,
)
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from step_infer import compat
from step_infer.scheduler import StepScheduler
from step_infer.wire import UNSCORED_ATTRIBUTE

pytestmark = pytest.mark.oldest

PREFIXES = [tuple(random.Random(n).choices(range(WORD, 90), k=30)) for n in range(3)]


def make_workload(seed, grouped, resets):
    """Return what happens at each step: arrivals, how many aborts, a reset of the prefix cache."""
    random_ = random.Random(seed)
    events = []
    number = 0
    for _ in range(40):
        arrivals = []
        for _ in range(random_.choice([0, 0, 1, 2, 5])):
            prefix = random_.choice(PREFIXES)[: random_.randint(1, 30)]
            tail = tuple(random_.choices(range(WORD, 90), k=random_.randint(0, 12)))
            tokens = random_.choices(
                [WORD, WORD + 1, BOUNDARY, THINK_END], [8, 8, 4, 0.3], k=random_.randint(1, 40)
            )
            options = random_.choice(
                [None, "a", "b", {"group": "c", "min_keep": 2}, {}] if grouped else [None, {}]
            )
            script = Script(
                f"r{number}",
                prefix + tail,
                (*tokens, EOS),
                random_.choice([1, 7, 10_000]),
                options,
                random_.randint(0, 2),
            )
            arrivals.append(script)
            number += 1
        events.append((arrivals, random_.choice([0] * 9 + [1]), resets and random_.random() < 0.02))
    return events


def check_tokens_for_the_first_stage(step):
    """It gets each token that it is to compute from the scheduler, which must know it by then."""
    cached = step.scheduled_cached_reqs
    for name, tokens in zip(cached.req_ids, cached.new_token_ids, strict=True):
        assert len(tokens) == step.num_scheduled_tokens[name]


def compare(
    seed, num_blocks, in_flight, *, kind=None, settings=None, grouped=True, resets=True, **shape
):
    """Run both schedulers side by side; return how many preemptions and ended requests they had."""
    random_ = random.Random(seed)
    vllms_own = kind or (AsyncScheduler if shape.get("asynchronous", True) else Scheduler)
    engines = [
        Engine(make_scheduler(vllms_own, num_blocks, **shape), in_flight),
        Engine(make_scheduler(StepScheduler, num_blocks, **(settings or {}), **shape), in_flight),
    ]
    theirs, ours = engines

    def step(abort=()):
        found = [engine.step(abort=abort) for engine in engines]
        assert plain(found[1][0]) == plain(found[0][0])
        if theirs.scheduler.use_pp and vllms_own is Scheduler and found[1][0] is not None:
            check_tokens_for_the_first_stage(found[1][0])
        assert plain(found[1][1]) == plain(found[0][1])
        assert blocks(ours.scheduler) == blocks(theirs.scheduler)
        assert list(ours.scheduler.requests) == list(theirs.scheduler.requests)
        assert ours.scheduler.get_request_counts() == theirs.scheduler.get_request_counts()

    for arrivals, num_aborts, reset in make_workload(seed, grouped, resets):
        for script in arrivals:
            for engine in engines:
                engine.add(script)
        live = list(theirs.scheduler.requests)
        gone = random_.sample(live, min(len(live), num_aborts))
        if random_.random() < 0.5:
            for engine in engines:
                engine.abort(gone)
            gone = []
        if reset:
            for engine in engines:
                engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        step(gone)
    for _ in range(2000):
        if not theirs.busy:
            break
        step()
    assert not theirs.busy
    assert not ours.busy
    for engine in engines:
        check_blocks(engine.scheduler)
        check_empty(engine.scheduler)
    for name, script in ours.runner.scripts.items():
        assert ours.tokens[name] == theirs.tokens[name]
        if name not in ours.aborted:
            assert ours.tokens[name] == script.generated()
    return ours.preemptions, len(ours.ended)


@pytest.mark.parametrize("in_flight", [0, 1], ids=["sync", "async"])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("v2_runner", [False, True], ids=["V1", "V2"])
def test_scoring_only_equals_vllm_step_by_step_though_memory_is_short(in_flight, policy, v2_runner):
    preemptions = ended = 0
    for seed in range(6):
        counts = compare(
            seed,
            num_blocks=40,
            in_flight=in_flight,
            settings={"prune": False},
            policy=policy,
            v2_runner=v2_runner,
        )
        preemptions, ended = preemptions + counts[0], ended + counts[1]
    assert preemptions > 20, "memory was not short: the test shows little"
    assert ended > 200


@pytest.mark.parametrize("in_flight", [0, 1], ids=["sync", "async"])
@pytest.mark.parametrize("long_prefill", [0, 8])
def test_pruning_equals_vllm_step_by_step_while_memory_is_not_short(in_flight, long_prefill):
    ended = 0
    for seed in range(6, 12):
        preemptions, count = compare(
            seed, num_blocks=300, in_flight=in_flight, resets=False, long_prefill=long_prefill
        )
        assert preemptions == 0
        ended += count
    assert ended > 200


@pytest.mark.parametrize("in_flight", [0, 1], ids=["sync", "async"])
def test_pruning_equals_vllm_where_no_request_has_a_group(in_flight):
    preemptions = sum(compare(seed, 40, in_flight, grouped=False)[0] for seed in range(4))
    assert preemptions > 10


@pytest.mark.parametrize("in_flight", [0, 1], ids=["one stage", "two stages"])
@pytest.mark.parametrize("prune", [False, True])
def test_without_async_scheduling_it_equals_vllms_plain_scheduler(in_flight, prune):
    preemptions = ended = 0
    for seed in range(6):
        counts = compare(
            seed,
            num_blocks=300 if prune else 40,
            in_flight=in_flight,
            settings={"prune": prune},
            resets=False,
            asynchronous=False,
        )
        preemptions, ended = preemptions + counts[0], ended + counts[1]
    assert (preemptions == 0) if prune else (preemptions > 20)
    assert ended > 200


@pytest.mark.parametrize("prune", [False, True])
def test_drafts_without_async_scheduling_are_scheduled_as_by_vllms_plain_scheduler(prune):
    """AsyncScheduler would schedule placeholders wherever the drafter had nothing to say."""
    preemptions = ended = 0
    for seed in range(3):
        counts = compare(
            seed,
            num_blocks=500 if prune else 60,
            in_flight=0,
            settings={"prune": prune},
            resets=False,
            asynchronous=False,
            drafts=3,
        )
        preemptions, ended = preemptions + counts[0], ended + counts[1]
    assert (preemptions == 0) if prune else (preemptions > 10)
    assert ended > 100


@pytest.mark.parametrize("options", ["a", {}], ids=["group", "no group"])
@pytest.mark.parametrize("in_flight", [0, 1], ids=["sync", "async"])
def test_the_worker_is_told_of_each_step_in_which_nobody_asks_for_scores(in_flight, options):
    engine = Engine(make_scheduler(StepScheduler, 100), in_flight)
    engine.add(Script("other", (WORD,) * 5, (WORD,) * 40 + (EOS,)))

    def unscored():
        return getattr(engine.step()[0], UNSCORED_ATTRIBUTE, False)

    assert [unscored() for _ in range(4)] == [True] * 4
    engine.add(Script("trace", (WORD,) * 5, (WORD, BOUNDARY, WORD, EOS), options=options))
    while "trace" not in engine.ended:
        assert not unscored()
    assert [unscored() for _ in range(4)] == [True] * 4
    engine.run()
    assert engine.report("trace")["positions"] == [1]
    assert engine.report("trace")["scores"] == [pytest.approx(row_score("trace", 1))]


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "sync"])
def test_without_settings_it_equals_vllm_step_by_step_whatever_requests_ask(asynchronous):
    """A short memory, traces in groups, and no settings under which they could be followed."""
    preemptions = 0
    for seed in range(4):
        counts = compare(
            seed,
            40,
            1,
            kind=AsyncScheduler,
            asynchronous=asynchronous,
            stages=1,
            has_settings=False,
        )
        preemptions += counts[0]
    assert preemptions > 10


def test_a_scheduler_without_settings_says_so_and_refuses_no_engine(monkeypatch, caplog):
    monkeypatch.setattr(compat, "unsupported_features", lambda config: "speculative decoding")
    engine = Engine(make_scheduler(StepScheduler, 40, has_settings=False))
    [line] = [r.getMessage() for r in caplog.records if "StepScheduler" in r.getMessage()]
    assert (
        line == 'StepScheduler scores and prunes nothing: additional_config has no "step" settings.'
    )
    engine.add(Script("a", (WORD,) * 3, (WORD, BOUNDARY, EOS), options={"group": "g"}))
    engine.run()
    assert engine.ended["a"].kv_transfer_params is None
    engine.scheduler.shutdown()


@pytest.mark.parametrize(
    ("stages", "vllms_own", "other"),
    [(1, AsyncScheduler, Scheduler), (2, Scheduler, AsyncScheduler)],
)
def test_without_async_scheduling_only_stages_wait_for_the_last_token(stages, vllms_own, other):
    def two_steps(kind):
        scheduler = make_scheduler(kind, 40, asynchronous=False, stages=stages)
        scheduler.add_request(Script("a", (WORD,) * 3, (WORD, EOS)).request(1.0))
        return [plain(scheduler.schedule()) for _ in range(2)]

    assert two_steps(StepScheduler) == two_steps(vllms_own)
    assert two_steps(other) != two_steps(vllms_own), "the test shows nothing"
