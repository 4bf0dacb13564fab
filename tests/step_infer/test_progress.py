"""What the progress of sampling says."""

import io

import pytest
from rich.console import Console

from step_infer.cli.progress import TraceProgress


class Clock:
    def __init__(self) -> None:
        self.time_s = 0.0

    def monotonic(self) -> float:
        return self.time_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("step_infer.cli.progress.time", clock)
    return clock


def test_rates_and_time_left_count_tokens_of_unfinished_traces_too(clock: Clock) -> None:
    progress = TraceProgress(total=30, before=20)
    clock.time_s = 20.0
    assert progress.rates() == "0.00 traces/s, 0 tokens/s"
    for _ in range(4):
        progress.finished(100)
    progress.step(lambda: 600)
    # 10 traces of 100 tokens: 600 of 1,000 are made, at 30 a second.
    assert progress.rates() == "0.20 traces/s, 30 tokens/s, 0:00:13 left"


def test_without_a_terminal_a_line_appears_now_and_then(clock: Clock) -> None:
    printed = io.StringIO()
    asked = []

    def generated_tokens() -> int:
        asked.append(clock.time_s)
        return 50

    with TraceProgress(3, 1, console=Console(file=printed)) as progress:
        for second in range(40):
            clock.time_s = float(second)
            progress.step(generated_tokens)
        progress.finished(50)
        progress.finished(50)
    assert asked == [15.0, 30.0]
    assert [line.split(",")[0] for line in printed.getvalue().splitlines()] == [
        "traces 1/3 0.00 traces/s",
        "traces 1/3 0.00 traces/s",
        "traces 3/3 0.05 traces/s",
    ]


def test_on_a_terminal_a_bar_is_drawn(clock: Clock) -> None:
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=True, width=100)
    with TraceProgress(2, console=console) as progress:
        progress.finished(50)
        with progress.paused():
            console.print("in between")
        progress.finished(50)
    assert "in between" in printed.getvalue()
    assert "2/2" in printed.getvalue()


def test_a_question_and_a_label_are_shown_where_there_are_any(clock: Clock) -> None:
    printed = io.StringIO()
    with TraceProgress(4, label="STEP traces", console=Console(file=printed)) as progress:
        clock.time_s = 2.0
        for right in (True, False):
            progress.finished(10)
            progress.question(right)
        progress.step()
        assert printed.getvalue() == ""
    line = "STEP traces 2/4 1.00 traces/s, 10 tokens/s, 1/2 questions right, 0:00:02 left"
    assert printed.getvalue().splitlines() == [line]
