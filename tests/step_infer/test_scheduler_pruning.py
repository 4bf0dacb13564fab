"""The real StepScheduler when memory is short: who is stopped, who waits, and what is left."""

import dataclasses
import random

import pytest
from kv_connectors import keeping
from places import SCORER
from scheduler_harness import (
    BOUNDARY,
    EOS,
    RULE,
    WORD,
    Engine,
    Script,
    check_empty,
    make_scheduler,
    row_score,
    stride_rule,
)
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import FinishReason

from step_infer import compat
from step_infer.scheduler import StepScheduler
from step_infer.settings import RequestOptions

pytestmark = pytest.mark.oldest

STEP = (WORD, WORD, WORD, BOUNDARY)
FAILED = {
    "error": "Expected an engine that scores, found one whose scoring failed. Hint: see its log."
}


def trace(name, group, steps=10, prompt=(WORD,) * 3, **options):
    options = None if group is None else {"group": group, **options}
    return Script(name, prompt, (WORD + len(name), *STEP * steps, EOS), options=options)


def engine(num_blocks, in_flight=1, **shape):
    return Engine(make_scheduler(StepScheduler, num_blocks, **shape), in_flight)


def step_until(engine_, done):
    for _ in range(200):
        if done():
            return
        engine_.step()
    raise AssertionError("it never came to that")


def run(engine_, scripts):
    for script in scripts:
        engine_.add(script)
    engine_.run()
    check_empty(engine_.scheduler)
    return [name for name in engine_.ended if engine_.pruned(name)]


@pytest.mark.parametrize(
    ("in_flight", "asynchronous"),
    [(0, True), (1, True), (0, False), (1, False)],
    ids=["sync", "async", "plain", "stages"],
)
def test_short_memory_stops_the_lowest_scored_traces_and_preempts_nobody(in_flight, asynchronous):
    engine_ = engine(40, in_flight, asynchronous=asynchronous)
    pruned = run(engine_, [trace(f"t{n}", "g") for n in range(6)])
    assert pruned
    assert engine_.preemptions == 0
    survivors = [name for name in engine_.ended if name not in pruned]
    assert survivors
    for name in pruned:
        output = engine_.ended[name]
        assert output.finish_reason == FinishReason.ABORT
        report = engine_.report(name)
        assert report["pruned"] is True
        # When it was stopped, every survivor stood better.
        count = len(report["scores"])
        for other in survivors:
            scores = [row_score(other, p) for p in engine_.report(other)["positions"][:count]]
            finite = [score for score in scores if score == score]
            assert report["score"] <= sum(finite) / len(finite) + 1e-6


def test_other_groups_and_requests_are_left_alone():
    engine_ = engine(40)
    others = [trace("single", "alone"), trace("none", None)]
    pruned = run(engine_, [*others, *(trace(f"t{n}", "g") for n in range(4))])
    assert pruned
    assert set(pruned) <= {f"t{n}" for n in range(4)}


def test_min_keep_traces_stay_even_if_vllm_must_preempt():
    engine_ = engine(30)
    pruned = run(engine_, [trace(f"t{n}", "g", min_keep=5) for n in range(6)])
    assert len(pruned) == 1
    assert engine_.preemptions > 0


def test_a_finished_trace_counts_so_that_the_last_running_one_may_go():
    engine_ = engine(12)
    short, long = trace("short", "g", steps=1), trace("long", "g", steps=9)
    blocker = Script("blocker", (WORD,) * 3, (WORD,) * 40, max_tokens=40)
    assert run(engine_, [blocker, short, long]) == ["long"]
    assert engine_.preemptions == 0


def test_a_pruned_trace_is_reported_though_nothing_runs_any_more():
    engine_ = engine(8)
    assert run(engine_, [trace("ab", "g", steps=1), trace("abc", "g", steps=9)]) == ["abc"]


def test_newcomers_wait_while_a_group_that_lost_a_trace_runs():
    engine_ = engine(40)
    for n in range(6):
        engine_.add(trace(f"t{n}", "g"))
    step_until(engine_, lambda: any(map(engine_.pruned, engine_.runner.scripts)))
    engine_.add(trace("new", "other", steps=1))
    held = 0
    while any(name.startswith("t") for name in engine_.scheduler.requests):
        free = compat.free_blocks(engine_.scheduler)
        engine_.step()
        running = [request.request_id for request in engine_.scheduler.running]
        if "new" in running:
            assert free > 15
            break
        held += 1
        assert engine_.scheduler.pause_state == PauseState.UNPAUSED
    assert held > 0
    engine_.run()
    assert engine_.tokens["new"] == engine_.runner.scripts["new"].generated()
    check_empty(engine_.scheduler)


def steps_until_it_runs(engine_, name, most=400):
    for number in range(most):
        engine_.step()
        if name in {request.request_id for request in engine_.scheduler.running}:
            return number
    return most


def pressed_engine(**settings):
    """Return an engine whose group g has lost a trace; some of it run on that cannot be lost."""
    engine_ = engine(40, max_num_seqs=64, **settings)
    for n in range(2):
        engine_.add(trace(f"stay{n}", "g", steps=35, prune=False))
    for n in range(4):
        engine_.add(trace(f"t{n}", "g", steps=35, min_keep=5))
    step_until(engine_, lambda: any(map(engine_.pruned, engine_.runner.scripts)))
    return engine_


def test_a_group_whose_traces_compete_no_more_holds_nobody_back():
    engine_ = pressed_engine(max_held_steps=None)
    engine_.abort([f"t{n}" for n in range(4) if not engine_.pruned(f"t{n}")])
    scheduler = engine_.scheduler
    assert [request.request_id for request in scheduler.running] == ["stay0", "stay1"]
    step_until(engine_, lambda: compat.free_blocks(scheduler) < 18)
    engine_.add(trace("new", "other", steps=1))
    assert steps_until_it_runs(engine_, "new") == 0
    assert compat.free_blocks(scheduler) < 20, "memory was not short: it shows nothing"
    assert len(scheduler.running) == 3


def test_a_group_that_presses_on_and_on_holds_another_for_a_limited_time():
    engine_ = pressed_engine(max_held_steps=5)
    scheduler = engine_.scheduler
    engine_.abort(["stay0", "stay1"])  # there is room, but not for newcomers
    step_until(engine_, lambda: compat.free_blocks(scheduler) < 18)
    engine_.add(trace("new", "other", steps=1))
    assert scheduler._pruned_groups == {"g"}
    assert steps_until_it_runs(engine_, "new") == 5
    assert scheduler._pruned_groups == {"g"}
    engine_.add(trace("later", "another", steps=1))
    assert steps_until_it_runs(engine_, "later") == 5


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_only_traces_that_compete_wait_for_memory(policy):
    engine_ = engine(40, policy=policy)
    for n in range(6):
        engine_.add(trace(f"t{n}", "g"))
    step_until(engine_, lambda: any(map(engine_.pruned, engine_.runner.scripts)))
    held = [trace(f"held{n}", "other", steps=1) for n in range(3)]
    free = [trace("plain", None, steps=1), Script("scored", (WORD,) * 3, (*STEP, EOS), options={})]
    free.append(trace("kept", "another", steps=1, prune=False))
    for script in [held[0], *free, *held[1:]]:
        engine_.add(script)
    scheduler = engine_.scheduler
    first_step = {}
    for number in range(400):
        if not engine_.busy:
            break
        waiting = [r.request_id for r in scheduler.waiting if r.request_id.startswith("held")]
        assert waiting == sorted(waiting)
        assert scheduler.get_request_counts()[1] == len(scheduler.waiting)
        engine_.step()
        for request in scheduler.running:
            first_step.setdefault(request.request_id, number)
    starts = [min(first_step[s.name] for s in held), max(first_step[s.name] for s in free)]
    assert starts[1] < starts[0], "a request that does not compete had to wait"
    assert [first_step[s.name] for s in held] == sorted(first_step[s.name] for s in held)
    for script in [*held, *free]:
        assert engine_.tokens[script.name] == script.generated()
    check_empty(scheduler)


def pruned_at_the_end(asynchronous):
    """Return how often a trace was stopped whose last token, for its length, was on its way."""
    found = 0
    for length in range(9, 30):
        for num_blocks in (10, 11, 12, 13):
            # So small a token budget that not all traces are in the same steps.
            shape = {"max_num_seqs": 3, "max_num_batched_tokens": 3}
            engine_ = engine(num_blocks, 1, asynchronous=asynchronous, **shape)
            prune = engine_.scheduler._prune

            def watched(trace_, engine_=engine_, prune=prune):
                nonlocal found
                name = trace_.request_id
                in_flight = any(name in step.num_scheduled_tokens for step, _ in engine_._queue)
                last = engine_.runner.scripts[name].max_tokens - 1
                found += in_flight and len(engine_.tokens[name]) == last
                prune(trace_)

            engine_.scheduler._prune = watched
            for n in range(3):
                prompt = (WORD + n,) * (2 + n)
                options = {"group": "g"}
                tokens = (*STEP * 20, EOS)
                engine_.add(Script(f"t{n}", prompt, tokens, length + 3 * n, options))
            engine_.run()
            del engine_.scheduler._prune
            check_empty(engine_.scheduler)
    return found


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "stages"])
def test_a_trace_whose_last_step_is_in_flight_is_not_stopped(monkeypatch, asynchronous):
    assert pruned_at_the_end(asynchronous) == 0
    monkeypatch.setattr(compat, "ends_in_flight", lambda *_: False)
    assert pruned_at_the_end(asynchronous) > 0, "the test shows nothing"


LATE = {
    "vLLM keeps them": (1, None),
    "a connector keeps them": (0, 5),
    "both keep them": (1, 5),
}
"""Why blocks come free late: outputs in flight, and the steps that a KV connector keeps them."""


def late(why):
    in_flight, steps = LATE[why]
    connector = None if steps is None else keeping(steps)
    engine_ = engine(40, in_flight, connector=connector, asynchronous=bool(in_flight), stages=1)
    # As vLLM sets it for a connector where steps overlap: one in flight may write the blocks.
    engine_.scheduler.defer_block_free = bool(in_flight)
    return engine_


def run_late(why):
    engine_ = late(why)
    pruned = run(engine_, [trace(f"t{n}", "g") for n in range(6)])
    assert not any(block.ref_cnt for block in engine_.scheduler._kept_back)
    return engine_, pruned


@pytest.mark.parametrize("why", LATE)
def test_where_blocks_come_free_late_one_trace_is_stopped_for_one_need(monkeypatch, why):
    engine_, pruned = run_late(why)
    assert pruned
    monkeypatch.setattr(compat, "own_blocks", lambda *_: [])
    _, without_counting = run_late(why)
    assert len(pruned) < len(without_counting), "the test shows nothing"
    if "connector" not in why and "both" not in why:
        assert engine_.preemptions == 0, "room is made a step before it is needed"


@pytest.mark.parametrize("why", LATE)
def test_where_blocks_come_free_late_the_worst_trace_is_stopped(why):
    engine_ = late(why)
    scheduler, prune = engine_.scheduler, engine_.scheduler._prune
    chosen = []

    def watched(trace_):
        running = [scheduler.live.traces.get(request.request_id) for request in scheduler.running]
        scores = [other.score for other in running if other and other.score is not None]
        chosen.append((trace_.score, min(scores)))
        prune(trace_)

    scheduler._prune = watched
    run(engine_, [trace(f"t{n}", "g") for n in range(6)])
    assert chosen
    assert all(score == worst for score, worst in chosen)


@pytest.mark.parametrize("why", LATE)
def test_blocks_that_come_free_late_are_counted_once(why):
    engine_ = late(why)
    scheduler = engine_.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    free, freed, prune = pool.free_blocks, [], scheduler._prune
    pruned = set()

    def watched_prune(trace_):
        [manager] = scheduler.kv_cache_manager.coordinator.single_type_managers
        blocks_ = manager.req_to_blocks[trace_.request_id]
        pruned.update(block.block_id for block in blocks_ if block.ref_cnt == 1)
        prune(trace_)

    def watched_free(blocks_):
        blocks_ = list(blocks_)
        free(blocks_)
        for block in blocks_:
            if block.ref_cnt == 0 and block.block_id in pruned:
                pruned.remove(block.block_id)
                freed.append(block.block_id)

    scheduler._prune, pool.free_blocks = watched_prune, watched_free
    run(engine_, [trace(f"t{n}", "g") for n in range(6)])
    assert not pruned
    assert scheduler.counters.totals.freed_kv_blocks == len(freed) > 0


def test_a_connector_and_the_scores_share_one_reply():
    engine_, pruned = run_late("a connector keeps them")
    kept = engine_.scheduler.connector.kept
    assert set(kept) == set(engine_.ended)
    for name, output in engine_.ended.items():
        params = output.kv_transfer_params
        assert "scores" in params["step"]
        # vLLM tells nobody what a connector says of a request that is stopped from outside.
        assert params.keys() == ({"step"} if name in pruned else {"step", "blocks"})


def test_nothing_is_pruned_while_the_engine_is_paused():
    engine_ = engine(40)
    for n in range(6):
        engine_.add(trace(f"t{n}", "g"))
    scheduler = engine_.scheduler
    step_until(
        engine_,
        lambda: compat.free_blocks(scheduler) <= 1 and compat.growth_blocks(scheduler) > 0,
    )
    taken = scheduler.kv_cache_manager.block_pool.get_new_blocks(compat.free_blocks(scheduler))
    live = set(scheduler.requests)
    scheduler.set_pause_state(PauseState.PAUSED_ALL)
    for _ in range(4):
        scheduler.finished_req_ids.add("gone")  # keeps the engine stepping
        engine_.step()
    assert not any(map(engine_.pruned, live))
    scheduler.set_pause_state(PauseState.UNPAUSED)
    scheduler.kv_cache_manager.block_pool.free_blocks(taken)
    engine_.run()
    check_empty(scheduler)


def test_growth_of_a_long_prefill_that_is_alone_is_not_underrated():
    # Newer vLLM versions give a request that is alone its whole budget.
    engine_ = engine(60, long_prefill=8, in_flight=0)
    scheduler = engine_.scheduler
    engine_.add(trace("long", "g", prompt=tuple(WORD + n % 90 for n in range(150))))
    for _ in range(30):
        free = compat.free_blocks(scheduler)
        growth = compat.growth_blocks(scheduler)
        was_running = bool(scheduler.running)
        engine_.step()
        if was_running and scheduler.running:
            assert free - compat.free_blocks(scheduler) == growth
    engine_.run()


@pytest.mark.parametrize(
    ("in_flight", "asynchronous", "drafts"),
    [(0, True, 0), (1, True, 0), (0, False, 0), (1, False, 0), (0, False, 3), (1, True, 3)],
    ids=["one", "two", "one plain", "two plain", "drafts", "drafts in flight"],
)
@pytest.mark.parametrize("budget", [16, 64])
def test_growth_is_what_the_running_requests_then_take(in_flight, budget, asynchronous, drafts):
    random_ = random.Random(budget)
    shape = {"max_num_batched_tokens": budget, "asynchronous": asynchronous, "drafts": drafts}
    engine_ = engine(400, in_flight, prune=False, **shape)
    scheduler = engine_.scheduler

    def held(names):
        blocks = scheduler.kv_cache_manager
        return sum(sum(compat.held_blocks(blocks, name)) for name in names)

    grown = 0
    for number in range(900):
        if number < 100 and random_.random() < 0.4:
            prompt = tuple(random_.choices(range(WORD, 90), k=random_.randint(1, 40)))
            script = trace(f"t{number}", "g", random_.randint(1, 12), prompt)
            engine_.add(dataclasses.replace(script, max_tokens=random_.choice([5, 9, 10_000])))
        names = [request.request_id for request in scheduler.running]
        growth, before = compat.growth_blocks(scheduler), held(names)
        assert growth <= compat.most_growth_blocks(scheduler)
        schedule = scheduler.schedule

        def watched(names=names, growth=growth, before=before, schedule=schedule):
            output = schedule()
            assert held(names) - before == growth
            return output

        scheduler.schedule = watched
        engine_.step()
        del scheduler.schedule
        grown += growth
    assert not engine_.busy
    assert grown > 80
    assert bool(engine_.runner.accepted) == bool(drafts)
    assert engine_.preemptions == 0


def check_disabled_once(engine_, caplog, cause):
    """Check that scoring is off and that the log says so once, with the error that caused it."""
    assert engine_.scheduler.disabled
    assert engine_.scheduler.counters.totals.disabled == 1
    (record,) = [r for r in caplog.records if "off from now on" in r.getMessage()]
    assert record.levelname == "ERROR"
    assert (cause in record.exc_text) if cause else not record.exc_info
    # Nobody who asks later is scored or stopped, but each hears of it.
    engine_.add(trace("later", "g"))
    engine_.add(trace("not scored", None))
    assert not engine_.scheduler.live.traces
    engine_.run()
    assert engine_.report("later") == FAILED
    assert engine_.ended["not scored"].kv_transfer_params is None
    for name in ("later", "not scored"):
        assert engine_.tokens.pop(name) == engine_.runner.scripts.pop(name).generated()
    assert not engine_.scheduler._refused


def test_a_score_that_raises_switches_scoring_off_and_generation_goes_on(caplog):
    engine_ = engine(60)
    scripts = [trace(f"t{n}", "g") for n in range(6)]
    for script in scripts:
        engine_.add(script)
    for _ in range(5):
        engine_.step()

    def broken(*args):
        raise RuntimeError("broken")

    engine_.scheduler.live.take_scores = broken
    engine_.run()
    check_disabled_once(engine_, caplog, "RuntimeError: broken")
    for script in scripts:
        assert engine_.tokens[script.name] == script.generated()
        assert engine_.ended[script.name].finish_reason == FinishReason.STOP
    assert not engine_.scheduler.live.traces
    assert not engine_.scheduler.requests


def test_options_that_raise_cost_their_own_request_its_scores_only(monkeypatch, caplog):
    read = RequestOptions.from_extra_args

    def fails_once(extra_args):
        monkeypatch.setattr(RequestOptions, "from_extra_args", read)
        raise RuntimeError("broken")

    engine_ = engine(60)
    monkeypatch.setattr(RequestOptions, "from_extra_args", fails_once)
    for name in ("first", "second"):
        engine_.add(trace(name, "g"))
    engine_.run()
    assert engine_.report("first") == FAILED
    assert engine_.report("second")["scores"]
    assert "Request 'first' is not scored." in caplog.text
    check_empty(engine_.scheduler)


def test_an_abort_that_cannot_be_noted_switches_scoring_off_and_reaches_nobody(caplog):
    engine_ = engine(60)
    scripts = [trace(f"t{n}", "g") for n in range(3)]
    for script in scripts:
        engine_.add(script)
    engine_.step()

    def broken(*args):
        raise RuntimeError("broken")

    engine_.scheduler.reports.abort = broken
    engine_.abort(["t0"])
    engine_.run()
    check_disabled_once(engine_, caplog, "RuntimeError: broken")
    for script in scripts[1:]:
        assert engine_.tokens[script.name] == script.generated()
    assert not engine_.scheduler.requests


def test_a_pruned_trace_that_cannot_be_counted_still_ends_for_its_client(monkeypatch, caplog):
    engine_ = engine(40)
    monkeypatch.setattr(engine_.scheduler.counters, "prune", lambda *args: 1 / 0)
    for n in range(6):
        engine_.add(trace(f"t{n}", "g"))
    engine_.run()
    check_disabled_once(engine_, caplog, "ZeroDivisionError")
    assert [engine_.pruned(f"t{n}") for n in range(6)].count(True) == 1
    assert {f"t{n}" for n in range(6)} <= engine_.ended.keys()


def test_a_worker_that_does_not_score_is_named_once(caplog):
    engine_ = engine(40, scorer=str(SCORER))
    for n in range(6):
        engine_.add(trace(f"t{n}", "g"))
    while engine_.busy:
        engine_.step(rows_missing=True)
    assert not any(map(engine_.pruned, engine_.ended))
    assert engine_.scheduler.counters.totals.dropped_scores > 1
    (record,) = [r for r in caplog.records if "came without scores" in r.getMessage()]
    assert "Expected worker_cls step_infer.worker.StepWorker, found vllm." in record.getMessage()


def test_scoring_that_fails_in_the_worker_stops_pruning_too(caplog):
    engine_ = engine(40)
    for n in range(6):
        engine_.add(trace(f"t{n}", "g"))
    for _ in range(12):
        engine_.step()
    assert any(t.num_scored for t in engine_.scheduler.live.traces.values())
    assert not any(map(engine_.pruned, engine_.runner.scripts))
    while engine_.busy:
        engine_.step(rows_failed=True)
    check_disabled_once(engine_, caplog, None)
    assert engine_.preemptions > 0
    for name, script in engine_.runner.scripts.items():
        assert engine_.tokens[name] == script.generated()
        assert engine_.report(name) == FAILED
    assert not engine_.scheduler.live.traces


def test_a_policy_that_raises_switches_pruning_off_and_vllm_preempts(monkeypatch, caplog):
    engine_ = engine(40)
    monkeypatch.setattr("step_infer.policy.pick_victim", lambda *args: 1 / 0)
    for n in range(6):
        engine_.add(trace(f"t{n}", "g"))
    engine_.run()
    check_disabled_once(engine_, caplog, "ZeroDivisionError")
    assert engine_.preemptions > 0
    for name, script in engine_.runner.scripts.items():
        assert engine_.tokens[name] == script.generated()


def test_a_group_id_used_again_begins_anew():
    engine_ = engine(40)
    for _ in range(3):
        names = [f"t{n}" for n in range(6)]
        for n, name in enumerate(names):
            engine_.add(trace(name, "g", steps=8 + n % 2))
        assert engine_.scheduler.live.kept == {"g": 6}
        engine_.run()
        assert 1 <= sum(not engine_.pruned(name) for name in names) < 6
        check_empty(engine_.scheduler)
        engine_.ended.clear()


def test_ten_thousand_groups_leave_nothing_behind():
    engine_ = engine(200, max_num_seqs=64, max_num_batched_tokens=256)
    for number in range(10_000):
        for index in range(2):
            name = f"{index}_{number}"
            tokens = (WORD, BOUNDARY, WORD, EOS)[: 2 + number % 3]
            options = {} if number % 2 else {"group": f"g{number}"}
            engine_.add(Script(name, (WORD + number % 90,), (*tokens, EOS), options=options))
        if number % 30 == 29:
            for _ in range(3):
                engine_.step()
            engine_.ended.clear()
    engine_.run()
    check_empty(engine_.scheduler)
    left = {
        name: len(table)
        for owner in (engine_.scheduler, engine_.scheduler.live, engine_.scheduler.reports)
        for name, table in vars(owner).items()
        if isinstance(table, dict | set | list) and len(table) > 16
    }
    assert left == {}


def quick(name, group, **options):
    """Return a trace that ends with its first token: it is never scored."""
    return Script(name, (WORD,) * 3, (EOS,), options={"group": group, **options})


def test_traces_that_end_without_a_step_score_cost_their_group_nobody():
    engine_ = engine(40)
    own = [trace(f"t{n}", "g", steps=15, min_keep=4) for n in range(6)]
    for script in own:
        engine_.add(script)
    for _ in range(3):
        engine_.step()
    for n in range(8):
        engine_.add(quick(f"quick{n}", "g"))
    engine_.run()
    check_empty(engine_.scheduler)
    assert all(engine_.ended[f"quick{n}"].finish_reason == FinishReason.STOP for n in range(8))
    assert sum(engine_.pruned(script.name) for script in own) == 2


def test_who_joins_a_group_cannot_lower_the_number_that_it_keeps():
    engine_ = engine(40)
    own = [trace(f"t{n}", "g", steps=12, min_keep=5) for n in range(5)]
    for script in [*own, trace("joiner", "g", steps=20)]:
        engine_.add(script)
    engine_.run()
    check_empty(engine_.scheduler)
    assert sum(map(engine_.pruned, engine_.ended)) == 1
    assert engine_.preemptions > 0


def test_min_keep_holds_for_traces_that_wait_too():
    engine_ = engine(40, max_num_seqs=5)
    for n in range(5):
        engine_.add(trace(f"t{n}", "g", steps=12))
    engine_.add(trace("waits", "g", steps=12, min_keep=6))
    while "waits" in {request.request_id for request in engine_.scheduler.waiting}:
        engine_.step()
        assert not any(map(engine_.pruned, engine_.ended))
    engine_.run()
    check_empty(engine_.scheduler)


def groups_of(owners, **settings):
    """Return the group of each trace of "g", by the caller and the cache salt that it came with."""
    engine_ = engine(40, **settings)
    add = engine_.scheduler.add_request
    marks = iter(owners)

    def owned(request):
        caller, request.cache_salt = next(marks)
        if caller is not None:
            request.sampling_params.extra_args["step_caller"] = caller
        add(request)

    engine_.scheduler.add_request = owned
    for n in range(len(owners)):
        engine_.add(trace(f"t{n}", "g", steps=2))
    traces = engine_.scheduler.live.traces
    groups = [traces[f"t{n}"].group for n in range(len(owners)) if f"t{n}" in traces]
    del engine_.scheduler.add_request
    engine_.run()
    check_empty(engine_.scheduler)
    return groups, engine_


@pytest.mark.parametrize("place", [0, 1], ids=["caller", "salt"])
def test_callers_who_are_told_apart_do_not_share_a_group(place):
    owners = [(name, None)[:: 1 - 2 * place] for name in ("mine", "mine", "yours", None)]
    groups, _ = groups_of(owners)
    assert groups[0] == groups[1]
    assert len(set(groups)) == 3
    assert groups[3] == "g"
    assert "mine" not in groups[0], "what tells callers apart is a secret"


def test_one_callers_salts_do_not_share_a_group_either():
    owners = [("mine", "a"), ("mine", "b"), ("mine", None), (None, "mine"), ("minea", None)]
    groups, _ = groups_of(owners)
    assert len(set(groups)) == len(owners)


def test_with_private_groups_an_unknown_caller_cannot_name_one():
    owners = [("mine", None), (None, None), ("", "salt"), ("mine", None)]
    groups, engine_ = groups_of(owners, private_groups=True)
    assert len(groups) == 2
    assert len(set(groups)) == 1
    for name in ("t1", "t2"):
        assert engine_.report(name) == {
            "error": "Expected a group of a known caller, found 'g' of an unknown one. "
            "Hint: send plain JSON to step-serve, or name no group."
        }
        assert engine_.ended[name].finish_reason == FinishReason.STOP


def test_with_private_groups_the_choices_of_one_request_are_a_group_of_their_own():
    engine_ = engine(40, private_groups=True)
    for n in range(2):
        engine_.add(Script(f"{n}_parent", (WORD,) * 3, (*STEP * 2, EOS), options={}))
    engine_.add(Script("alone", (WORD,) * 3, (*STEP * 2, EOS), options="{}"))
    traces = engine_.scheduler.live.traces
    assert traces["0_parent"].group == traces["1_parent"].group == "\0parent"
    assert traces["alone"].group is None
    engine_.run()
    check_empty(engine_.scheduler)


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize(
    ("step", "error"),
    [
        (5, "Expected an object as step option, found 5."),
        (True, "Expected an object as step option, found True."),
        (["g"], "Expected an object as step option, found ['g']."),
        ("", "Expected a group name as step option, found a blank one."),
        ("g" * 257, "Expected step option group of at most 256 characters, found 257."),
    ],
)
def test_an_opt_in_that_cannot_be_used_is_answered_with_the_reason(step, error, in_flight):
    engine_ = engine(40, in_flight)
    engine_.add(Script("bad", (WORD,) * 3, (*STEP, EOS), options=step))
    engine_.add(trace("good", "g", steps=2))
    engine_.run()
    check_empty(engine_.scheduler)
    assert engine_.tokens["bad"] == [*STEP, EOS]
    assert engine_.report("bad") == {"error": error}
    assert engine_.report("good")["scores"]


def test_a_refused_opt_in_that_is_aborted_leaves_nothing_behind():
    engine_ = engine(40)
    engine_.add(Script("bad", (WORD,) * 3, (*STEP * 9, EOS), options="\0"))
    engine_.step()
    engine_.abort(["bad"])
    engine_.run()
    check_empty(engine_.scheduler)


def test_a_request_name_cannot_forge_lines_of_the_log(caplog):
    engine_ = engine(40)
    name = "a\nERROR forged \x1b[31m" + "x" * 1000
    engine_.add(Script(name, (WORD,) * 3, (EOS,), options="\0"))
    engine_.run()
    (record,) = [r for r in caplog.records if "is not scored" in r.getMessage()]
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 300


@pytest.mark.parametrize("stride", [0, 4])
def test_a_choice_that_is_aborted_is_reported_with_the_confidence_of_all_its_tokens(stride):
    rule = stride_rule(stride) if stride else RULE
    engine = Engine(
        make_scheduler(StepScheduler, 200, confidence=True, boundary=rule.to_dict()), in_flight=1
    )
    tokens = (WORD, BOUNDARY, *[WORD] * 29, EOS)
    for name in ("0_p", "1_p"):
        engine.add(Script(name, tuple(range(WORD, WORD + 9)), tokens, options={}))
    for _ in range(15):
        engine.step()
    engine.abort(["0_p"])
    seen = len(engine.tokens["0_p"])
    assert seen > 8
    engine.run()
    aborted, finished = engine.report("1_p")["choices"]
    for name, choice, count in (("0_p", aborted, seen), ("1_p", finished, len(tokens))):
        mean = sum(engine.runner.confidence[name, index] for index in range(count)) / count
        assert choice["confidence"] == pytest.approx(mean)
