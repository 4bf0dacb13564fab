"""What goes into a simulated schedule and what comes out: engine, traces, pruning, `Schedule`."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from step_infer.errors import InputError

Work = tuple[float, float, float, float]
"""Sums over steps: steps, rows (running traces), KV tokens read, prefill tokens computed."""


@dataclass(frozen=True)
class EngineShape:
    """What decides a vLLM engine's schedule."""

    kv_blocks: int
    """KV blocks that traces can use; vLLM has one more for itself."""
    block_size: int = 16
    """Tokens a block holds."""
    max_num_seqs: int = 256
    """Traces that run at once."""
    max_num_batched_tokens: int = 8192
    """Tokens a step computes at most."""
    chunked_prefill: bool = True
    """Whether a prefill may be spread over steps."""
    watermark: float = 0.0
    """Part of the blocks that must stay free when a trace is admitted (vLLM's own default)."""
    in_flight: int = 1
    """Outputs still unknown when a step is scheduled: 1 under async scheduling, otherwise 0."""


@dataclass(frozen=True)
class SimulatedTrace:
    """What a trace would do if nothing stopped it."""

    group: str
    """Its question."""
    prompt_tokens: int
    tokens: int
    """Tokens T it generates."""
    positions: Sequence[int] = ()
    """Boundaries with a finite step score, as indices of generated tokens [S], ascending."""
    scores: Sequence[float] = ()
    """Their step scores [S]."""
    cut: bool = False
    """Whether it ends for its length, which the engine knows before the last token is there."""
    content: Sequence[int] | None = None
    """A number for each full block of prompt and response; equal ones stand for equal text up to
    the block's end. None: it shares no text with others but the prompt. All traces or none."""
    rank: float | None = None
    """Where victims go by rank, the trace of the lowest is stopped first."""
    confidences: Sequence[float] = ()
    """Confidence of each token [T], where victims go by it; NaN unknown."""


@dataclass(frozen=True)
class Pruning:
    """The settings of `StepScheduler` that decide whom it stops; see `StepSettings`."""

    aggregator: str = "mean"
    min_keep: int = 1
    min_steps: int = 1
    resume_free: float = 0.5
    max_held_steps: int | None = None
    victim: str = "score"


@dataclass(frozen=True)
class Moment:
    """A simulated engine when one of its traces ended."""

    step: int
    """The last step whose output the scheduler has."""
    known: Sequence[int]
    """Tokens of each trace when it was last admitted [N]."""
    filled: Sequence[int]
    """Step that made the first token after that [N]; 0 where a trace does not decode."""
    pruned: int
    """Pruned traces so far."""
    preempted: int
    """Preemptions so far."""
    work: Work
    """All work so far."""
    running: Sequence[float]
    """As `Schedule.running`, so far."""
    waiting: Sequence[float]
    """As `Schedule.waiting`, so far."""
    peak_kv_use: float
    """As `Schedule.peak_kv_use`, so far."""

    def tokens(self, trace: int) -> int:
        """Return the generated tokens of a trace that has not ended."""
        filled = self.filled[trace]
        return self.known[trace] + (max(0, self.step + 1 - filled) if filled else 0)


@dataclass
class Schedule:
    """What came of N traces."""

    tokens: list[int]
    """Generated tokens of each trace [N], of a pruned one those that its client got."""
    order: list[int] = field(default_factory=list)
    """Traces in the order in which they ended."""
    pruned: list[int] = field(default_factory=list)
    """Pruned traces in the order in which they were stopped."""
    decided: list[int] = field(default_factory=list)
    """Traces that ended because the vote was decided."""
    preempted: list[int] = field(default_factory=list)
    """Preempted traces, once for each time."""
    work: Work = (0.0, 0.0, 0.0, 0.0)
    """All steps; the first number counts them."""
    ended_after: dict[int, Work] = field(default_factory=dict)
    """For each trace, all work up to its end."""
    running: list[float] = field(default_factory=lambda: [0.0] * 4)
    """Work weighted with the traces that ran meanwhile."""
    waiting: list[float] = field(default_factory=lambda: [0.0] * 4)
    """Work weighted with the traces that waited meanwhile."""
    peak_kv_use: float = 0.0
    """Largest part of the blocks in use at the end of a step."""
    moments: list[Moment] = field(default_factory=list)
    """The engine at each end of a trace, in the order of `order`."""

    def end(self, trace: int, tokens: int, moment: Moment) -> None:
        """Note a trace's end, with its generated tokens and how the engine stood."""
        self.tokens[trace] = tokens
        self.order.append(trace)
        self.ended_after[trace] = moment.work
        self.moments.append(moment)

    def tokens_at(self, place: int) -> list[int]:
        """Return each trace's generated tokens [N] when the trace `order[place]` ended."""
        moment, ended = self.moments[place], set(self.order[: place + 1])
        return [
            # Of two traces that end in one step the second has its last token, too.
            whole if trace in ended else min(whole, moment.tokens(trace))
            for trace, whole in enumerate(self.tokens)
        ]

    def decided_at(self, place: int) -> "Schedule":
        """Return what comes of the traces if the vote is decided when `order[place]` ends."""
        moment, ended = self.moments[place], self.order[: place + 1]
        others = sorted(set(self.order) - set(ended))
        return Schedule(
            self.tokens_at(place),
            [*ended, *others],
            self.pruned[: moment.pruned],
            others,
            self.preempted[: moment.preempted],
            moment.work,
            {trace: self.ended_after[trace] for trace in ended}
            | dict.fromkeys(others, moment.work),
            list(moment.running),
            list(moment.waiting),
            moment.peak_kv_use,
            self.moments[: place + 1],
        )


def steps_seen(positions: Sequence[int], tokens: int) -> int:
    """Return a running trace's step scores so far: a boundary's comes with the token after it."""
    return bisect_left(positions, tokens - 1)


def check_fit(shape: EngineShape, traces: Sequence[SimulatedTrace]) -> None:
    """Refuse what vLLM would refuse.

    Raises:
        InputError: a trace does not fit the cache on its own, or the shape is one vLLM refuses.
    """
    if shape.max_num_batched_tokens < shape.max_num_seqs:
        raise InputError(
            f"Expected max_num_batched_tokens of at least max_num_seqs ({shape.max_num_seqs}), "
            f"found {shape.max_num_batched_tokens}. "
            "Hint: raise --max-num-batched-tokens or lower --max-num-seqs."
        )
    longest = max((trace.prompt_tokens + trace.tokens for trace in traces), default=0)
    if longest > shape.kv_blocks * shape.block_size:
        raise InputError(
            f"Expected a KV cache that holds the longest trace ({longest:,} tokens), found "
            f"{shape.kv_blocks * shape.block_size:,} tokens. Hint: raise the KV budget."
        )
    if not shape.chunked_prefill and longest > shape.max_num_batched_tokens:
        raise InputError(
            f"Expected max_num_batched_tokens of at least the longest trace ({longest:,} tokens) "
            f"without chunked prefill, found {shape.max_num_batched_tokens:,}. "
            "Hint: raise --max-num-batched-tokens."
        )
