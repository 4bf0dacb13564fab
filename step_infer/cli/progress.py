"""Progress of sampling or reading traces: how many are done, rates, time left."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_SHOW_EVERY_S = 0.5
_LOG_EVERY_S = 15.0


class TraceProgress:
    """A bar on a terminal, a line now and then elsewhere, both on standard error."""

    def __init__(
        self, total: int, before: int = 0, label: str = "traces", console: Console | None = None
    ) -> None:
        """Make a progress display for `total` traces, `before` of which an earlier run made."""
        self._total = total
        self._before = before
        self._label = label
        self._console = console or Console(stderr=True, soft_wrap=True)
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn(label),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task(label, total=total, completed=before, rates="")
        self._done = 0
        self._done_tokens = 0
        self._tokens = 0
        self._questions = self._right = 0
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> "TraceProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._show()
        self._bar.stop()

    def finished(self, tokens: int) -> None:
        """Count one finished or pruned trace of so many generated tokens."""
        self._done += 1
        self._done_tokens += tokens

    def question(self, right: bool) -> None:
        """Count one answered question."""
        self._questions += 1
        self._right += right

    def step(self, generated_tokens: Callable[[], int] | None = None) -> None:
        """Refresh the display when it is time; `generated_tokens` is only called then."""
        now = time.monotonic()
        if now - self._shown < (_SHOW_EVERY_S if self._live else _LOG_EVERY_S):
            return
        if generated_tokens is not None:
            self._tokens = generated_tokens()
        self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        rates = self.rates()
        done = self._before + self._done
        if self._live:
            self._bar.update(self._task, completed=done, rates=rates)
        else:
            self._console.print(f"{self._label} {done}/{self._total} {rates}", highlight=False)

    def rates(self) -> str:
        """Return the rates so far, the questions that are right and the time left, as text.

        The time left counts tokens, those of unfinished traces too: at first no trace is finished,
        and the first to finish are the short ones.
        """
        seconds = max(time.monotonic() - self._start, 1e-3)
        tokens = max(self._tokens, self._done_tokens)
        text = f"{self._done / seconds:.2f} traces/s, {tokens / seconds:,.0f} tokens/s"
        if self._questions:
            text += f", {self._right}/{self._questions} questions right"
        total = self._total - self._before
        if self._done_tokens and self._done < total:
            mean = self._done_tokens / self._done
            left = max(mean * total - tokens, mean * (total - self._done) / 4)
            text += f", {timedelta(seconds=round(left * seconds / tokens))} left"
        return text

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the block print without the bar in its way."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()
