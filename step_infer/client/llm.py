"""The offline client: sample, score, prune and vote with a few lines of Python."""

import os
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step_infer.client.answers import Vote, vote
from step_infer.client.engine import (
    EngineStats,
    engine_arguments,
    engine_revision,
    engine_stats,
    leave_a_core,
    start_engine,
    takes_seeds,
    with_adapter,
)
from step_infer.client.grading import Grader
from step_infer.client.prompt import SYSTEM_PROMPT, chat_prompt, load_tokenizer, system_note
from step_infer.client.requests import ended_trace, report_of, request_id, sampling_params
from step_infer.client.trace import Sampling, Trace, TraceKey, TracePlan, trace_seed, trace_weight
from step_infer.errors import InputError
from step_infer.event_log import event_log_path
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.identity import identify
from step_infer.settings import RequestOptions, StepSettings

Sampler = Callable[["StepLLM", Sequence[TracePlan]], Iterator[Trace]]
"""Samples the traces of one question."""


@dataclass(frozen=True)
class Result:
    """What came of one question."""

    question_id: str
    question: str
    answer: str | None
    """The voted answer."""
    vote: Vote
    traces: list[Trace]
    """All traces, in the order of their numbers."""
    seconds: float
    """From the question's submission to its last trace."""


class StepLLM:
    """A vLLM engine in this process that scores traces and stops the worst when memory is short.

    Use it as a context manager, or `close` it: the engine holds the device's memory.
    """

    def __init__(
        self,
        model: str,
        scorer: str | Path | None = None,
        *,
        prune: bool = True,
        min_keep: int = 1,
        min_steps: int = 1,
        aggregator: str | None = None,
        capture: bool = False,
        confidence: bool = False,
        event_log: str | Path | None = None,
        boundary: BoundaryRule | None = None,
        kv_budget_tokens: int | None = None,
        allow_mismatch: Collection[str] = (),
        plain: bool = False,
        **engine_args: Any,
    ) -> None:
        """Check the model and the scorer, then start the engine.

        Args:
            model: Hugging Face folder or hub id.
            scorer: scorer file; without one nothing is scored or pruned.
            prune: stop traces when memory is short; False scores only.
            min_keep: traces of a question that are always kept.
            min_steps: step scores that a trace must have before it can be stopped.
            aggregator: trace aggregator; None takes the scorer card's.
            capture: also return the hidden states at the boundaries (`Trace.hidden_SH`).
            confidence: also return the token confidence (`Trace.step_confidences`).
            event_log: file that gets a JSON line for each trace that ends.
            boundary: boundary rule without a scorer; None is a blank line.
            kv_budget_tokens: size of the KV cache in tokens; None takes what memory gives.
            allow_mismatch: scorer card fields that may differ from the model.
            plain: start stock vLLM, without the adapter; the baseline of comparisons.
            engine_args: passed on to `vllm.LLM`. A `scheduler_cls` among them takes the place of
                `StepScheduler`, of which it must be a subclass, and an `additional_config` (a
                dict) is kept beside the adapter's settings.

        Raises:
            InputError: model, scorer or budget cannot be used; the engine has not been started.
        """
        revision = engine_revision(engine_args)
        identity = identify(model, revision)
        if plain and (scorer is not None or capture or confidence):
            raise InputError(
                f"Expected neither scorer, capture nor confidence with plain=True, found scorer "
                f"{scorer}, capture {capture} and confidence {confidence}. "
                "Hint: leave out plain, or these three."
            )
        card = None
        if scorer is not None:
            from step_infer.scorer.network import load_scorer

            card = load_scorer(scorer, identity, allow_mismatch)[1]
        self.model = model
        self.identity = identity
        self.plain = plain or (scorer is None and not capture and not confidence)
        if self.plain and event_log is not None:
            raise InputError(
                "Expected a scorer with event_log, found none: nothing is scored. "
                "Hint: give scorer=FILE, or leave event_log out."
            )
        self.capture = capture
        self.confidence = confidence
        self.tokenizer = load_tokenizer(model, revision)
        self.rule = (
            card.boundary_rule
            if card is not None
            else boundary or BoundaryRule.for_tokenizer(self.tokenizer)
        )
        # A scheduler of its own may know more options.
        self._checks_options = "scheduler_cls" not in engine_args
        self._told: set[str] = set()
        arguments = engine_arguments(model, engine_args, kv_budget_tokens)
        self._takes_seeds = takes_seeds(arguments)
        if not self.plain:
            settings = StepSettings(
                scorer=None if scorer is None else os.path.realpath(scorer),
                prune=prune and scorer is not None,
                min_keep=min_keep,
                min_steps=min_steps,
                aggregator=aggregator,
                max_held_steps=None,  # all groups are one caller's: none starves another's
                capture=capture,
                confidence=confidence,
                event_log=None if event_log is None else event_log_path(event_log),
                boundary=self.rule.to_dict() if scorer is None else None,
                allow_mismatch=tuple(allow_mismatch),
            )
            arguments = with_adapter(arguments, settings)
        self._llm, self._guard = start_engine(arguments)
        self._give_back_core = leave_a_core(arguments)
        self._closed = False
        self._engine = self._llm.llm_engine
        config = self._engine.vllm_config
        self.max_model_len = int(config.model_config.max_model_len)
        self.block_size = int(config.cache_config.block_size)
        blocks = config.cache_config.num_gpu_blocks_override or config.cache_config.num_gpu_blocks
        self.kv_capacity_tokens = (int(blocks or 0) - 1) * self.block_size

    def __enter__(self) -> "StepLLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self._closed = True
        self._engine.engine_core.shutdown()
        self._guard.close()
        self._give_back_core()

    def stats(self) -> EngineStats:
        """Return vLLM's own counters as of the last step."""
        return engine_stats(self._llm.get_metrics())

    def plan(
        self,
        question_id: str,
        question: str,
        n: int = 64,
        sampling: Sampling | None = None,
        seed: int | None = 0,
        system: str = SYSTEM_PROMPT,
        first_trace_id: int = 0,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[TracePlan]:
        """Return the orders for `n` traces of one question, as one group.

        Args:
            question_id: names the question.
            question: what to ask.
            n: traces.
            sampling: how they are sampled.
            seed: each trace's own seed follows from this one; None takes the engine's.
            system: system text of the prompt; an empty text leaves it out.
            first_trace_id: number of the first trace.
            chat_template_kwargs: more arguments of the model's chat template, such as
                {"enable_thinking": False}.

        Raises:
            InputError: `n` is no whole number from 1, the question no text, `sampling` no
                `Sampling`, the chat template cannot ask the question (see
                `step_infer.client.prompt.chat_prompt`), or the prompt leaves no room for a
                response.
        """
        if not isinstance(n, int) or n < 1:
            raise InputError(
                f"Expected at least 1 trace a question, found {n!r:.60}. "
                "Hint: give n as an int, such as n=64."
            )
        if not isinstance(question, str):
            raise InputError(
                f"Expected a text as question {question_id}, found {question!r:.60}. "
                "Hint: give each question as a str."
            )
        if sampling is not None and not isinstance(sampling, Sampling):
            raise InputError(
                f"Expected a Sampling, found {sampling!r:.60}. Hint: Sampling(top_p=0.9)."
            )
        prompt = tuple(chat_prompt(self.tokenizer, question, system, chat_template_kwargs))
        if len(prompt) >= self.max_model_len:
            raise InputError(
                f"Expected a prompt shorter than the context ({self.max_model_len} tokens), "
                f"found {len(prompt)} tokens for question {question_id}. "
                "Hint: shorten the question or the system prompt, or raise max_model_len."
            )
        return [
            TracePlan(
                question_id,
                trace_id,
                prompt,
                None if seed is None else trace_seed(seed, question_id, trace_id),
                sampling or Sampling(),
                question_id,
            )
            for trace_id in range(first_trace_id, first_trace_id + n)
        ]

    def stream(
        self,
        plans: Iterable[TracePlan],
        max_in_flight: int = 1024,
        on_step: Callable[[], None] | None = None,
        stop: Callable[[Mapping[TraceKey, Sequence[int]]], Iterable[TraceKey]] | None = None,
    ) -> Iterator[Trace]:
        """Sample traces and yield each as it finishes.

        What the engine does not score, as after a failure of its scoring, comes without scores; a
        warning says why, once for each reason.

        Args:
            plans: the orders; read only as far as `max_in_flight` allows.
            max_in_flight: traces handed to the engine at once; its own limit of running traces is
                `max_num_seqs`.
            on_step: called after every engine step.
            stop: called after every engine step with the generated tokens so far of each running
                trace; returns the traces that end there, as "similar".

        Raises:
            InputError: the engine was closed, cannot do what an order wants, or an order has a bad
                option.
        """
        if self._closed:
            raise InputError(
                "Expected a running engine, found one that was closed. Hint: generate inside the "
                "with block."
            )
        orders = iter(plans)
        in_flight: dict[str, tuple[TracePlan, float]] = {}
        tokens: dict[str, list[int]] = {}
        more = True
        try:
            while True:
                while more and len(in_flight) < max_in_flight:
                    order = next(orders, None)
                    if order is None:
                        more = False
                        break
                    name = self._submit(order, by_delta=stop is not None)
                    in_flight[name] = (order, time.monotonic())
                    tokens[name] = []
                if not in_flight:
                    return
                outputs = self._engine.step()
                if on_step is not None:
                    on_step()
                for output in outputs:
                    name = output.request_id
                    tokens[name] += output.outputs[0].token_ids
                    if output.finished:
                        order, submitted_s = in_flight.pop(name)
                        yield self._trace(order, tokens.pop(name), output, submitted_s)
                if stop is not None:
                    running = {in_flight[name][0].key: tokens[name] for name in in_flight}
                    names = [request_id(key) for key in stop(running)]
                    self._engine.abort_request(names)
                    for name in names:
                        order, submitted_s = in_flight.pop(name)
                        yield self._trace(order, tokens.pop(name), None, submitted_s)
        finally:
            if in_flight and not self._closed:  # the reader stopped early, or an error
                self._engine.abort_request(list(in_flight))

    def generate(
        self,
        questions: Sequence[str],
        n: int = 64,
        sampling: Sampling | None = None,
        seed: int | None = 0,
        system: str = SYSTEM_PROMPT,
        progress: bool = True,
        sampler: Sampler | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[Result]:
        """Answer questions one after the other, each by a vote of `n` traces.

        A trace that was stopped or filtered does not vote; the others vote by `trace_weight`.
        Equal answers are grouped by mathematical equality.

        Args:
            questions: what to ask.
            n: traces a question.
            sampling: how traces are sampled.
            seed: each trace's own seed follows from this one; None takes the engine's.
            system: system text of the prompt.
            progress: show a progress bar.
            sampler: samples a question's traces, such as `DeepConf().stream` or `SlimSC().stream`;
                None hands all of them to the engine at once.
            chat_template_kwargs: more arguments of the model's chat template.

        Raises:
            InputError: no questions, or one that cannot be asked (nothing has been sampled then);
                a bad `n` or `sampling`.
        """
        from rich.progress import track

        if isinstance(questions, str) or not questions:
            raise InputError(
                f"Expected a list of questions, found {questions!r:.60}. "
                "Hint: for one question, generate([question])."
            )

        def plans_of(number: int, question: str) -> list[TracePlan]:
            name = str(number)
            return self.plan(
                name, question, n, sampling, seed, system, chat_template_kwargs=chat_template_kwargs
            )

        # All before the first is sampled: a bad one must not cost the answers of the others.
        orders = [
            (question, plans_of(number, question)) for number, question in enumerate(questions)
        ]
        note = system_note(self.tokenizer, questions[0], system, chat_template_kwargs)
        if note is not None:
            warnings.warn(note, stacklevel=2)
        results = []
        with Grader() as grader:
            for question, plans in track(orders, "questions", disable=not progress):
                started = time.monotonic()
                sampled = self.stream(plans) if sampler is None else sampler(self, plans)
                traces = sorted(sampled, key=lambda trace: trace.trace_id)
                outcome = vote(
                    [None if trace.filtered else trace.answer for trace in traces],
                    [trace_weight(trace) for trace in traces],
                    grader.same(trace.answer for trace in traces if not trace.filtered),
                )
                seconds = max(trace.finished_s for trace in traces) - started
                name = plans[0].question_id
                results.append(Result(name, question, outcome.answer, outcome, traces, seconds))
        return results

    def _submit(self, order: TracePlan, by_delta: bool) -> str:
        if order.seed is not None and not self._takes_seeds:
            raise InputError(
                "Expected traces without a seed on a CPU engine with chunked prefill (vLLM's CPU "
                "runner cannot do both), found one. Hint: leave enable_chunked_prefill off."
            )
        if "window" in order.options and not self.confidence:
            raise InputError(
                "Expected an engine with confidence=True for windows of token confidences, found "
                "one without. Hint: start StepLLM with it, or leave window out."
            )
        room = self.max_model_len - len(order.prompt_token_ids)
        options = None if self.plain else {"capture": self.capture}
        params = sampling_params(order, options, room, by_delta)
        if self._checks_options:
            RequestOptions.from_extra_args(params.extra_args)
        name = request_id(order.key)
        prompt = {"prompt_token_ids": list(order.prompt_token_ids)}
        self._engine.add_request(name, prompt, params)  # type: ignore[arg-type]
        return name

    def _trace(
        self, order: TracePlan, token_ids: list[int], output: Any, submitted_s: float
    ) -> Trace:
        error = report_of(output).get("error")
        if error is not None and error not in self._told:
            self._told.add(error)
            warnings.warn(f"Trace {request_id(order.key)} has no scores. {error}", stacklevel=3)
        hidden_size = self.identity.hidden_size
        return ended_trace(
            order, token_ids, output, submitted_s, self.tokenizer, self.rule, hidden_size
        )
