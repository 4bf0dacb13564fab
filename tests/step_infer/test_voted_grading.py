"""Grading the voted calls of a server: who waits for whom, and what is left when a call ends."""

import asyncio
import gc
import os
import time
import weakref

import pytest
from places import ROOT

from step_infer.client.grading import Grader
from step_infer.client.kinds import AnswerOptions, find_kind
from step_infer.client.worker_pool import WorkerPool
from step_infer.errors import InputError
from step_infer.server import voted_grading
from step_infer.server.voted_grading import VotedGrading

pytestmark = pytest.mark.slow

_INTEGRAL = r"\int_0^1 t\,dt"
_ENDLESS = r"\int_0^1 x^{x} e^{\sin x}\,dx"
_SAME = [r"\frac{n!}{n}", "(n-1)!"]
"""Read by the canonical forms, but only math-verify knows that they are equal."""
MATH = AnswerOptions("math")

OWN = """
import os, time

def patient(text):
    folder, name = text.split()
    open(os.path.join(folder, "asked-" + name), "w").close()
    while not os.path.exists(os.path.join(folder, name)):
        time.sleep(0.01)
    return name
"""


TIMEOUT_S, LIMIT_S = 100.0, 300.0


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Let a machine that stands still for a while cost no verdict: hangs are cut off by tests."""
    monkeypatch.setattr(voted_grading, "DEFAULT_TIMEOUT_S", TIMEOUT_S)
    monkeypatch.setattr(voted_grading, "_MATH_TIMEOUT_S", TIMEOUT_S)
    monkeypatch.setattr(voted_grading, "_MATH_LIMIT_S", LIMIT_S)
    monkeypatch.setattr(voted_grading, "_LAST_S", 500.0)


@pytest.fixture
def pool():
    made = WorkerPool(find_kind(MATH).program, 1, TIMEOUT_S)
    yield made
    made.close()


def grader(pool: WorkerPool, limit_s: float = float("inf")) -> Grader:
    return Grader(jobs=pool.join(limit_s))


def integrals(count: int) -> list[str]:
    return [rf"\int_0^{number} t\,dt" for number in range(2, count + 2)]


def test_who_has_many_comparisons_does_not_keep_others_from_theirs(pool):
    busy, other = grader(pool), grader(pool)
    busy.submit("1/2", integrals(100))
    other.submit("1/2", [_INTEGRAL])
    while other.pending(["1/2", _INTEGRAL]):
        other.poll()
        time.sleep(0.005)
    assert len(busy._jobs.open) >= 95
    assert other.equal("1/2", _INTEGRAL) is True


def test_who_has_used_up_its_time_goes_without_and_the_others_go_on(pool):
    greedy, other = grader(pool, limit_s=1e-9), grader(pool)
    answers = integrals(10)
    greedy.submit("1/2", answers)
    verdicts = greedy.equal_many([("1/2", answer) for answer in answers])
    assert verdicts == [False] + [None] * 9
    assert greedy.given_up == 9
    assert greedy.equal("1/2", _INTEGRAL) is None, "later ones too"
    assert greedy.given_up == 10
    assert other.equal("1/2", _INTEGRAL) is True
    assert other.given_up == 0


def test_who_leaves_has_nothing_done_any_more(pool):
    gone, other = grader(pool), grader(pool)
    gone.submit("1/2", integrals(50))
    other.submit("1/2", [_INTEGRAL])
    gone.close()
    assert gone.pending(["1/2", *integrals(50)]) == set()
    assert pool.lists == [other._jobs]
    assert other.equal("1/2", _INTEGRAL) is True
    assert pool.lists == []
    assert pool.workers[0].process.poll() is None


def test_a_pool_forgets_who_has_been_served(pool):
    done = grader(pool)
    assert done.equal("1/2", _INTEGRAL) is True
    seen = weakref.ref(done._jobs)
    del done
    gc.collect()
    assert seen() is None


def test_a_process_that_ends_at_its_start_is_tried_again(pool, monkeypatch):
    first = grader(pool)
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", "/bin/false")
        first.submit("1/2", [_INTEGRAL])
    pool.workers[0].process.wait()
    with pytest.raises(RuntimeError, match="ended at its start"):
        first.poll()
    assert first.equal("1/2", _INTEGRAL) is True


def test_a_call_whose_processes_cannot_start_is_answered_all_the_same(monkeypatch):
    async def run() -> None:
        grading = VotedGrading(MATH)
        call = grading.grader(MATH)
        with monkeypatch.context() as patch:
            patch.setattr("sys.executable", "/bin/false")
            await grading.do(call, call.submit, _SAME[0], _SAME[1:])
            outcome = await grading.vote(call, [*_SAME, _SAME[1]], [1.0] * 3)
        assert (outcome.answer, len(outcome.groups)) == ("(n-1)!", 2)
        assert call.uncompared == 1
        later = grading.grader(MATH)
        await grading.do(later, later.submit, _SAME[0], _SAME[1:])
        outcome = await grading.vote(later, [*_SAME, _SAME[1]], [1.0] * 3)
        assert len(outcome.groups) == 1
        _close(grading)

    asyncio.run(run())


def test_comparisons_without_end_end_a_calls_vote_but_not_that_of_others():
    async def run() -> None:
        grading = VotedGrading(MATH)
        hostile, other = grading.grader(MATH), grading.grader(MATH)
        # Each of them takes as long as it may.
        endless = [rf"{_ENDLESS} + {number}" for number in range(20)]
        await grading.do(hostile, hostile.submit, "2", endless)
        held = asyncio.create_task(grading.vote(hostile, ["2", *endless], [1.0] * 21))
        (pool,) = grading._pools.values()
        while [worker.jobs for worker in pool.workers] != [hostile._jobs] * 2:
            await asyncio.sleep(0.01)
        await grading.do(other, other.submit, _SAME[0], _SAME[1:])
        await grading.do(hostile, _let_time_pass, pool, hostile, TIMEOUT_S)
        outcome = await grading.vote(other, _SAME, [1.0] * 2)
        assert len(outcome.groups) == 1
        assert not held.done()
        while hostile._jobs not in [worker.jobs for worker in pool.workers]:
            await asyncio.sleep(0.01)
        await grading.do(hostile, _let_time_pass, pool, hostile, TIMEOUT_S)
        outcome = await held
        assert hostile.uncompared > 0
        assert len(outcome.groups) >= 20
        _close(grading)

    asyncio.run(run())


def test_what_is_left_out_for_want_of_time_is_told_and_equal_texts_still_vote_together(monkeypatch):
    async def run() -> None:
        grading = VotedGrading(MATH)
        call = grading.grader(MATH)
        answers = ["5", "5 cm", "5", "1/2", "0.5", None]  # 0.5 says the same as 1/2
        with monkeypatch.context() as patch:
            patch.setattr(voted_grading, "_COMPARED_S", 0.0)
            outcome = await grading.vote(call, answers, [1.0] * 6)
        assert [voters for _, _, voters in outcome.groups] == [(0, 2), (3, 4), (1,)]
        assert call.uncompared == 3
        again = grading.grader(MATH)
        outcome = await grading.vote(again, answers, [1.0] * 6)
        assert [voters for _, _, voters in outcome.groups] == [(0, 1, 2), (3, 4)]
        assert again.uncompared == 0

    asyncio.run(run())


def test_answers_that_nobody_reads_are_not_compared_at_the_end_either():
    """Sums without end are other answers unless their texts are the same (`Grader.same`)."""

    async def run() -> None:
        grading = VotedGrading(MATH)
        call = grading.grader(MATH)
        sums = [rf"\sum_{{k={start}}}^\infty \frac{{1}}{{k^3}}" for start in range(1, 60)]
        outcome = await grading.vote(call, [*sums, sums[3]], [1.0] * 60)
        assert (outcome.answer, len(outcome.groups)) == (sums[3], 59)
        assert call.uncompared == 0
        assert [pool.workers for pool in grading._pools.values()] == [[]]

    asyncio.run(run())


def test_a_users_function_holds_up_neither_the_loop_nor_other_calls(tmp_path, monkeypatch):
    (tmp_path / "my_own.py").write_text(OWN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))

    async def run() -> None:
        own = AnswerOptions("my_own.patient")
        grading = VotedGrading(own)
        first, second = grading.grader(own), grading.grader(own)
        slow = asyncio.create_task(grading.extract(first, f"{tmp_path} a", None))
        while not (tmp_path / "asked-a").exists():
            await asyncio.sleep(0.01)
        (tmp_path / "b").touch()
        assert await grading.extract(second, f"{tmp_path} b", None) == "b"
        assert await grading.extract(grading.grader(MATH), r"\boxed{3}", None) == "3"
        assert not slow.done()
        (tmp_path / "a").touch()
        assert await slow == "a"
        assert await grading.extract(first, f"{tmp_path} c", None, lambda: True) is None
        _close(grading)

    asyncio.run(run())


def test_a_users_function_that_cannot_be_loaded_is_refused_at_once():
    with pytest.raises(InputError, match="answer kind at no_such_module.f that can be loaded"):
        VotedGrading(AnswerOptions("no_such_module.f"))


def test_a_thousand_patterns_leave_nothing_behind():
    async def run() -> None:
        grading = VotedGrading(MATH)
        kinds = weakref.WeakSet()
        for number in range(1000):
            call = grading.grader(AnswerOptions("regex", rf"(\d+)x{{0}}y{number}?"))
            kinds.add(call._kind)
            assert await grading.extract(call, f"{number}y{number}", None) == f"{number}"
            grading.end(call)
        del call
        grading._thread.shutdown()
        gc.collect()
        assert len(kinds) <= 1
        assert grading._pools == {}

    asyncio.run(run())


def _let_time_pass(pool: WorkerPool, of: Grader, seconds: float) -> None:
    """Make it so many seconds since processes have begun what they are at for somebody."""
    for worker in pool.workers:
        if worker.jobs is of._jobs:
            worker.begun -= seconds
            worker.deadline -= seconds


def _close(grading: VotedGrading) -> None:
    for pool in grading._pools.values():
        pool.close()
