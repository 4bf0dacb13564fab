"""Many questions at once on a small KV cache: none loses its last traces, and none is slower."""

import random

import pytest
from scheduler_harness import BOUNDARY, EOS, WORD, Engine, Script, check_empty, make_scheduler

from step_infer import policy
from step_infer.scheduler import StepScheduler

pytestmark = pytest.mark.oldest

QUESTIONS, TRACES, MIN_KEEP = 20, 8, 2
STEP = (WORD, WORD, WORD, BOUNDARY)


def question(number, seed):
    """Return the traces of a question: a shared prompt, lengths of their own."""
    random_ = random.Random(f"{seed}/{number}")
    prompt = tuple(random_.choices(range(WORD, 90), k=random_.randint(8, 20)))
    return [
        Script(
            f"q{number}-{trace}",
            prompt,
            (WORD + trace, *STEP * random_.randint(5, 25), EOS),
            options={"group": f"q{number}", "min_keep": MIN_KEEP},
        )
        for trace in range(TRACES)
    ]


def run(rounds, in_flight):
    """Run rounds of questions one after the other; return the engine and each question's end.

    An end is the number of engine steps since the first round began.
    """
    scheduler = make_scheduler(StepScheduler, 120, max_num_seqs=64, max_num_batched_tokens=128)
    engine, ends, steps = Engine(scheduler, in_flight), {}, 0
    preempt = scheduler._preempt_request

    def watched(*args, **kwargs):
        victim = policy.pick_victim(scheduler._prunable(), scheduler.live.kept)
        assert victim is None, "a request was preempted though a trace could be stopped"
        return preempt(*args, **kwargs)

    scheduler._preempt_request = watched
    for questions in rounds:
        for script in (script for scripts in questions for script in scripts):
            engine.add(script)
        while engine.busy:
            engine.step()
            steps += 1
            for name in engine.ended.keys() - ends.keys():
                ends[name] = steps
    check_empty(scheduler)
    per_question = {}
    for name, end in ends.items():
        number = name.partition("-")[0]
        per_question[number] = max(end, per_question.get(number, 0))
    return engine, per_question


def test_twenty_questions_at_once_keep_their_traces_and_end_no_later_than_one_by_one():
    for seed, in_flight in ((0, 1), (1, 1), (2, 0)):
        questions = [question(number, seed) for number in range(QUESTIONS)]
        engine, at_once = run([questions], in_flight)
        _, one_by_one = run([[scripts] for scripts in questions], in_flight)
        assert len(at_once) == len(one_by_one) == QUESTIONS
        assert sum(map(engine.pruned, engine.ended)) > QUESTIONS, "memory was not short"
        for number in range(QUESTIONS):
            names = [f"q{number}-{trace}" for trace in range(TRACES)]
            assert sum(not engine.pruned(name) for name in names) >= MIN_KEEP
        # A question at once shares the engine with the others; one by one it waits for them.
        pairs = list(zip(sorted(at_once.values()), sorted(one_by_one.values()), strict=True))
        assert all(mixed <= alone for mixed, alone in pairs)
