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
from collections.abc import AsyncGenerator, Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from step_infer.client.answers import Vote
from step_infer.client.deciding import (
    FINISHED,
    LIKELY,
    Budget,
    StopRule,
    likely_rule,
)
from step_infer.client.requests import ended_trace, report_of
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
        """Generated tokens of all traces together."""
        return sum(len(trace.token_ids) for trace in self.traces)


_Ended = tuple[Any, Trace] | Exception
"""A trace with vLLM's last output of it, or why there is none."""


class TraceState(NamedTuple):
    """Where a trace is."""

    state: str
    """`WAITING`, `RUNNING`, `FINISHED` by itself, or why it was stopped."""
    tokens: int
    """Generated so far."""
    score: float | None
    """Its trace score so far."""


class VotedCall:
    """An engine client for one request of vLLM's serving code, which it answers by a vote."""

    def __init__(self, model: VotedModel, options: VotedOptions) -> None:
        """Prepare a call.

        Raises:
            InputError: the stop rule needs a threshold that the scorer card does not have.
        """
        self._model, self._options = model, options
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
        self._watches = self.vote.watches or model.settings.page
        self._group = secrets.token_hex(16)
        self._traces: dict[int, Trace] = {}
        self._outputs: dict[int, Any] = {}
        self._seen: dict[int, TraceState] = {}
        self._tally: dict[Hashable, tuple[str, float, list[int]]] = {}
        self._began_s = 0.0
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
        text = f"{len(self._traces)} of {self._options.traces} traces"
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

    def traces_so_far(self) -> list[TraceState]:
        """Return where each trace is [N]; of running ones only where calls watch them."""
        states = []
        for number in range(self._options.traces):
            seen = self._seen.get(number, TraceState(WAITING, 0, None))
            if (trace := self._traces.get(number)) is not None:
                reason = trace.finish_reason
                score = seen.score if trace.trace_score is None else trace.trace_score
                state = reason if reason in STOPPED else FINISHED
                seen = TraceState(state, len(trace.token_ids), score)
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
        admit = getattr(self._model.engine, "check_admission", None)
        if admit is not None:
            admit(self._options.traces)
        # A client may name its request: what can be aborted by name must not be guessed.
        prefix = f"{request_id}-{secrets.token_hex(8)}"
        names = [f"{prefix}-{number}" for number in range(self._options.traces)]
        arrived: asyncio.Queue[_Ended] = asyncio.Queue()
        rank = options.get("data_parallel_rank")
        if rank is None and self._model.ranks > 1:  # a group lives within one engine
            rank = min(range(self._model.ranks), key=self._model.load.__getitem__)
            options["data_parallel_rank"] = rank
        self._model.load[rank or 0] += len(names)
        readers = [
            asyncio.create_task(self._read(number, name, prompt, sampling_params, options, arrived))
            for number, name in enumerate(names)
        ]
        self._began_s = time.monotonic()
        self.request_id = request_id
        self.begun.set()
        try:
            await self._take(names, arrived)
            self.outcome = await self._outcome()
        finally:
            self._model.load[rank or 0] -= len(names)
            try:
                if len(self._traces) < len(names):  # the client has gone, or something failed
                    with suppress(Exception):  # an engine that is dead has nothing to abort
                        await self._model.engine.abort(names)
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

    async def _read(
        self,
        number: int,
        name: str,
        prompt: Any,
        sampling_params: Any,
        options: dict[str, Any],
        arrived: "asyncio.Queue[_Ended]",
    ) -> None:
        """Sample one trace; hand it over with its last output, and all that came before that."""
        try:
            params = self._params(number, sampling_params)
            self.vote.begin(number, time.monotonic())
            whole = None
            async for output in self._model.engine.generate(prompt, params, name, **options):
                whole = output if whole is None else _joined(whole, output)
                if self._watches:
                    self._see(number, whole, report_of(output).get("score"))
            arrived.put_nowait((whole, await self._trace(number, whole)))
        except Exception as error:
            arrived.put_nowait(error)

    async def _trace(self, number: int, output: Any) -> Trace:
        """Return a trace that has ended."""
        completion = output.outputs[0]
        aborted = completion.finish_reason == "abort" and completion.stop_reason is None
        ours = self.vote.closed if aborted else None
        final: list[tuple[str, str | None]] = []
        order = TracePlan(
            QUESTION_ID,
            number,
            tuple(output.prompt_token_ids or ()),
            None,
            Sampling(),
            self._group,
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
        )
        for text, think_end in final:
            trace.answer = await self._model.grading.extract(
                self._grader, text, think_end, lambda: self.vote.closed == OVER_BUDGET
            )
        return trace

    def _see(self, number: int, whole: Any, score: float | None) -> None:
        """Note how far a trace is, and its trace score where it is new."""
        tokens = len(whole.outputs[0].token_ids)
        self.vote.see(number, tokens, score)
        if score is None and number in self._seen:
            score = self._seen[number].score
        self._seen[number] = TraceState(RUNNING, tokens, score)

    def _params(self, number: int, sampling_params: Any) -> Any:
        """Return the sampling parameters of one trace."""
        from vllm.sampling_params import RequestOutputKind

        params = sampling_params.clone()
        if params.seed is not None:
            params.seed = trace_seed(params.seed, QUESTION_ID, number)
        if self._watches:
            params.output_kind = RequestOutputKind.DELTA
        if self._model.scored:
            step: dict[str, Any] = {"group": self._group, "progress": self._watches}
            if self._options.min_keep is not None:
                step["min_keep"] = min(self._options.min_keep, self._options.traces)
            # Its own caller: no other request, whatever its key, can be of this group.
            own = {CONFIG_KEY: step, CALLER_KEY: self._group}
            params.extra_args = {**(params.extra_args or {}), **own}
        return params

    async def _take(self, names: Sequence[str], arrived: "asyncio.Queue[_Ended]") -> None:
        """Take in the traces as they end, and end the others once the vote is closed."""
        closed = None
        while len(self._traces) < len(names):
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
            if closed is None and (closed := await self._look()) is not None:
                running = [n for k, n in enumerate(names) if k not in self._traces]
                await _abort(self._model.engine, running, closed)

    async def _add(self, output: Any, trace: Trace) -> None:
        self._outputs[trace.trace_id], self._traces[trace.trace_id] = output, trace
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
        )

    def _answer(self, best: Trace) -> Any:
        """Return the output of the trace that answers, as that of a request of its own."""
        output = self._outputs[best.trace_id]
        output.kv_transfer_params = None  # its report is no part of the answer
        completion = output.outputs[0]
        if completion.finish_reason == "abort":
            completion.finish_reason, completion.stop_reason = "length", None
        return output


def _rank(trace: Trace) -> tuple[bool, float, int]:
    """Order traces by how well they can answer; of equal ones the first does."""
    ended = trace.finish_reason in ("stop", "length")
    score = -1.0 if trace.trace_score is None else trace.trace_score
    return ended, score, 0 if ended else len(trace.token_ids)


def _rule(model: VotedModel, options: VotedOptions) -> StopRule:
    if options.stop_rule != LIKELY:
        return StopRule(options.stop_rule)
    return likely_rule(model.card.deciding if model.card else {}, options.vote)


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
