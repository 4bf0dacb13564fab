"""Comparing answers, by canonical forms and in worker processes."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import pytest

from step_infer.client.grading import Grader
from step_infer.errors import InputError

pytestmark = pytest.mark.slow

_INTEGRAL = r"\int_0^1 t\,dt"
"""Not known to the canonical forms: math-verify has to evaluate it."""
_ANOTHER = r"\int_0^2 s\,ds"
_ENDLESS = r"\int_0^1 x^{x} e^{\sin x}\,dx"


_PATIENT_S = 300.0
"""A time limit that is never reached: a machine that stands still for a while costs no verdict."""


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(timeout_s=_PATIENT_S) as grader:
        yield grader


@pytest.mark.parametrize(
    ("truth", "answer", "verdict"),
    [
        ("42", "42", True),
        ("042", "42", True),
        ("42", "43", False),
        ("", "42", False),
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{1}{2}", "1/2", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        (r"\sqrt{8}", "2.9", False),
        ("(1, 2)", "(1,2)", True),
        ("$7$", " 7 ", True),
        ("x+1", "1+x", True),
        ("[1, 2)", "[1,2)", True),
        ("[1, 2)", "[1, 2]", False),
        ("B", "B", True),
        ("B", "(B)", True),
        ("B", "B.", True),
        ("B", r"\text{B}", True),
        ("B", "B) 5 m", True),
        ("B", "C", False),
        ("B", r"\text{C}", False),
        ("B", "(C) 5 m", False),
    ],
)
def test_answers_are_compared_by_value(
    grader: Grader, truth: str, answer: str, verdict: bool
) -> None:
    assert grader.equal(truth, answer) is verdict


def test_no_answer_and_no_truth_have_no_verdict(grader: Grader) -> None:
    assert grader.grade(None, "1") is None
    assert grader.grade("1", None) is None
    assert grader.grade_many([("1", "1"), (None, "1"), ("2", "1")]) == [True, None, False]


def test_an_answer_that_is_too_long_is_not_parsed(grader: Grader) -> None:
    assert grader.equal("x" * 3000, "y") is None


def test_plain_numbers_need_no_process() -> None:
    with Grader() as grader:
        assert grader.equal_many([("1", "1"), ("1", "2")]) == [True, False]
        assert grader._pool.workers == []


def test_fractions_units_intervals_and_letters_need_no_process() -> None:
    with Grader() as grader:
        pairs = [("0.5", "1/2"), ("5 cm", "50 mm"), ("x>2", r"(2,\infty)"), ("C", "C. 42")]
        assert grader.equal_many(pairs) == [True] * 4
        assert grader._pool.workers == []


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        (r"\frac{1}{2}", r"\frac{1}{2}\text{ or more}"),
        (r"\sqrt{3}", r"\sqrt{3}\approx 2"),
        ("5", r"5 \sum_{k}"),
        ("5", r"5 \sum_{k} \frac{1}{2}"),
        ("12", "12 @ 3"),
        ("12", r"12\frac"),
        ("-7", r"-7\text{ if }x>0"),
        ("0.25", r"0.25 \to \frac{1}{2}"),
        ("x+1", "x+1_n"),
        (r"p \land q", r"p \lor q"),
        (r"2\times 3\text{ matrix}", r"3\times 2\text{ matrix}"),
        (r"A \cup B", "A, B"),
    ],
)
def test_what_math_verify_would_leave_out_makes_no_answer_right(truth: str, answer: str) -> None:
    with Grader() as grader:
        assert grader.equal(truth, answer) is not True
        assert grader.equal(answer, truth) is not True
        assert grader._pool.workers == []


def test_math_verify_gives_one_verdict_both_ways_round(grader: Grader) -> None:
    for other in ("1/2", "0.5", "2", r"\int_0^2 t\,dt"):
        verdict = grader.equal(_INTEGRAL, other)
        assert verdict is (other in ("1/2", "0.5"))
        with Grader() as fresh:
            assert fresh.equal(other, _INTEGRAL) is verdict


def test_escapes_that_json_swallowed_are_mended(grader: Grader) -> None:
    assert grader.equal("\frac{2}{9}", "2/9") is True  # a form feed and "rac"
    assert grader.equal("\text{odd}", "odd") is True  # a tab and "ext"


def test_same_compares_all_answers_at_once(grader: Grader) -> None:
    same = grader.same(["1/2", None, "0.5", "3"])
    assert same("0.5", "1/2")
    assert same("3", "3")
    assert not same("3", "0.5")


def test_a_slow_comparison_is_cut_off_and_the_next_still_works() -> None:
    with Grader(timeout_s=_PATIENT_S) as grader:
        assert grader.equal(_INTEGRAL, "1/2") is True
        slow = grader._pool.workers[0].process
        with time_limit(grader, 0.5):
            assert grader.equal(_ENDLESS, "2") is None
        assert slow.wait() == -signal.SIGKILL
        assert grader.equal(_ANOTHER, "2") is True


def test_the_time_limit_is_the_one_that_was_given() -> None:
    with Grader(timeout_s=0.5) as grader:
        assert grader.equal(_ENDLESS, "2") is None


def test_what_explodes_is_never_evaluated(grader: Grader) -> None:
    assert grader.equal("(10^{9})!", "2") is False
    with Grader() as fresh:
        assert fresh.equal(rf"{_INTEGRAL} + 9^{{9^{{9^{{9}}}}}}", "2") is None
        assert fresh.equal(rf"{_INTEGRAL} + 99999!", "2") is None
        assert fresh._pool.workers == []


def test_a_killed_process_is_replaced() -> None:
    with Grader(timeout_s=_PATIENT_S) as grader:
        assert grader.equal(_INTEGRAL, "1/2") is True
        process = grader._pool.workers[0].process
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert grader.equal(_ANOTHER, "2") is True


def test_several_processes_share_the_work() -> None:
    with Grader(workers=2, timeout_s=_PATIENT_S) as grader:
        pairs = [(rf"\int_0^{i} 1\,dt", f"{i}") for i in range(1, 8)]
        assert grader.equal_many(pairs) == [True] * 7
        assert len(grader._pool.workers) == 2


def test_no_process_is_left_after_closing() -> None:
    with Grader() as grader:
        grader.equal(_INTEGRAL, "1/2")
        process = grader._pool.workers[0].process
    assert process.poll() is not None


@contextmanager
def time_limit(grader: Grader, seconds: float) -> Iterator[None]:
    """Give what is begun meanwhile only so long."""
    grader._pool._timeout_s, before = seconds, grader._pool._timeout_s
    yield
    grader._pool._timeout_s = before


def _poll_until_known(grader: Grader, answers: Collection[str]) -> None:
    while grader.pending(answers):
        grader.poll()
        time.sleep(0.01)


def _poll_until_busy(grader: Grader) -> None:
    """Return once the first process is at work."""
    while grader._pool.workers[0].job is None:
        grader.poll()
        time.sleep(0.01)


def test_verdicts_that_were_not_waited_for_are_those_that_are(grader: Grader) -> None:
    others = ["1/2", "0.5", "2", r"\int_0^2 t\,dt", r"\int_0^1 s\,ds", "5 cm", "no idea"]
    pairs = [(_INTEGRAL, other) for other in others]
    expected = grader.equal_many(pairs)
    assert {True, False} <= set(expected)
    with Grader(timeout_s=_PATIENT_S) as other_grader:
        other_grader.submit(_INTEGRAL, others)
        assert other_grader.pending([*others, _INTEGRAL]) > {_INTEGRAL, "2"}
        _poll_until_known(other_grader, [*others, _INTEGRAL])
        started = [worker.process.pid for worker in other_grader._pool.workers]
        assert other_grader.equal_many(pairs) == expected
        assert other_grader._jobs.waiting == deque()
        assert [worker.process.pid for worker in other_grader._pool.workers] == started


def test_what_is_open_is_waited_for_by_whoever_must_know_before_all_else(grader: Grader) -> None:
    integral = r"\int_0^1 6t\,dt"
    others = [str(number) for number in range(2, 14)]
    grader.submit(integral, others)
    assert grader.equal("13", integral) is False
    assert grader.equal(integral, "3") is True
    assert not grader.pending([integral, "3", "13"])
    assert len(grader._jobs.waiting) >= 8


def test_a_comparison_is_asked_once() -> None:
    with Grader() as grader:
        for _ in range(3):
            grader.submit(_INTEGRAL, ["1/2", f"  {_INTEGRAL} "])
            grader.submit("1/2", [_INTEGRAL])
            grader.submit(_INTEGRAL, ["0.5", r"\frac{2}{4}"])  # says the same
        assert list(grader._jobs.open.values()) == [("1/2", _INTEGRAL)]
        assert len(grader._jobs.waiting) == 1


def test_submitting_and_polling_never_wait_for_a_process() -> None:
    with Grader(timeout_s=600.0) as grader:
        grader.equal(_INTEGRAL, "1/2")
        process = grader._pool.workers[0].process
        process.send_signal(signal.SIGSTOP)
        # A poll that waits goes on in the end, but with a verdict, which the test then sees.
        rescue = threading.Timer(60.0, process.send_signal, [signal.SIGCONT])
        rescue.start()
        others = [str(number) for number in range(2, 202)]
        for polled, other in enumerate(others, 1):
            grader.submit(_INTEGRAL, [other])
            grader.poll()
            assert len(grader._jobs.open) == polled
        assert grader.pending([*others, _INTEGRAL]) == {*others, _INTEGRAL}
        rescue.cancel()
        process.send_signal(signal.SIGCONT)


def test_only_what_needs_a_process_is_pending() -> None:
    with Grader() as grader:
        grader.submit("1/2", ["0.5", "3", "x>2"])
        assert grader.pending(["1/2", "0.5", "3", "x>2"]) == set()
        assert grader._pool.workers == []
        grader.submit(_INTEGRAL, ["1/2"])
        # 0.5 is bound to 1/2: what is open for one is open for the other.
        assert grader.pending(["1/2", "0.5", "3", _INTEGRAL]) == {"1/2", "0.5", _INTEGRAL}
        assert grader.pending(["1/2", "0.5", "3"]) == set()
        assert grader.pending(["3", _INTEGRAL]) == set()


def test_a_hang_that_nobody_waits_for_is_cut_off_too() -> None:
    with Grader(timeout_s=_PATIENT_S) as grader:
        with time_limit(grader, 0.5):
            grader.submit(_ENDLESS, ["2"])
            grader.submit(_INTEGRAL, ["1/2"])
            _poll_until_busy(grader)
        hung = grader._pool.workers[0].process
        _poll_until_known(grader, [_ENDLESS, "2"])
        assert hung.wait() == -signal.SIGKILL
        assert grader.equal(_ENDLESS, "2") is None
        assert grader.equal(_INTEGRAL, "1/2") is True


def test_a_process_that_is_killed_at_work_costs_only_its_own_verdict() -> None:
    with Grader(timeout_s=_PATIENT_S) as grader:
        grader.submit(_ENDLESS, ["2"])
        grader.submit(_INTEGRAL, ["1/2"])
        _poll_until_busy(grader)
        grader._pool.workers[0].process.kill()
        _poll_until_known(grader, [_ENDLESS, "2"])
        assert grader.equal(_ENDLESS, "2") is None
        assert grader.equal(_INTEGRAL, "1/2") is True


def test_processes_start_ahead_of_need() -> None:
    with Grader(workers=2, timeout_s=_PATIENT_S) as grader:
        grader.warm_up()
        started = [worker.process.pid for worker in grader._pool.workers]
        assert len(started) == 2
        assert grader.equal(_INTEGRAL, "1/2") is True
        assert [worker.process.pid for worker in grader._pool.workers] == started


def test_a_process_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with Grader() as grader:
        grader.warm_up()
        grader._pool.workers[0].process.wait()
        with pytest.raises(RuntimeError, match="ended at its start; is math-verify installed"):
            grader.poll()


def test_closing_leaves_no_process_and_nothing_open() -> None:
    with Grader() as grader:
        grader.submit(_ENDLESS, ["2", "3", "4"])
        _poll_until_busy(grader)
        process = grader._pool.workers[0].process
    assert process.returncode == -signal.SIGKILL
    assert grader.pending([_ENDLESS, "2"]) == set()


@pytest.mark.parametrize(
    ("first", "second", "bound"),
    [
        ("1/2", "0.5", True),
        (r"\frac{1}{2}", "$0.50$", True),
        ("5 cm", r"5\text{ cm}", True),
        ("3, 5", "5, 3", True),
        ("no  idea at all", "no idea at all", True),
        ("5", "5 cm", False),
        ("5 cm", "50 mm", False),  # "5" tears them apart
        ("x=5", "5", False),
        ("(5 cm, 6 m)", "(5 m, 6 cm)", False),
        ("B", "B) 5 m", False),
        (_INTEGRAL, r"\int_0^1 s\,ds", False),
    ],
)
def test_answers_that_say_the_same_are_bound(
    grader: Grader, first: str, second: str, bound: bool
) -> None:
    assert (grader.binding(first) == grader.binding(second)) is bound


@pytest.mark.parametrize("bad", [{"workers": 0}, {"timeout_s": 0.0}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"(workers of at least 1|timeout_s above 0), found 0"):
        Grader(**bad)  # type: ignore[arg-type]
