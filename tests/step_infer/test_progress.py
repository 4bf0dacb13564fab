"""What the progress of sampling says."""

import io

import pytest
from rich.console import Console

from step_infer.cli.progress import Progress, TraceProgress, track


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


def test_a_branch_is_one_trace_more_than_was_to_be_made(clock: Clock) -> None:
    printed = io.StringIO()
    with TraceProgress(2, console=Console(file=printed)) as progress:
        clock.time_s = 1.0
        for extra in (False, True, False):
            progress.finished(10, extra)
    assert printed.getvalue().startswith("traces 3/3 3.00 traces/s, 30 tokens/s")


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


def test_pieces_are_counted_and_what_is_left_is_estimated(clock: Clock) -> None:
    printed = io.StringIO()
    with Progress(40, "fits", before=10, console=Console(file=printed)) as progress:
        for second in range(1, 21):
            clock.time_s = float(second)
            progress.advance()
        progress.note = "loss 0.5"
    assert printed.getvalue().splitlines() == [
        "fits 25/40 1.00/s, 0:00:15 left",
        "fits 30/40 1.00/s, 0:00:10 left, loss 0.5",
    ]


def test_what_ends_before_the_delay_shows_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in track([1, 2], 2, "shards", delay_s=2):
        clock.time_s += 0.5 * number
    assert capsys.readouterr().err == ""
    for _ in track([1, 2], 2, "shards", delay_s=2):
        clock.time_s += 1
    assert capsys.readouterr().err == "shards 2/2 1.00/s\n"


def test_progress_that_is_not_shown_prints_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in track(range(3), 3, "fits", shown=False):
        clock.time_s += 60
    assert capsys.readouterr() == ("", "")


def test_a_bar_is_taken_away_where_something_else_has_the_last_word(clock: Clock) -> None:
    printed = io.StringIO()
    progress = Progress(2, "things", console=Console(file=printed, force_terminal=True, width=80))
    progress.start()
    progress.advance()
    progress.stop(final=False)
    assert printed.getvalue().endswith("\x1b[1A\x1b[2K")  # one line up, and cleared
    progress.stop(final=False)
