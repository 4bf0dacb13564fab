"""One voted call: the traces of one prompt, as a private group, until their vote is closed.

To vLLM's serving code a `VotedCall` is an engine whose one request is answered by one output; that
this output is the best of many traces is known here alone. So prompts, parameters, templates and
the parsing of what comes back stay vLLM's own.
"""

import asyncio
import dataclasses
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from step_infer.client.answers import Vote
from step_infer.client.branching import shared_among_voters
from step_infer.client.deciding import (
    FINISHED,
    LIKELY,
    Budget,
    StopRule,
    likely_rule,
)
from step_infer.client.engine import engine_name
from step_infer.client.requests import ended_trace, inherit_option, inherited_ids, report_of
from step_infer.client.running_vote import RunningVote
from step_infer.client.trace import (
    STOPPED,
    Sampling,
    Trace,
    TracePlan,
    one_each,
    trace_seed,
    trace_weight,
)
from step_infer.errors import InputError
from step_infer.scorer.aggregate import NEVER_RISE
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.card import ScorerCard
from step_infer.server.voted_branching import CallFamily
from step_infer.server.voted_grading import VotedGrading
from step_infer.server.voted_settings import SCORE, VotedOptions, VotedSettings
from step_infer.wire import CALLER_KEY, CONFIG_KEY, OVER_BUDGET, because

WAITING, RUNNING = "waiting", "running"
"""States of a trace that has not ended: before and after its first token."""
QUESTION_ID = "0"
"""As that of the first question of `StepLLM.generate`: a seed gives the same seeds to traces."""
OWN = "own"
_LOOK_S = 0.1
"""Between two looks at the budget, while no trace ends."""
_SHOWN = 60
"""Characters of an answer that progress shows."""
_CONTEXT = 8
"""Tokens of the prompt's end beside which inherited ones are decoded."""


@dataclasses.dataclass(frozen=True)
class VotedModel:
    """What all voted calls of a server share."""

    settings: VotedSettings
    engine: Any
    """vLLM's `AsyncLLM`."""
    tokenizer: Any
    rule: BoundaryRule
    grading: VotedGrading
    scored: bool = False
    """Whether the engine runs the adapter; without it every vote weighs the same."""
    card: ScorerCard | None = None
    aggregator: str | None = None
    takes_seeds: bool = True
    prefix_caching: bool = False
    max_model_len: int = 0
    """The model's context, in tokens."""
    ranks: int = 1
    """Data-parallel engines that a request can be sent to."""
    load: Counter[int] = dataclasses.field(default_factory=Counter)
    """Traces of voted calls that each of them has."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a voted call of N traces."""

    vote: Vote
    traces: list[Trace]
    """All of them, in the order of their numbers [N]."""
    best: Trace
    """The one that answers: of the best score among the winners; without any answer, of all."""
    seconds: float
    ended: str
    """As in `step_infer.client.llm.Result`."""
    why: str | None
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, those that were in the prefix cache before the call."""
    kind: str
    """The answer kind; `OWN` for code, of which a client need not know the name."""
    uncompared: int
    """Comparisons of answers that were given up for want of time; they count as different."""
    shared_vote: Vote | None = None
    """Of a call that may branch: the vote in which traces of one family share their weights
    (`step_infer.client.branching.shared_weights`); None of other calls."""

    @property
    def children(self) -> list[Trace]:
        """The traces that branched from another."""
        return [trace for trace in self.traces if trace.parent is not None]

    @property
    def chosen_by(self) -> str:
        """What made the best trace's answer that of the call: its vote, or without any its score.

        "none" where there is neither: then the first that ended answers, or else the longest.
        """
        if self.vote.answer is not None:
            return "vote"
        return "none" if self.best.trace_score is None else "score"

    @property
    def completion_tokens(self) -> int:
        """Generated tokens of all traces together; inherited ones count once."""
        return sum(trace.own_tokens for trace in self.traces)


_Ended = tuple[Any, Trace] | Exception
"""A trace with vLLM's last output of it, or why there is none."""


class TraceState(NamedTuple):
    """Where a trace is."""

    state: str
    """`WAITING`, `RUNNING`, `FINISHED` by itself, or why it was stopped."""
    tokens: int
    """Generated so far, by itself."""
    score: float | None
    """Its trace score so far."""


class VotedCall:
    """An engine client for one request of vLLM's serving code, which it answers by a vote."""

    def __init__(self, model: VotedModel, options: VotedOptions) -> None:
        """Prepare a call.

        Raises:
            InputError: the stop rule needs a threshold that the scorer card does not have, or the
                engine cannot branch traces.
        """
        self._model, self._options = model, options
        if options.branch is not None and (model.card is None or not model.prefix_caching):
            lacking = "a scorer" if model.card is None else "prefix caching"
            raise InputError(
                "Expected an engine with a scorer and prefix caching for a call that branches, "
                f"found one without {lacking}. Hint: leave branch out."
            )
        aggregator = model.aggregator or (model.card.aggregator if model.card else None)
        self._grader = model.grading.grader(options.answers)
        by_score = model.card is not None and options.vote == SCORE
        self._weigh = trace_weight if by_score else one_each
        self.vote = RunningVote(
            range(options.traces),
            self._weigh,
            rule=_rule(model, options),
            budget=Budget(options.seconds, options.tokens),
            grader=self._grader,
            expect=float if by_score else None,
            falls=by_score and aggregator in NEVER_RISE,
        )
        self._family: CallFamily | None = None
        branches = options.branch is not None
        self._watches = self.vote.watches or branches or model.settings.page
        self._group = secrets.token_hex(16)
        self._names: list[str] = []
        """Of the requests of its traces, by their numbers."""
        self._traces: dict[int, Trace] = {}
        self._outputs: dict[int, Any] = {}
        self._seen: dict[int, TraceState] = {}
        self._tally: dict[Hashable, tuple[str, float, list[int]]] = {}
        self._began_s = 0.0
        self._skips_special = True
        self.request_id: str | None = None
        """What vLLM named the request; None before the traces begin."""
        self.begun = asyncio.Event()
        """Set once the prompt is good and its traces begin."""
        self.outcome: Outcome | None = None

    def __getattr__(self, name: str) -> Any:
        """Be the engine in all else."""
        return getattr(self._model.engine, name)

    def progress(self) -> str:
        """Return how far the vote is, in one line."""
        text = f"{len(self._traces)} of {self._num_traces} traces"
        groups = self.standing()
        if not groups:
            return text
        total = sum(weight for _, weight, _ in groups)
        leader, weight, _ = groups[0]
        share = weight / total if total > 0 else 0.0
        return f"{text}, {' '.join(leader.split())[:_SHOWN]} leads with {share:.0%}"

    def standing(self) -> list[tuple[str, float, list[int]]]:
        """Return the answers so far, the heaviest first: a form, its weight, its traces."""
        return sorted(self._tally.values(), key=lambda group: group[1], reverse=True)

    @property
    def _num_traces(self) -> int:
        """Its traces so far, children among them."""
        return max(self._options.traces, len(self._names))

    def traces_so_far(self) -> list[TraceState]:
        """Return where each trace is [N]; of running ones only where calls watch them."""
        states = []
        for number in range(self._num_traces):
            seen = self._seen.get(number, TraceState(WAITING, 0, None))
            if (trace := self._traces.get(number)) is not None:
                reason = trace.finish_reason
                score = seen.score if trace.trace_score is None else trace.trace_score
                state = reason if reason in STOPPED else FINISHED
                seen = TraceState(state, trace.own_tokens, score)
            states.append(seen)
        return states

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """Sample the traces of a prompt, and yield the output of the one that answers.

        Args:
            prompt: as vLLM's serving code has rendered it.
            sampling_params: of every trace; their seeds follow from its seed.
            request_id: what the traces are named after, in logs.
            options: what else vLLM's engine takes; the same for every trace.

        Raises:
            InputError: the parameters cannot be voted on.
        """
        self._check(sampling_params)
        self._skips_special = sampling_params.skip_special_tokens
        admit = getattr(self._model.engine, "check_admission", None)
        if admit is not None:
            admit(self._options.traces)
        # A client may name its request: what can be aborted by name must not be guessed.
        prefix = f"{request_id}-{secrets.token_hex(8)}"
        orders = self._orders(prompt, sampling_params)
        if self._options.branch is not None:
            self._family = CallFamily(
                self._options.branch, orders, self._model.max_model_len, sampling_params
            )
        arrived: asyncio.Queue[_Ended] = asyncio.Queue()
        rank = options.get("data_parallel_rank")
        if rank is None and self._model.ranks > 1:  # a group lives within one engine
            rank = min(range(self._model.ranks), key=self._model.load.__getitem__)
            options["data_parallel_rank"] = rank
        readers: list[asyncio.Task[None]] = []

        def begin(order: TracePlan) -> None:
            self._names.append(f"{prefix}-{order.trace_id}")
            self._model.load[rank or 0] += 1
            self.vote.begin(order.trace_id, time.monotonic())
            asked = _prompt_of(order, prompt), self._params(order, sampling_params)
            readers.append(asyncio.create_task(self._read(order, *asked, options, arrived)))

        self._began_s = time.monotonic()
        try:
            for order in orders:
                begin(order)
            self.request_id = request_id
            self.begun.set()
            await self._take(arrived, begin)
            self.outcome = await self._outcome()
        finally:
            self._model.load[rank or 0] -= len(self._names)
            try:
                if len(self._traces) < len(self._names):  # the client has gone, or something failed
                    with suppress(Exception):  # an engine that is dead has nothing to abort
                        await self._model.engine.abort(self._names)
                for reader in readers:
                    reader.cancel()
                await asyncio.gather(*readers, return_exceptions=True)
            finally:
                self._model.grading.end(self._grader)
        yield self._answer(self.outcome.best)

    def _check(self, sampling_params: Any) -> None:
        if sampling_params.seed is not None and not self._model.takes_seeds:
            raise InputError(
                "Expected a voted call without a seed on a CPU engine with chunked prefill (vLLM's "
                "CPU runner cannot do both), found one. Hint: leave seed out."
            )
        if self._options.traces > 1 and sampling_params.temperature == 0:
            raise InputError(
                "Expected a temperature above 0 for a vote, found 0: all traces would be the same. "
                "Hint: leave temperature out."
            )

    def _orders(self, prompt: Any, sampling_params: Any) -> list[TracePlan]:
        """Return the orders for the traces of a prompt."""
        seed = sampling_params.seed
        return [
            TracePlan(
                QUESTION_ID,
                number,
                tuple(prompt.get("prompt_token_ids") or ()) if isinstance(prompt, dict) else (),
                None if seed is None else trace_seed(seed, QUESTION_ID, number),
                Sampling(max_tokens=sampling_params.max_tokens or Sampling.max_tokens),
                self._group,
                vote=self.vote,
            )
            for number in range(self._options.traces)
        ]

    async def _read(
        self,
        order: TracePlan,
        prompt: Any,
        params: Any,
        options: dict[str, Any],
        arrived: "asyncio.Queue[_Ended]",
    ) -> None:
        """Sample one trace; hand it over with its last output, and all that came before that."""
        name = self._names[order.trace_id]
        try:
            whole = None
            async for output in self._model.engine.generate(prompt, params, name, **options):
                whole = output if whole is None else _joined(whole, output)
                if self._watches:
                    self._see(order.trace_id, whole, report_of(output))
            arrived.put_nowait((whole, await self._trace(order, whole)))
        except Exception as error:
            arrived.put_nowait(error)

    async def _trace(self, order: TracePlan, output: Any) -> Trace:
        """Return a trace that has ended."""
        completion = output.outputs[0]
        aborted = completion.finish_reason == "abort" and completion.stop_reason is None
        ours = self.vote.closed if aborted else None
        final: list[tuple[str, str | None]] = []
        child = order.inherited is not None
        order = dataclasses.replace(
            order,
            prompt_token_ids=order.prompt_token_ids or tuple(output.prompt_token_ids or ()),
            extract=lambda *response: final.append(response),  # to be looked at below
        )
        trace = ended_trace(
            order,
            list(completion.token_ids),
            output if ours is None else None,
            self._began_s,
            self._model.tokenizer,
            self._model.rule,
            0,
            ours,
            output.num_cached_tokens if child and completion.token_ids else None,
        )
        for text, think_end in final:
            trace.answer = await self._model.grading.extract(
                self._grader, text, think_end, lambda: self.vote.closed == OVER_BUDGET
            )
        return trace

    def _see(self, number: int, whole: Any, report: Mapping[str, Any]) -> None:
        """Note how far a trace is, and its trace score where it is new."""
        token_ids, score = whole.outputs[0].token_ids, report.get("score")
        tokens = len(token_ids)
        self.vote.see(number, tokens, score)
        if self._family is not None and not whole.finished:
            self._family.see(number, token_ids, report)
        if score is None and number in self._seen:
            score = self._seen[number].score
        self._seen[number] = TraceState(RUNNING, tokens, score)

    def _params(self, order: TracePlan, sampling_params: Any) -> Any:
        """Return the sampling parameters of one trace."""
        from vllm.sampling_params import RequestOutputKind

        params = sampling_params.clone()
        params.seed = order.seed
        if self._watches:
            params.output_kind = RequestOutputKind.DELTA
        if self._model.scored:
            step: dict[str, Any] = {"group": self._group, "progress": self._watches}
            step["branch"] = self._family is not None
            if self._options.min_keep is not None:
                step["min_keep"] = min(self._options.min_keep, self._options.traces)
            if order.inherited is not None:
                parent = self._names[order.inherited.parent]
                known_as = engine_name(self._model.engine.output_processor, parent)
                step["inherit"] = inherit_option(order.inherited, known_as)
                params.max_tokens = order.sampling.max_tokens - len(order.inherited.token_ids)
                params.min_tokens = max(params.min_tokens - len(order.inherited.token_ids), 0)
            # Its own caller: no other request, whatever its key, can be of this group.
            own = {CONFIG_KEY: step, CALLER_KEY: self._group}
            params.extra_args = {**(params.extra_args or {}), **own}
        return params

    async def _take(
        self, arrived: "asyncio.Queue[_Ended]", begin: Callable[[TracePlan], None]
    ) -> None:
        """Take in the traces as they end, and end the others once the vote is closed."""
        closed = None
        while len(self._traces) < len(self._names):
            try:
                ended = await asyncio.wait_for(arrived.get(), _LOOK_S)
            except TimeoutError:
                # One that was shut down, as at the server's end, says nothing to who waits for it.
                if self._model.engine.errored:
                    raise self._model.engine.dead_error from None
            else:
                if isinstance(ended, Exception):
                    raise ended
                await self._add(*ended)
            if closed is None:
                closed = await self._look()
            if closed is not None:
                # Each time: one that was on its way to the engine is not known there before.
                running = [n for k, n in enumerate(self._names) if k not in self._traces]
                await _abort(self._model.engine, running, closed)
            elif self._family is not None:
                for order in self._family.children():
                    begin(order)

    async def _add(self, output: Any, trace: Trace) -> None:
        self._outputs[trace.trace_id], self._traces[trace.trace_id] = output, trace
        if self._family is not None:
            self._family.end(trace)
        answer = trace.answer

        def add() -> Hashable:
            self.vote.add(trace)
            return None if answer is None else self._grader.binding(answer)

        key = await self._model.grading.do(self._grader, add)
        if answer is not None:
            form, weight, givers = self._tally.get(key, (answer, 0.0, []))
            self._tally[key] = form, weight + self._weigh(trace), [*givers, trace.trace_id]

    async def _look(self) -> str | None:
        """Return why the vote is closed, if it is."""
        now_s = time.monotonic()
        if self.vote.compares:
            return await self._model.grading.do(self._grader, self.vote.check, now_s)
        return self.vote.check(now_s)

    async def _outcome(self) -> Outcome:
        traces = [self._traces[number] for number in sorted(self._traces)]
        answers = [trace.answer for trace in traces]
        weights = [self._weigh(trace) for trace in traces]
        shared = None
        if self._family is not None:
            shares = shared_among_voters(traces, answers, weights)
            shared = await self._model.grading.vote(self._grader, answers, shares)
        outcome = await self._model.grading.vote(self._grader, answers, weights)
        voters = [traces[voter] for voter in outcome.groups[0][2]] if outcome.groups else traces
        first = self._outputs[0]
        return Outcome(
            outcome,
            traces,
            max(voters, key=_rank),
            time.monotonic() - self._began_s,
            self.vote.closed or FINISHED,
            self.vote.why,
            len(first.prompt_token_ids or ()),
            first.num_cached_tokens or 0,
            OWN if self._options.answers.runs_code else self._options.answers.name,
            self._grader.uncompared,
            shared,
        )

    def _answer(self, best: Trace) -> Any:
        """Return the output of the trace that answers, as that of a request of its own."""
        output = self._outputs[best.trace_id]
        output.kv_transfer_params = None  # its report is no part of the answer
        completion = output.outputs[0]
        if best.parent is not None:  # to vLLM what it inherited is prompt
            output.prompt_token_ids = list(best.prompt_token_ids)
            completion.token_ids = list(best.token_ids)
            completion.text = self._inherited_text(best) + completion.text
        if completion.finish_reason == "abort":
            completion.finish_reason, completion.stop_reason = "length", None
        return output

    def _inherited_text(self, child: Trace) -> str:
        """Return the text of what a child inherited, as vLLM has it in the parent's output."""

        def text(token_ids: Sequence[int]) -> str:
            # After the end of the prompt: some tokenizers drop a text's first space.
            whole = [*child.prompt_token_ids[-_CONTEXT:], *token_ids]
            return self._model.tokenizer.decode(
                whole,
                skip_special_tokens=self._skips_special,
                clean_up_tokenization_spaces=False,
            )

        return text(child.token_ids[: child.inherited])[len(text(())) :]


def _rank(trace: Trace) -> tuple[bool, float, int]:
    """Order traces by how well they can answer; of equal ones the first does."""
    ended = trace.finish_reason in ("stop", "length")
    score = -1.0 if trace.trace_score is None else trace.trace_score
    return ended, score, 0 if ended else len(trace.token_ids)


def _rule(model: VotedModel, options: VotedOptions) -> StopRule:
    if options.stop_rule != LIKELY:
        return StopRule(options.stop_rule)
    return likely_rule(model.card.deciding if model.card else {}, options.vote)


def _prompt_of(order: TracePlan, prompt: Any) -> Any:
    """Return an order's prompt, given that of the call as vLLM has rendered it."""
    if order.inherited is None:
        return prompt
    # All else stays, such as the salt by which the prefix cache tells callers apart.
    return {**prompt, "prompt_token_ids": [*order.prompt_token_ids, *inherited_ids(order)]}


def _joined(whole: Any, output: Any) -> Any:
    """Add a later output of a request to what came before it."""
    before, new = whole.outputs[0], output.outputs[0]
    before.text += new.text
    if not isinstance(before.token_ids, list):
        before.token_ids = list(before.token_ids)
    before.token_ids.extend(new.token_ids)  # long traces have thousands of outputs
    before.finish_reason, before.stop_reason = new.finish_reason, new.stop_reason
    whole.finished, whole.kv_transfer_params = output.finished, output.kv_transfer_params
    return whole


async def _abort(engine: Any, names: Sequence[str], reason: str) -> None:
    """Abort requests of vLLM's `AsyncLLM`, and tell the scheduler why."""
    ids = engine.output_processor.abort_requests(names, internal=False)
    core = engine.engine_core
    homes: Mapping[str, Any] | None = getattr(core, "reqs_in_flight", None)
    if homes is None:
        if ids:
            await core.abort_requests_async(because(reason, ids))
        return
    # Of several engines: this client drops ids that it does not know, and so would drop the reason.
    by_home: dict[Any, list[str]] = {}
    for name in ids:
        if name in homes:
            by_home.setdefault(homes[name], []).append(name)
    for home, own in by_home.items():
        await core._abort_requests(because(reason, own), home)
