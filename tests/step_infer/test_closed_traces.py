"""What the scheduler does with traces that their client ends, and says why."""

import pytest
from scheduler_harness import BOUNDARY, EOS, WORD, Engine, Script, check_empty, make_scheduler
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from step_infer.scheduler import StepScheduler
from step_infer.settings import RequestOptions
from step_infer.wire import CONFIG_KEY, because, told_apart

pytestmark = pytest.mark.oldest

STEP = (WORD, WORD, WORD, BOUNDARY)


def script(name, steps=6, **options):
    return Script(name, (WORD,) * 3, (*STEP * steps, EOS), options={"group": "g", **options})


def running(scheduler_class, names, steps=6, **settings):
    engine = Engine(make_scheduler(scheduler_class, 100, **settings))
    for name in names:
        engine.add(script(name))
    for _ in range(steps):
        engine.step()
    return engine


def test_ids_and_reasons_survive_aborts_that_are_joined():
    joined = [*because("decided", ["a", "b"]), "c", *because("over_budget", ["d"]), "e"]
    ids, why = told_apart(joined)
    assert ids == ["a", "b", "c", "d", "e"]
    assert why == {"a": "decided", "b": "decided", "d": "over_budget"}


def test_each_reason_is_counted_and_written_into_the_event_log(tmp_path):
    path = tmp_path / "events.jsonl"
    engine = running(StepScheduler, ["a", "b", "c", "d", "e"], event_log=str(path))
    engine.abort([*because("decided", ["a", "b"]), *because("over_budget", ["c"]), "d"])
    engine.run()
    check_empty(engine.scheduler)
    totals = engine.scheduler.counters.totals
    assert (totals.decided, totals.over_budget) == (2, 1)
    engine.scheduler.events.flush()
    lines = path.read_text().splitlines()
    for name, reason in (("a", "decided"), ("b", "decided"), ("c", "over_budget")):
        (line,) = [line for line in lines if f'"request":"{name}"' in line]
        assert '"event":"abort"' in line
        assert f'"reason":"{reason}"' in line
    (line,) = [line for line in lines if '"request":"d"' in line]
    assert '"event":"abort"' in line
    assert "reason" not in line
    assert list(engine.ended) == ["e"]


def test_the_summary_line_tells_them_apart():
    engine = running(StepScheduler, ["a", "b"])
    engine.abort(because("decided", ["a"]))
    assert "1 traces ended as their vote was decided" in engine.scheduler.counters.summary(1e9)


def test_stock_vllm_passes_the_marks_over():
    engine = running(AsyncScheduler, ["a", "b"])
    engine.abort(because("decided", ["a"]))
    engine.run()
    assert list(engine.ended) == ["b"]


def test_blocks_are_free_as_soon_as_the_traces_are_ended():
    engine = running(StepScheduler, ["a", "b", "c"])
    pool = engine.scheduler.kv_cache_manager.block_pool
    held = pool.get_num_free_blocks()
    engine.abort(because("decided", ["a", "b", "c"]))
    assert pool.get_num_free_blocks() > held
    engine.run()
    check_empty(engine.scheduler)


def test_a_trace_that_asks_hears_of_each_new_score_and_one_that_may_branch_of_all_so_far():
    engine = Engine(make_scheduler(StepScheduler, 100))
    engine.add(script("asks", progress=True))
    engine.add(script("may_branch", branch=True))
    engine.add(script("does_not"))
    heard = {"asks": [], "may_branch": [], "does_not": []}
    pool, spare = engine.scheduler.kv_cache_manager.block_pool, []
    while engine.busy:
        _, outputs = engine.step()
        for client in (outputs or {}).values():
            for output in client.outputs:
                if output.kv_transfer_params and output.finish_reason is None:
                    heard[output.request_id].append(output.kv_transfer_params[CONFIG_KEY])
                    if output.request_id == "may_branch":  # of 101 blocks; half stay free
                        spare.append(4 * (pool.get_num_free_blocks() - 51))
    assert heard["does_not"] == []
    for name in ("asks", "may_branch"):
        report = engine.report(name)
        assert len(heard[name]) in (len(report["scores"]) - 1, len(report["scores"]))
        for number, said in enumerate(heard[name], 1):
            finite = [score for score in report["scores"][:number] if score is not None]
            score = pytest.approx(sum(finite) / len(finite)) if finite else None
            lists = {
                "positions": report["positions"][:number],
                "scores": report["scores"][:number],
                "spare_tokens": spare[number - 1],
            }
            assert said == {"score": score} | (lists if name == "may_branch" else {})


@pytest.mark.parametrize("option", ["progress", "branch"])
def test_progress_is_yes_or_no(option):
    with pytest.raises(ValueError, match=f"option {option} true or false, found 'yes'"):
        RequestOptions.from_extra_args({CONFIG_KEY: {option: "yes"}})
