"""The offline client: sample, score, prune and vote with a few lines of Python."""

import math
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from step_infer.client.answers import Vote, vote
from step_infer.client.branching import GrowingTrace, shared_among_voters
from step_infer.client.deciding import (
    FINISHED,
    LIKELY,
    UNBEATABLE,
    Budget,
    StopRule,
    likely_rule,
)
from step_infer.client.engine import (
    EngineStats,
    abort_because,
    engine_arguments,
    engine_name,
    engine_revision,
    engine_stats,
    leave_a_core,
    start_engine,
    takes_seeds,
    with_adapter,
    without_interrupts,
)
from step_infer.client.grading import Grader
from step_infer.client.kinds import AnswerOptions
from step_infer.client.prompt import SYSTEM_PROMPT, load_tokenizer, system_note
from step_infer.client.requests import (
    ended_trace,
    inherited_ids,
    question_plans,
    report_of,
    request_id,
    sampling_params,
)
from step_infer.client.running_vote import RunningVote
from step_infer.client.trace import (
    SIMILAR,
    Sampling,
    Trace,
    TraceKey,
    TracePlan,
    in_waves,
    one_each,
    trace_weight,
)
from step_infer.errors import InputError
from step_infer.event_log import event_log_path
from step_infer.scorer.aggregate import NEVER_RISE
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.card import ScorerCard
from step_infer.scorer.identity import identify
from step_infer.settings import RequestOptions, StepSettings

_SUCH = {Budget: "such as Budget(seconds=60)", AnswerOptions: 'such as AnswerOptions("choice")'}
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
    ended: str = FINISHED
    """"finished" when all traces had ended, "decided" when the vote did not need the others, or
    "over_budget"."""
    why: str | None = None
    """The stop rule that decided, or the limit that was reached: "seconds" or "tokens"."""
    shared_vote: Vote | None = None
    """Where traces were branched: the vote in which those of one family share their weights
    (`step_infer.client.branching.shared_weights`)."""


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
        card: ScorerCard | None = None
        if scorer is not None:
            from step_infer.scorer.network import load_scorer

            card = load_scorer(scorer, identity, allow_mismatch)[1]
        self.card = card
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
        self._falls = self.card is not None and (aggregator or self.card.aggregator) in NEVER_RISE
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
        self.prefix_caching = bool(config.cache_config.enable_prefix_caching)

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
            InputError: `n` is no whole number from 1, the question or `system` no text, `sampling`
                no `Sampling`, the chat template cannot ask the question (see
                `step_infer.client.prompt.chat_prompt`), or the prompt leaves no room for a
                response.
        """
        return question_plans(
            self.tokenizer,
            self.max_model_len,
            question_id,
            question,
            n,
            sampling,
            seed,
            system,
            first_trace_id,
            chat_template_kwargs,
        )

    def stream(
        self,
        plans: Iterable[TracePlan | None],
        max_in_flight: int = 1024,
        on_step: Callable[[], None] | None = None,
        stop: Callable[[Mapping[TraceKey, Sequence[int]]], Iterable[TraceKey]] | None = None,
        branch: "Callable[[Collection[GrowingTrace]], Iterable[TracePlan]] | None" = None,
    ) -> Iterator[Trace]:
        """Sample traces and yield each as it finishes.

        When an order's vote closes, its running traces end within a step or two, and those that
        have not begun do not begin: they are yielded without tokens.

        What the engine does not score, as after a failure of its scoring, comes without scores; a
        warning says why, once for each reason.

        Args:
            plans: the orders; read only as far as `max_in_flight` allows. None among them stands
                for no further order before the next engine step.
            max_in_flight: traces handed to the engine at once; its own limit of running traces is
                `max_num_seqs`.
            on_step: called after every engine step.
            stop: called after every engine step with the generated tokens so far of each running
                trace; returns the traces that end there, as "similar".
            branch: called after every engine step with the traces that have not ended; returns
                orders that begin at once, such as `Branching.stream` makes.

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
        in_flight: dict[str, _Running] = {}
        more, voting = True, False
        try:
            while True:
                while more and len(in_flight) < max_in_flight:
                    try:
                        order = next(orders)
                    except StopIteration:
                        more = False
                        break
                    if order is None:
                        break
                    if order.vote is not None and order.vote.closed is not None:
                        yield self._trace(_Running(order), None, order.vote.closed)
                    else:
                        running = _Running(
                            order,
                            branches=branch is not None,
                            by_delta=stop is not None or _watched(order),
                        )
                        self._begin(running, in_flight)
                        voting |= order.vote is not None
                if not in_flight:
                    return
                with without_interrupts():
                    outputs = self._engine.step()
                if on_step is not None:
                    on_step()
                for output in outputs:
                    running = in_flight[output.request_id]
                    running.take_output(output)
                    if output.finished:
                        del in_flight[output.request_id]
                        yield self._trace(running, output)
                if voting:
                    yield from self._end_closed(in_flight)
                if stop is not None:
                    keys = stop({r.order.key: r.token_ids for r in in_flight.values()})
                    yield from self._end([request_id(key) for key in keys], in_flight, SIMILAR)
                if branch is not None:
                    for order in branch(in_flight.values()):
                        self._begin(_Running(order, branches=True), in_flight)
        finally:
            if in_flight and not self._closed:  # the reader stopped early, or an error
                with without_interrupts():
                    self._engine.abort_request(list(in_flight))

    def _begin(self, running: "_Running", in_flight: dict[str, "_Running"]) -> None:
        """Have the engine begin a trace."""
        with without_interrupts():
            in_flight[self._submit(running)] = running

    def _end_closed(self, in_flight: dict[str, "_Running"]) -> Iterator[Trace]:
        """End the running traces whose vote has closed."""
        now_s = time.monotonic()
        votes = {id(r.order.vote): r.order.vote for r in in_flight.values()}
        for vote_ in votes.values():
            if vote_ is not None and (reason := vote_.check(now_s)) is not None:
                names = [name for name, r in in_flight.items() if r.order.vote is vote_]
                yield from self._end(names, in_flight, reason)

    def _end(
        self, names: Sequence[str], in_flight: dict[str, "_Running"], reason: str
    ) -> Iterator[Trace]:
        """Stop running traces for a reason of the client's."""
        with without_interrupts():
            tokens = abort_because(self._engine, names, reason)
            ended = [(name, in_flight.pop(name)) for name in names]
        for name, running in ended:
            running.token_ids = tokens.get(name, running.token_ids)
            yield self._trace(running, None, reason)

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
        stop_rule: str = UNBEATABLE,
        budget: Budget | None = None,
        wave: int | None = None,
        answers: AnswerOptions | None = None,
    ) -> list[Result]:
        """Answer questions one after the other, each by a vote of at most `n` traces.

        A trace that was stopped or filtered does not vote; the others vote by `trace_weight`.
        Equal answers are grouped, as the answer kind has it. When the vote of a question is
        decided, or its budget is spent, its other traces are stopped, and `Result.ended` says so.

        Args:
            questions: what to ask.
            n: traces a question.
            sampling: how traces are sampled.
            seed: each trace's own seed follows from this one; None takes the engine's.
            system: system text of the prompt.
            progress: show a progress bar.
            sampler: samples a question's traces, such as `Branching().stream` (which may make more
                than `n`, in the place of stopped ones), `DeepConf().stream` or `SlimSC().stream`;
                None hands all of them to the engine at once.
            chat_template_kwargs: more arguments of the model's chat template.
            stop_rule: when a vote is decided: "unbeatable", as soon as no other answer can win any
                more; "likely", as soon as that is improbable, by the threshold that `step-eval
                calibrate` has written into the scorer file; or "never".
            budget: what each question may cost.
            wave: traces of a question that run at once; as one ends and the vote is still open, the
                next begins, and other questions fill the room up to `n`. None starts all at once.
            answers: the answer kind, such as AnswerOptions("choice"); None is math.

        Raises:
            InputError: no questions, or one that cannot be asked (nothing has been sampled then);
                a bad `n`, `sampling`, `stop_rule`, `budget`, `wave` or `answers`; an answer kind of
                one's own that cannot be loaded.
        """
        from rich.progress import Progress

        if isinstance(questions, str) or not isinstance(questions, Sequence) or not questions:
            raise InputError(
                f"Expected a list of questions, found {questions!r:.60}. "
                "Hint: for one question, generate([question])."
            )
        if wave is not None and (not isinstance(wave, int) or wave < 1 or sampler is not None):
            raise InputError(
                f"Expected a wave of at least 1 trace, and no sampler with it, found {wave!r:.60}. "
                "Hint: leave wave out to start all traces at once."
            )
        for name, value, kind in (("budget", budget, Budget), ("answers", answers, AnswerOptions)):
            if value is not None and not isinstance(value, kind):
                raise InputError(
                    f"Expected {kind.__name__} as {name}, found {value!r:.60}. Hint: {_SUCH[kind]}."
                )
        rule = self._stop_rule(stop_rule)
        # Weights are scores up to 1, but a sampler may have traces weigh by their confidences.
        most = math.inf if sampler is not None and self.confidence else 1.0
        weigh = one_each if self.card is None and sampler is None else trace_weight
        # All before the first is sampled: a bad one must not cost the answers of the others.
        orders = [
            self.plan(
                str(number),
                question,
                n,
                sampling,
                seed,
                system,
                chat_template_kwargs=chat_template_kwargs,
            )
            for number, question in enumerate(questions)
        ]
        note = system_note(self.tokenizer, questions[0], system, chat_template_kwargs)
        if note is not None:
            warnings.warn(note, stacklevel=2)
        with Grader(answers=answers) as grader, Progress(disable=not progress) as bar:
            runs = [
                _Question(
                    question,
                    [replace(plan, extract=grader.extract) for plan in plans],
                    RunningVote(range(n), weigh, most, rule, budget, grader, float, self._falls),
                    weigh,
                )
                for question, plans in zip(questions, orders, strict=True)
            ]
            by_id = {run.plans[0].question_id: run for run in runs}
            task = bar.add_task("questions", total=len(runs))
            for trace in self._sampled(runs, n, wave, sampler):
                run = by_id[trace.question_id]
                run.take(trace)
                if trace.parent is None:
                    bar.advance(task, 1 / n)
            return [run.result(grader) for run in runs]

    def _sampled(
        self, runs: Sequence["_Question"], n: int, wave: int | None, sampler: Sampler | None
    ) -> Iterator[Trace]:
        if wave is not None:
            yield from self.stream(in_waves([run.plans for run in runs], wave), max_in_flight=n)
            return
        for run in runs:
            if sampler is None:
                yield from self.stream(run.plans, max_in_flight=n)
            else:
                yield from sampler(self, run.plans)

    def _stop_rule(self, name: str) -> StopRule:
        if name != LIKELY:
            return StopRule(name)
        if self.card is None:
            raise InputError(
                "Expected a scorer for the stop rule likely, whose threshold stands in its file, "
                "found none. Hint: give scorer=FILE, or take the rule unbeatable."
            )
        return likely_rule(self.card.deciding, "score")

    def _submit(self, running: "_Running") -> str:
        order = running.order
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
        options = None
        if not self.plain:
            options = {
                "capture": self.capture,
                "progress": _watched(order),
                "branch": running.branches,
            }
        by_delta = running.by_delta or running.branches
        parent = ""
        if order.inherited is not None:
            theirs = request_id((order.question_id, order.inherited.parent))
            parent = engine_name(self._engine.output_processor, theirs)
        params = sampling_params(order, options, room, by_delta, parent)
        if self._checks_options:
            RequestOptions.from_extra_args(params.extra_args)
        name = request_id(order.key)
        prompt = {"prompt_token_ids": [*order.prompt_token_ids, *inherited_ids(order)]}
        running.submitted_s = time.monotonic()
        if order.vote is not None:
            order.vote.begin(order.trace_id, running.submitted_s)
        self._engine.add_request(name, prompt, params)  # type: ignore[arg-type]
        return name

    def _trace(self, running: "_Running", output: Any, stopped: str | None = None) -> Trace:
        error = report_of(output).get("error")
        if error is not None and error not in self._told:
            self._told.add(error)
            name = request_id(running.order.key)
            warnings.warn(f"Trace {name} has no scores. {error}", stacklevel=3)
        return ended_trace(
            running.order,
            running.token_ids,
            output,
            running.submitted_s or time.monotonic(),
            self.tokenizer,
            self.rule,
            self.identity.hidden_size,
            stopped,
            running.cached_tokens,
        )


class _Question:
    """A question of `StepLLM.generate`, with what has come of it."""

    def __init__(
        self,
        question: str,
        plans: Sequence[TracePlan],
        vote: RunningVote,
        weigh: Callable[[Trace], float],
    ) -> None:
        self.question = question
        self._weigh = weigh
        self.plans = [replace(plan, vote=vote) for plan in plans]
        self.vote = vote
        self.traces: list[Trace] = []

    def take(self, trace: Trace) -> None:
        self.traces.append(trace)
        self.vote.add(trace)

    def result(self, grader: Grader) -> Result:
        traces = sorted(self.traces, key=lambda trace: trace.trace_id)
        answers = [None if trace.filtered else trace.answer for trace in traces]
        weights, same = [self._weigh(trace) for trace in traces], grader.same(answers)
        outcome, shared = vote(answers, weights, same), None
        if any(trace.parent is not None for trace in traces):
            shared = vote(answers, shared_among_voters(traces, answers, weights), same)
        return Result(
            self.plans[0].question_id,
            self.question,
            outcome.answer,
            outcome,
            traces,
            max(trace.finished_s for trace in traces) - (self.vote.began_s or 0.0),
            self.vote.closed or FINISHED,
            self.vote.why,
            shared,
        )


@dataclass
class _Running(GrowingTrace):
    """A trace that the engine has."""

    branches: bool = False
    """Whether it may be a parent: then it asks for its step scores on the way."""
    by_delta: bool = False
    submitted_s: float = 0.0
    cached_tokens: int | None = None

    def take_output(self, output: Any) -> None:
        """Take in one of the engine's outputs."""
        self.token_ids += output.outputs[0].token_ids
        if self.order.inherited is not None:
            self.cached_tokens = output.num_cached_tokens
        report = report_of(output)
        if self.branches and not output.finished:
            self.take(report)
        if _watched(self.order):
            assert self.order.vote is not None
            self.order.vote.see(self.order.trace_id, len(self.token_ids), report.get("score"))


def _watched(order: TracePlan) -> bool:
    return order.vote is not None and order.vote.watches
