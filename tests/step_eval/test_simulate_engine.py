"""The simulated scheduler against vLLM's and ours: the same steps, victims and preemptions."""

import random

import pytest
from scheduler_harness import (
    BLOCK_SIZE,
    BOUNDARY,
    EOS,
    MAX_MODEL_LEN,
    THINK_END,
    WORD,
    Engine,
    Script,
    make_scheduler,
    row_score,
    token_confidence,
)
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from step_eval.methods.victim_scheduler import VictimScheduler
from step_eval.methods.victims import VICTIMS
from step_eval.simulation.engine import simulate
from step_eval.simulation.schedule import EngineShape, Pruning, SimulatedTrace
from step_infer.errors import InputError
from step_infer.scheduler import StepScheduler


def workload(seed, same_texts=False, ranked=False):
    """Return random scripts of a few groups, and the engine that they meet."""
    rng = random.Random(seed)
    scripts = []
    counts = [rng.randint(1, 14) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    settings = {"min_keep": rng.choice([1, 1, 2, 10]), "min_steps": rng.choice([1, 1, 3])}
    settings |= {"aggregator": rng.choice(["mean", "last", "min", "ema"])}
    settings |= {"resume_free": rng.choice([0.0, 0.3, 0.5, 0.9])}
    settings |= {"max_held_steps": random.Random(f"held{seed}").choice([0, 5, 20, 256, None])}
    for group, count in enumerate(counts):
        # Every text begins with its own token: no two traces write the same block.
        prompt = tuple(rng.choices(range(WORD, 90), k=rng.randint(1, 40)))
        for number in range(count):
            body = [100 + len(scripts)]
            if same_texts:  # traces of a group go on alike until one of them leaves the path
                path = random.Random(f"{seed}/{group}")
                body = path.choices(range(WORD, 90), k=300)[: rng.choice([0, 9, 40, 120, 200])]
            for _ in range(rng.randint(0, 30)):
                body += rng.choices(range(WORD, 90), k=rng.randint(0, 9)) + [BOUNDARY]
            if rng.random() < 0.5:
                body += [THINK_END, *rng.choices(range(WORD, 90), k=3), BOUNDARY, WORD]
            most = 10_000 if rng.random() < 0.8 else rng.randint(1, 60)
            options = {"group": f"g{group}"}
            if ranked:
                options["rank"] = rng.choice([0.0, 0.5, 1.0])
            scripts.append(Script(f"{group}-{number}", prompt, (*body, EOS), most, options=options))
    rng.shuffle(scripts)
    longest = max(len(s.prompt) + len(s.generated()) for s in scripts)
    needed = sum(-(-(len(s.prompt) + len(s.generated())) // BLOCK_SIZE) for s in scripts)
    least = -(-longest // BLOCK_SIZE) + 1
    blocks = max(least, round(needed * rng.uniform(0.1, 0.9)))
    shape = {
        "max_num_seqs": rng.choice([3, 8, 16]),
        "max_num_batched_tokens": rng.choice([16, 32, 64, 512]),
    }
    return scripts, blocks, shape, settings


def contents(scripts):
    """Number the full blocks of prompt and response by all text up to their end."""
    numbers = {}
    found = []
    for script in scripts:
        text = (*script.prompt, *script.generated())
        ends = range(BLOCK_SIZE, len(text) + 1, BLOCK_SIZE)
        found.append([numbers.setdefault(text[:end], len(numbers)) for end in ends])
    return found


def simulated(script, content=None):
    tokens = script.generated()
    open_ended = min(script.max_tokens, MAX_MODEL_LEN - len(script.prompt))
    thinking = tokens.index(THINK_END) if THINK_END in tokens else len(tokens)
    boundaries = [i for i, t in enumerate(tokens[:-1]) if t == BOUNDARY and i < thinking]
    scored = [(i, row_score(script.name, i)) for i in boundaries]
    scored = [(i, score) for i, score in scored if score == score]
    return SimulatedTrace(
        script.opted["group"],
        len(script.prompt),
        len(tokens),
        [i for i, _ in scored],
        [score for _, score in scored],
        cut=len(tokens) == open_ended,
        content=content,
        rank=script.opted.get("rank"),
        confidences=[token_confidence(script.name, i) for i in range(len(tokens))],
    )


def real_run(kind, in_flight, scripts, blocks, shape, settings):
    """Run the real scheduler; return it, what it did, and all tokens at each end of traces."""
    engine = Engine(make_scheduler(kind, blocks, **shape, **settings), in_flight)
    for script in scripts:
        engine.add(script)
    steps, tokens, preempted, ends = 0, 0, [], {}
    while engine.busy:
        before = set(engine.ended)
        scheduled, _ = engine.step()
        if ended := frozenset(n for n in set(engine.ended) - before if not engine.pruned(n)):
            ends[ended] = [len(engine.tokens[script.name]) for script in scripts]
        if scheduled is not None:
            steps += scheduled.total_num_scheduled_tokens > 0
            tokens += scheduled.total_num_scheduled_tokens
            preempted += sorted(scheduled.preempted_req_ids or ())
        assert steps < 20_000
    return engine, steps, tokens, preempted, ends


def check_same(engine, scripts, result, preempted, steps, ends, seed):
    """Check a simulated schedule against the real scheduler's; return the names of the pruned."""
    names = [script.name for script in scripts]
    pruned = [name for name in engine.ended if engine.pruned(name)]
    assert [names[trace] for trace in result.pruned] == pruned, seed
    assert sorted(names[t] for t in result.preempted) == sorted(preempted), seed
    assert [len(engine.tokens[name]) for name in names] == result.tokens, seed
    assert result.work[0] == steps, seed
    places = {}  # by the step after which traces ended by themselves: those, and the last of them
    for place, trace in enumerate(result.order):
        if trace not in result.pruned:
            ended, _ = places.get(result.moments[place].step, (frozenset(), 0))
            places[result.moments[place].step] = ended | {names[trace]}, place
    assert {ended: result.tokens_at(place) for ended, place in places.values()} == ends, seed
    return pruned


@pytest.mark.parametrize("same_texts", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("in_flight", [0, 1], ids=["sync", "async"])
@pytest.mark.parametrize("kind", [AsyncScheduler, StepScheduler], ids=["stock", "pruning"])
def test_simulation_takes_the_steps_of_the_real_scheduler(kind, in_flight, same_texts):
    seen = {"pruned": 0, "preempted": 0, "waited": 0}
    for seed in range(40):
        scripts, blocks, shape, settings = workload(seed, same_texts)
        content = contents(scripts) if same_texts else [None] * len(scripts)
        engine, steps, tokens, preempted, ends = real_run(
            kind, in_flight, scripts, blocks, shape, settings
        )
        pruning = Pruning(**settings) if kind is StepScheduler else None
        result = simulate(
            EngineShape(blocks, BLOCK_SIZE, **shape, in_flight=in_flight),
            [simulated(*pair) for pair in zip(scripts, content, strict=True)],
            pruning,
        )
        pruned = check_same(engine, scripts, result, preempted, steps, ends, seed)
        seen["pruned"] += len(pruned)
        seen["preempted"] += len(preempted)
        seen["waited"] += result.waiting[0] > 0
    assert seen["waited"] > 20
    assert seen["preempted"] > (60 if kind is AsyncScheduler else 0)
    if kind is StepScheduler:
        assert seen["pruned"] > 20


@pytest.mark.parametrize("in_flight", [0, 1], ids=["sync", "async"])
@pytest.mark.parametrize("victim", [name for name in VICTIMS if name != "score"])
def test_simulation_stops_the_victims_that_the_real_scheduler_stops(victim, in_flight):
    num_pruned = num_others = 0
    for seed in range(25):
        scripts, blocks, shape, settings = workload(seed, ranked=victim == "rank")
        settings["min_keep"] = 1
        engine, steps, _, preempted, ends = real_run(
            VictimScheduler,
            in_flight,
            scripts,
            blocks,
            shape,
            settings | {"victim": victim, "confidence": True},
        )
        traces = [simulated(script) for script in scripts]
        engine_shape = EngineShape(blocks, BLOCK_SIZE, **shape, in_flight=in_flight)
        result = simulate(engine_shape, traces, Pruning(**settings, victim=victim))
        pruned = check_same(engine, scripts, result, preempted, steps, ends, seed)
        num_pruned += len(pruned)
        by_score = simulate(engine_shape, traces, Pruning(**settings))
        num_others += result.pruned != by_score.pruned
    assert num_pruned > 20
    assert num_others > 3, "the victim made no difference"


def test_a_cache_below_the_longest_trace_is_refused():
    with pytest.raises(InputError, match=r"holds the longest trace \(35 tokens\), found 32 tokens"):
        simulate(EngineShape(2, 16), [SimulatedTrace("q", 5, 30)])
