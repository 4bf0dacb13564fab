"""Branches in the real scheduler, by hundreds: memory, ends of parents, prefills in one piece."""

import random

import pytest
from scheduler_harness import (
    BOUNDARY,
    EOS,
    MAX_MODEL_LEN,
    WORD,
    Engine,
    Script,
    check_blocks,
    check_empty,
    make_scheduler,
)

from step_infer.scheduler import StepScheduler

PROMPT = tuple(range(WORD, WORD + 9))


def thoughts(random_: random.Random, count: int) -> tuple[int, ...]:
    return (*random_.choices([WORD, WORD + 1, BOUNDARY], k=count), EOS)


def child_of(engine: Engine, name: str, number: int, tokens: tuple[int, ...]) -> Script:
    """Return a request that goes on from a live trace's last scored boundary."""
    script, trace = engine.runner.scripts[name], engine.scheduler.live.traces[name]
    point = trace.positions[-1] + 1
    history = {
        "parent": name,
        "tokens": point,
        "scores": list(trace.scores),
        "confidences": list(trace.confidences),
    }
    whole = (*script.prompt, *engine.tokens[name])
    options = {"group": "q", "inherit": history}
    return Script(f"c{number}", whole[: len(PROMPT) + point], tokens, options=options)


def able(engine: Engine, longest: int) -> list[str]:
    """Return the live traces that could be parents: the client has what they have scored."""
    return [
        name
        for name, trace in engine.scheduler.live.traces.items()
        if trace.positions
        and trace.positions[-1] < trace.inherited + len(engine.tokens[name])
        and len(PROMPT) + trace.positions[-1] + 1 <= longest
    ]


@pytest.mark.parametrize("chunked", [True, False])
def test_a_thousand_branch_points_leave_nothing_behind(chunked):
    """Parents are aborted, pruned, or end by themselves while their children are being made."""
    # In one piece, a prefill may be as long as the context.
    scheduler = make_scheduler(
        StepScheduler,
        60,
        max_num_batched_tokens=64 if chunked else MAX_MODEL_LEN,
        chunked_prefill=chunked,
    )
    engine, random_ = Engine(scheduler), random.Random(chunked)
    branched = own = gone = 0
    for number in range(4):
        tokens = thoughts(random_, 60)
        engine.add(Script(f"r{number}", PROMPT, (WORD + number, *tokens), options={"group": "q"}))
    while branched < 1000:
        engine.step()
        check_blocks(scheduler)
        for name in able(engine, longest=120)[:2]:
            child = child_of(engine, name, branched, thoughts(random_, random_.randint(1, 30)))
            if random_.random() < 0.3:
                engine.abort([name])
                gone += 1
            engine.add(child)
            branched += 1
        if not scheduler.live.traces:  # all have ended: another one begins
            own += 1
            engine.add(Script(f"o{own}", PROMPT, thoughts(random_, 60), options={"group": "q"}))
        if len(scheduler.waiting) > 50:
            engine.abort([request.request_id for request in list(scheduler.waiting)[25:]])
    engine.run()
    check_empty(scheduler)
    assert gone > 100
    assert sum(engine.pruned(name) for name in engine.ended) > 20
    ended = [name for name, output in engine.ended.items() if name.startswith("c")]
    whole = [name for name in ended if not engine.pruned(name) and name not in engine.aborted]
    assert len(whole) > 100
    for name in whole:
        assert engine.tokens[name] == engine.runner.scripts[name].generated()
        inherited = engine.runner.scripts[name].options["inherit"]
        known = len(inherited["scores"])
        report = engine.report(name)
        assert report["scores"][:known] == inherited["scores"]
        assert report["positions"][known - 1] == inherited["tokens"] - 1


def test_a_child_whose_prefix_is_no_longer_cached_computes_it_in_one_piece():
    scheduler = make_scheduler(
        StepScheduler, 150, max_num_batched_tokens=MAX_MODEL_LEN, chunked_prefill=False
    )
    engine = Engine(scheduler)
    engine.add(Script("r0", PROMPT, (WORD, BOUNDARY) * 60, options={"group": "q"}))
    while len(engine.tokens["r0"]) < 100:
        engine.step()
    child = child_of(engine, "r0", 0, (WORD, BOUNDARY, WORD, EOS))
    engine.abort(["r0"])
    engine.run()
    assert scheduler.reset_prefix_cache()
    engine.add(child)
    first = 0
    while not first:
        scheduled, _ = engine.step()
        first = scheduled.num_scheduled_tokens.get("c0", 0)
    assert first == len(child.prompt) > 64
    engine.run()
    assert engine.tokens["c0"] == child.generated()
    assert len(engine.report("c0")["scores"]) == len(child.options["inherit"]["scores"]) + 1
    check_empty(scheduler)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_child_that_inherits_nearly_the_whole_context_ends_with_it(chunked):
    scheduler = make_scheduler(
        StepScheduler, 300, max_num_batched_tokens=MAX_MODEL_LEN, chunked_prefill=chunked
    )
    engine = Engine(scheduler)
    longest = MAX_MODEL_LEN - len(PROMPT)
    tokens = (*[WORD] * (longest - 4), BOUNDARY, *[WORD] * 3)
    engine.add(Script("r0", PROMPT, tokens, options={"group": "q"}))
    while engine.busy and not able(engine, MAX_MODEL_LEN):
        engine.step()
    child = child_of(engine, "r0", 0, (WORD,) * 9)
    assert len(child.prompt) == MAX_MODEL_LEN - 3
    engine.add(child)
    engine.run()
    assert engine.tokens["c0"] == [WORD] * 3
    assert str(engine.ended["c0"].finish_reason) == "length"
    assert engine.report("c0")["positions"] == [longest - 4]
    check_empty(scheduler)
