"""Progress of long work: how much is done, rates, time left."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

T = TypeVar("T")

_SHOW_EVERY_S = 0.5
_LOG_EVERY_S = 15.0


class Progress:
    """A bar on a terminal, a line now and then elsewhere, both on standard error."""

    def __init__(
        self,
        total: int,
        label: str,
        *,
        before: int = 0,
        console: Console | None = None,
        shown: bool = True,
        delay_s: float = 0.0,
    ) -> None:
        """Make a display of how much of a work is done.

        Args:
            total: number of pieces, those of an earlier run too.
            label: what they are.
            before: pieces that an earlier run did.
            console: where to show it; None is standard error.
            shown: whether to show anything.
            delay_s: seconds before it is shown at all: what fails at once fails in one line.
        """
        self._total = total
        self._before = before
        self._label = label
        self._console = console or Console(stderr=True, soft_wrap=True, quiet=not shown)
        self._live = self._console.is_terminal and shown
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            console=self._console,
            disable=not self._live,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a file stays there
        )
        self._task = self._bar.add_task(label, total=total, completed=before, rates="")
        self.note = ""
        """What else to say beside the rate."""
        self._done = 0
        self._start = self._shown = time.monotonic()
        self._show_from = self._start + delay_s

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Draw the bar, where there is one and no delay."""
        if self._show_from == self._start:
            self._bar.start()

    def stop(self, final: bool = True) -> None:
        """Show the last state and end the display; not `final` takes the bar away instead."""
        if final and time.monotonic() >= self._show_from:
            self._show()
        self._bar.live.transient = not final
        self._bar.stop()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was made."""
        return max(time.monotonic() - self._start, 1e-3)

    def advance(self, count: int = 1) -> None:
        """Count pieces that are done, and refresh the display when it is time."""
        self._done += count
        if self._is_due():
            self._show()

    def rates(self) -> str:
        """Return the rate so far and the time left, as text."""
        rate = self._done / self.elapsed_s
        left = self._total - self._before - self._done
        parts = [f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2f}/s"]
        if rate and left:
            parts.append(f"{timedelta(seconds=round(left / rate))} left")
        if self.note:
            parts.append(self.note)
        return ", ".join(parts)

    def _is_due(self) -> bool:
        now = time.monotonic()
        every = _SHOW_EVERY_S if self._live else _LOG_EVERY_S
        return now - self._shown >= every and now >= self._show_from

    def _show(self) -> None:
        self._shown = time.monotonic()
        rates = self.rates()
        done = self._before + self._done
        if self._live:
            self._bar.start()
            self._bar.update(self._task, completed=done, total=self._total, rates=rates)
        else:
            self._console.print(f"{self._label} {done}/{self._total} {rates}", highlight=False)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the block print without the bar in its way."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


class TraceProgress(Progress):
    """Progress of sampling or reading traces: rates in traces and tokens, questions right."""

    def __init__(
        self, total: int, before: int = 0, label: str = "traces", console: Console | None = None
    ) -> None:
        """Make a progress display for `total` traces, `before` of which an earlier run made."""
        super().__init__(total, label, before=before, console=console)
        self._done_tokens = 0
        self._tokens = 0
        self._questions = self._right = 0

    def finished(self, tokens: int, extra: bool = False) -> None:
        """Count one finished or pruned trace of so many generated tokens.

        Args:
            tokens: that it generated itself.
            extra: whether it is none of those that were to be made, such as a branch.
        """
        self._total += extra
        self._done += 1
        self._done_tokens += tokens

    def question(self, right: bool) -> None:
        """Count one answered question."""
        self._questions += 1
        self._right += right

    def step(self, generated_tokens: Callable[[], int] | None = None) -> None:
        """Refresh the display when it is time; `generated_tokens` is only called then."""
        if not self._is_due():
            return
        if generated_tokens is not None:
            self._tokens = generated_tokens()
        self._show()

    def rates(self) -> str:
        """Return the rates so far, the questions that are right and the time left, as text.

        The time left counts tokens, those of unfinished traces too: at first no trace is finished,
        and the first to finish are the short ones.
        """
        seconds = self.elapsed_s
        tokens = max(self._tokens, self._done_tokens)
        text = f"{self._done / seconds:.2f} traces/s, {tokens / seconds:,.0f} tokens/s"
        if self._questions:
            text += f", {self._right}/{self._questions} questions right"
        if self.note:
            text += f", {self.note}"
        total = self._total - self._before
        if self._done_tokens and self._done < total:
            mean = self._done_tokens / self._done
            left = max(mean * total - tokens, mean * (total - self._done) / 4)
            text += f", {timedelta(seconds=round(left * seconds / tokens))} left"
        return text


def track(
    items: Iterable[T], total: int, label: str, *, shown: bool = True, delay_s: float = 0.0
) -> Iterator[T]:
    """Yield each item, and show how many of them are done."""
    with Progress(total, label, shown=shown, delay_s=delay_s) as progress:
        for item in items:
            yield item
            progress.advance()
