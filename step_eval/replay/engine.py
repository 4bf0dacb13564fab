"""An engine whose traces go as recorded ones went: a `StepLLM` on a model without weights.

Length, boundaries, scores, confidences and answer of a trace are the recorded ones; its tokens are
noise. What the engine does in which time is its own.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from step_eval.recorded.traces import PoolQuestion, PoolTrace, TracePool, pick
from step_eval.replay.shapes import kv_bytes_per_token
from step_eval.replay.signals import signals
from step_infer.client.engine import EngineStats
from step_infer.client.llm import StepLLM
from step_infer.client.trace import Sampling, Trace, TracePlan, trace_seed
from step_infer.settings import AdapterConfig
from step_infer.wire import CLOSED_REASONS

_SCHEDULER = "step_eval.replay.scheduler.ReplayScheduler"
_WARM_UP_PROMPT = 32
_KV_ROOM = 1.1
"""Memory for the KV cache over that of its budget: whole blocks, and vLLM's own."""


class ReplayEngine:
    """What an evaluation uses of a `StepLLM`, on recorded traces."""

    def __init__(self, llm: StepLLM, pool: TracePool, vocabulary: int, first_seed: int) -> None:
        """Take over a running engine.

        Args:
            llm: the engine, with a ReplayScheduler, or a plain one.
            pool: the recorded traces, scaled.
            vocabulary: tokens of the model's vocabulary.
            first_seed: seed of the first repeat; each further repeat has the next.
        """
        self._llm = llm
        self._questions = {question.question_id: question for question in pool.questions}
        self._vocabulary = vocabulary
        self._first_seed = first_seed
        self._chosen: dict[tuple[str, int], tuple[PoolTrace, int]] = {}
        self.kv_capacity_tokens = llm.kv_capacity_tokens

    def __enter__(self) -> "ReplayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self._llm.close()

    def stats(self) -> EngineStats:
        """Return vLLM's own counters as of the last step."""
        return self._llm.stats()

    def plan(
        self,
        question_id: str,
        question: str,
        n: int,
        sampling: Sampling,
        seed: int,
        system: str,
        first_trace_id: int = 0,
        chat_template_kwargs: object = None,
    ) -> list[TracePlan]:
        """Return the orders for `n` recorded traces of a question, or for noise without a record.

        The traces sample without seeds of their own, whose generators would cost time.
        """
        numbers = range(first_trace_id, first_trace_id + n)
        found = self._questions.get(question_id)
        if found is None:
            prompt = self._prompt(question_id, _WARM_UP_PROMPT)
            return [TracePlan(question_id, i, prompt, None, sampling) for i in numbers]
        prompt = self._prompt(question_id, found.prompt_tokens)
        traces = chosen_traces(found, first_trace_id + n, seed - self._first_seed, self._first_seed)
        plans = []
        for number in numbers:
            trace = traces[number]
            self._chosen[question_id, number] = trace, trace_seed(seed, question_id, number)
            length = dataclasses.replace(sampling, max_tokens=trace.tokens)
            found_signals = signals(trace)
            options = {} if found_signals is None else {"replay": found_signals}
            plans.append(TracePlan(question_id, number, prompt, None, length, question_id, options))
        return plans

    def _prompt(self, question_id: str, tokens: int) -> tuple[int, ...]:
        """Return a prompt of its own for a question: no two share a block of the prefix cache."""
        return tuple(
            zlib.crc32(f"{question_id}/{number}".encode()) % self._vocabulary
            for number in range(tokens)
        )

    def stream(
        self,
        plans: Sequence[TracePlan],
        max_in_flight: int,
        on_step: Callable[[], None] | None = None,
    ) -> Iterator[Trace]:
        """Let the engine generate, and yield each trace as it was recorded, when it ends.

        Raises:
            RuntimeError: a trace came out with another length, or with other scores.
        """
        for trace in self._llm.stream(plans, max_in_flight, on_step):
            chosen = self._chosen.get((trace.question_id, trace.trace_id))
            yield trace if chosen is None else self._recorded(trace, *chosen)

    def _recorded(self, trace: Trace, recorded: PoolTrace, seed: int) -> Trace:
        count = len(trace.boundary_positions)
        own: dict[str, Any] = {}
        if self._llm.plain or trace.finish_reason in CLOSED_REASONS:  # nobody looked at its tokens
            generated = len(trace.token_ids)
            own["boundary_positions"] = [at for at in recorded.positions if at < generated]
        elif recorded.scores and tuple(trace.boundary_positions) != recorded.positions[:count]:
            raise RuntimeError(f"Trace {trace.trace_id} had other boundaries than the recorded.")
        ended = trace.finish_reason in ("stop", "length")
        if ended:
            if len(trace.token_ids) != recorded.tokens:
                raise RuntimeError(
                    f"Trace {trace.trace_id} of {trace.question_id} had {len(trace.token_ids)} "
                    f"tokens where {recorded.tokens} were recorded."
                )
            if not self._llm.plain and recorded.scores and count != len(recorded.positions):
                raise RuntimeError(f"Trace {trace.trace_id} missed recorded boundaries.")
            own["finish_reason"] = "length" if recorded.cut else "stop"
        return dataclasses.replace(
            trace,
            seed=seed,
            # One number a trace in the place of noise: the same under every method.
            token_ids=[trace.trace_id] * len(trace.token_ids),
            text="",
            answer=recorded.answer if ended else None,
            **own,
        )


def chosen_traces(
    question: PoolQuestion, count: int, repeat: int, first_seed: int
) -> list[PoolTrace]:
    """Return the recorded traces that a question has in a repeat [count]."""
    key = [first_seed, zlib.crc32(question.question_id.encode())]
    return [question.traces[index] for index in pick(question, count, repeat, key)]


def as_answered(question: PoolQuestion) -> PoolQuestion:
    """Return a question whose right traces answer with the truth, in its own words."""
    traces = tuple(
        dataclasses.replace(trace, answer=question.truth) if trace.right else trace
        for trace in question.traces
    )
    return dataclasses.replace(question, traces=traces)


def starter(shape: dict[str, Any], pool: TracePool, first_seed: int) -> Callable[..., Any]:
    """Return what starts an engine on recorded traces, called like `StepLLM`."""
    vocabulary = int((shape.get("text_config") or shape)["vocab_size"])
    bytes_per_token = kv_bytes_per_token(shape)

    def start(model: str, **options: Any) -> ReplayEngine:
        tokens = options.get("kv_budget_tokens")
        if tokens is not None and bytes_per_token is not None:
            # Without it, vLLM measures free memory while other engines start beside it.
            room = int(_KV_ROOM * tokens * bytes_per_token)
            options.setdefault("kv_cache_memory_bytes", room)
        if options.get("plain"):
            # The same key as the other engines', whose compiled model it can then use.
            options["additional_config"] = AdapterConfig({})
        else:
            options["scheduler_cls"] = _SCHEDULER
        return ReplayEngine(StepLLM(model, **options), pool, vocabulary, first_seed)

    return start
