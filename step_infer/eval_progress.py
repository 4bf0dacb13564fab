"""Progress of an evaluation: traces done, rates, time left."""

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_LOG_EVERY_S = 15.0


class EvalProgress:
    """A bar on a terminal, a line now and then elsewhere, both on standard error."""

    def __init__(self, label: str, questions: int, num_traces: int) -> None:
        """Make a display for one method's questions of N traces each."""
        self._label = label
        self._questions = questions
        self._num_traces = num_traces
        self._console = Console(stderr=True, soft_wrap=True)
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn(label),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task(label, total=questions * num_traces, rates="")
        self._traces = self._tokens = self._done = self._right = 0
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> "EvalProgress":
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

    def trace(self, tokens: int) -> None:
        """Count one finished or pruned trace of so many generated tokens."""
        self._traces += 1
        self._tokens += tokens
        if self._live or time.monotonic() - self._shown >= _LOG_EVERY_S:
            self._show()

    def question(self, right: bool) -> None:
        """Count one finished question."""
        self._done += 1
        self._right += right

    def _show(self) -> None:
        self._shown = time.monotonic()
        seconds = max(self._shown - self._start, 1e-3)
        total = self._questions * self._num_traces
        rates = self._traces / seconds, self._tokens / seconds
        text = f"{rates[0]:.1f} traces/s, {rates[1]:,.0f} tokens/s"
        if self._done:
            text += f", {self._right}/{self._done} right"
        if 0 < self._traces < total:
            left = (total - self._traces) * seconds / self._traces
            text += f", {timedelta(seconds=round(left))} left"
        if self._live:
            self._bar.update(self._task, completed=self._traces, rates=text)
        else:
            line = f"{self._label} {self._traces}/{total} traces, {text}"
            self._console.print(line, highlight=False)
