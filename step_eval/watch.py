"""Watch one question being answered: its traces as they run, their scores, the prunes, the vote.

On a terminal the view is redrawn in place; elsewhere there is a line for each thing that happens.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from step_infer.cli.options import check_at_least
from step_infer.client.answers import Vote, vote
from step_infer.client.grading import Grader
from step_infer.client.kinds import AnswerOptions
from step_infer.client.llm import StepLLM
from step_infer.client.prompt import SYSTEM_PROMPT
from step_infer.client.running_vote import RunningVote
from step_infer.client.trace import Sampling, Trace, trace_weight
from step_infer.scorer.aggregate import NEVER_RISE

_BAR = 24
"""Characters of the longest trace's bar."""
_TICK_S = 5.0
"""Between two lines on how far all traces are, where there is no terminal."""
_REDRAW_S = 0.12
_SIGNS = {"waiting": "·", "running": "▸", "pruned": "✂", "decided": "◦", "over_budget": "◦"}
_DONE = "✓"


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """What `step-eval watch` can be told."""

    MAIN_OPTIONS: ClassVar = ("model", "scorer", "question", "num_traces", "kv_budget_tokens")

    model: str
    """Model folder or Hugging Face id."""
    scorer: str
    """Scorer file of the model."""
    question: str
    """What to ask."""
    num_traces: int = 64
    """Traces N for each question."""
    kv_budget_tokens: int | None = None
    """Size of the KV cache in tokens; none given, what memory gives."""
    sampling: Sampling = field(default_factory=Sampling)
    """How traces are sampled."""
    system: str = SYSTEM_PROMPT
    """System text of the chat prompt; an empty text leaves it out."""
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    """How answers are found and compared."""
    seed: int = 0
    """Same seed, same traces on one engine set-up."""
    engine: dict[str, Any] = field(default_factory=dict)
    """More vLLM engine arguments, as --engine.NAME VALUE."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "num_traces", "kv_budget_tokens")


class WatchedVote(RunningVote):
    """A vote that also keeps what is to be seen of its traces as they run."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tokens: dict[int, int] = {}
        """Tokens so far of each trace that has begun."""
        self.scores: dict[int, float] = {}
        """The latest trace score of each trace that has one."""
        self.ended: dict[int, Trace] = {}

    @property
    def watches(self) -> bool:
        """Always: every token and score is of interest."""
        return True

    def begin(self, trace_id: int, now_s: float) -> None:
        """Note that a trace begins, at a time of `time.monotonic()`."""
        super().begin(trace_id, now_s)
        self.tokens[trace_id] = 0

    def see(self, trace_id: int, tokens: int, score: float | None = None) -> None:
        """Note a running trace's generated tokens so far, and its trace score where it is new."""
        super().see(trace_id, tokens, score)
        self.tokens[trace_id] = tokens
        if score is not None:
            self.scores[trace_id] = score

    def add(self, trace: Any) -> None:
        """Take in a trace that has ended, by itself or not."""
        self.tokens[trace.trace_id] = len(trace.token_ids)
        if trace.trace_score is not None:
            self.scores[trace.trace_id] = trace.trace_score
        self.ended[trace.trace_id] = trace
        super().add(trace)

    def state(self, trace_id: int) -> str:
        """Return "waiting" before the first token, "running", or why the trace ended."""
        if trace_id in self.ended:
            return self.ended[trace_id].finish_reason
        return "running" if self.tokens.get(trace_id) else "waiting"

    def outcome(self, grader: Grader) -> Vote:
        """Return the vote of the traces that have ended so far."""
        traces = [self.ended[trace_id] for trace_id in sorted(self.ended)]
        answers = [trace.answer for trace in traces]
        return vote(answers, [trace_weight(t) for t in traces], grader.same(answers))


def watch(
    config: WatchConfig,
    console: Console,
    start_engine: Callable[..., StepLLM] = StepLLM,
) -> Vote:
    """Answer a question, and show how.

    Args:
        config: the settings.
        console: where to show it; on a terminal in place, elsewhere line by line.
        start_engine: makes the engine, called like `StepLLM`.

    Returns:
        The outcome of the vote.

    Raises:
        InputError: a setting cannot be used.
    """
    arguments = {"kv_budget_tokens": config.kv_budget_tokens, **config.engine}
    with (
        start_engine(config.model, config.scorer, **arguments) as llm,
        Grader(answers=config.answers) as grader,
    ):
        count = config.num_traces
        plans = llm.plan("0", config.question, count, config.sampling, config.seed, config.system)
        falls = llm.card is not None and llm.card.aggregator in NEVER_RISE
        watched = WatchedVote(range(count), trace_weight, 1.0, None, None, grader, float, falls)
        orders = [replace(plan, vote=watched, extract=grader.extract) for plan in plans]
        view = _View(config.question, count, watched, grader, llm, console)
        with view:
            for trace in llm.stream(orders, count, on_step=view.step):
                watched.add(trace)
                view.ended(trace)
        outcome = watched.outcome(grader)
        view.finish(outcome)
        return outcome


class _View:
    def __init__(
        self,
        question: str,
        count: int,
        watched: WatchedVote,
        grader: Grader,
        llm: StepLLM,
        console: Console,
    ) -> None:
        self._question, self._count = question, count
        self._watched, self._grader, self._llm = watched, grader, llm
        self._console = console
        self._live: Live | None = None
        self._leading: Vote | None = None
        self._began_s = self._told_s = time.monotonic()

    def __enter__(self) -> "_View":
        if self._console.is_terminal:
            # Drawn between engine steps: a thread of its own would see half of a change.
            self._live = Live(self._drawn(), console=self._console, auto_refresh=False)
            self._live.start()
        else:
            self._say(f"Question: {self._question}")
            self._say(f"{self._count} traces begin.")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._drawn(), refresh=True)
            self._live.stop()

    def step(self) -> None:
        """Redraw the view, or say how far all traces are, when it is time."""
        now_s = time.monotonic()
        if now_s - self._told_s < (_TICK_S if self._live is None else _REDRAW_S):
            return
        self._told_s = now_s
        if self._live is None:
            self._say(self._summary())
        else:
            self._live.update(self._drawn(), refresh=True)

    def ended(self, trace: Trace) -> None:
        """Take in how a trace ended."""
        self._leading = self._watched.outcome(self._grader)
        if self._live is None and trace.finish_reason not in ("decided", "over_budget"):
            score = "" if trace.trace_score is None else f", score {trace.trace_score:.2f}"
            what = "pruned" if trace.pruned else f"answers {trace.answer or 'nothing'}"
            self._say(f"trace {trace.trace_id:>2} {what}: {len(trace.token_ids)} tokens{score}")

    def finish(self, outcome: Vote) -> None:
        """Say what came of it."""
        spent = time.monotonic() - self._began_s
        early = ", decided before all had ended" if self._watched.closed else ""
        answer = "none" if outcome.answer is None else outcome.answer
        self._say(f"Answer: {answer}, with {outcome.share:.0%} of the votes, {spent:.1f} s{early}.")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def _summary(self) -> str:
        states = [self._watched.state(trace_id) for trace_id in range(self._count)]
        counts = {name: states.count(name) for name in ("running", "waiting", "pruned")}
        finished = sum(s in ("stop", "length") for s in states)
        use = self._llm.stats().kv_use
        told = ", ".join(f"{number} {name}" for name, number in counts.items())
        return f"{told}, {finished} finished; KV cache {use:.0%} full"

    def _drawn(self) -> Group:
        watched = self._watched
        longest = max([*watched.tokens.values(), 1])
        rows = Table.grid(padding=(0, 1))
        for column in ("right", "left", "left", "right", "right", "left"):
            rows.add_column(justify=column)  # type: ignore[arg-type]
        for trace_id in range(self._count):
            state, score = watched.state(trace_id), watched.scores.get(trace_id)
            tokens = watched.tokens.get(trace_id, 0)
            trace = watched.ended.get(trace_id)
            answer = "" if trace is None or trace.answer is None else trace.answer
            style = "dim" if state in ("pruned", "decided", "over_budget") else _colour(score)
            rows.add_row(
                Text(str(trace_id), style="dim"),
                Text(_SIGNS.get(state, _DONE)),
                Text("━" * round(_BAR * tokens / longest), style=style),
                Text(str(tokens), style="dim"),
                Text("" if score is None else f"{score:.2f}", style=style),
                Text(state if state in ("pruned", "decided", "waiting") else answer),
            )
        parts: list[Any] = [Text(self._question, style="bold"), rows, Text(self._summary())]
        if self._leading is not None and self._leading.groups:
            total = sum(weight for _, weight, _ in self._leading.groups) or 1.0
            shares = (f"{form}: {weight / total:.0%}" for form, weight, _ in self._leading.groups)
            parts.append(Text("vote so far  " + "  ".join(list(shares)[:4])))
        return Group(*parts)


def _colour(score: float | None) -> str:
    """Return the colour of a score: red, yellow, green."""
    if score is None:
        return "default"
    return "red" if score < 1 / 3 else "yellow" if score < 2 / 3 else "green"
