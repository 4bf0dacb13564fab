"""The vLLM scheduler that prunes: `scheduler_cls="step_infer.scheduler.StepScheduler"`.

A shell around AsyncScheduler: own work, base call, own work. Before a step it asks the policy
for victims if the running requests' growth does not fit the free KV blocks; after a step it keeps
the scores of boundaries. What it keeps of a trace lives in `step_infer.live_traces`.

With async scheduling, step k+1 is scheduled while step k runs, before its tokens are known:

    schedule(k+1)   growth counts a placeholder for k's token; victims are chosen by the scores of
                    the steps up to k-1
    update(k)       k's tokens arrive, with the rows of k's *input* tokens: the score of a boundary
                    sampled in k-1 comes now, that of one sampled in k with update(k+1)

So a trace stopped in schedule(k+1) still has a token in flight in k. vLLM discards it: no output
comes for a request that it no longer knows.
"""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Iterable
from math import ceil, inf, nan
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from step_infer import compat, policy
from step_infer.compat import held_back
from step_infer.counters import Counters
from step_infer.errors import InputError, logged_errors
from step_infer.event_log import EventLog
from step_infer.live_traces import LiveTrace, LiveTraces
from step_infer.replies import IMPLICIT_GROUP, Reports, child_of
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.card import read_card
from step_infer.settings import RequestOptions, StepSettings
from step_infer.wire import (
    CALLER_KEY,
    CONFIDENCE,
    CONFIG_KEY,
    PRUNED,
    ROWS_ATTRIBUTE,
    UNSCORED_ATTRIBUTE,
    Refusal,
    Report,
    ScoreSoFar,
    StepRows,
    told_apart,
)

# In vLLM's own logger tree: its format and level apply.
logger = init_logger(f"vllm.{__name__}")

_FAILED: Refusal = {
    "error": "Expected an engine that scores, found one whose scoring failed. Hint: see its log."
}


class StepScheduler(AsyncScheduler):
    """vLLM's AsyncScheduler that stops the worst trace instead of preempting one.

    A comparison that differs in one thing is a subclass, chosen by its dotted path like this one:
    it may know more request options, follow traces otherwise, or choose another victim.
    """

    options_class: type[RequestOptions] = RequestOptions
    traces_class: type[LiveTraces] = LiveTraces

    _pause_state: PauseState
    following = False
    """Whether there are settings to score and prune by; without them this is an AsyncScheduler."""
    _num_held = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (self.vllm_config.additional_config or {}).get(CONFIG_KEY) is None:
            logger.warning(
                'StepScheduler scores and prunes nothing: additional_config has no "%s" settings.',
                CONFIG_KEY,
            )
            return
        with logged_errors(logger):
            self._start()

    def _start(self) -> None:
        # First of all: whatever else runs must find the base class's methods in their place.
        compat.follow_async_setting(self)
        reason = compat.unsupported_features(self.vllm_config)
        if reason is not None:
            raise InputError(
                f"Expected an engine without {reason}, which step scoring refuses, found one "
                "with it."
            )
        settings = StepSettings.from_additional_config(self.vllm_config.additional_config)
        if settings.scorer is not None:
            card = read_card(settings.scorer)
            rule, aggregator = card.boundary_rule, settings.aggregator or card.aggregator
            term = card.confidence_term
            if term is not None:
                settings = dataclasses.replace(settings, confidence=True)
        else:
            assert settings.boundary is not None
            rule = BoundaryRule.from_dict(settings.boundary)
            aggregator, term = settings.aggregator or "mean", None
        self.settings = settings
        self._sends_counts = self.log_stats and compat.has_front_end(self.vllm_config)
        self.counters = Counters(keep_scores=self._sends_counts)
        self.live = self.traces_class(rule, aggregator, settings, self.counters, term)
        self.reports = Reports(self.live.report)
        self.disabled = False
        self.events: EventLog | None = None
        if settings.event_log is not None:
            rank = self.vllm_config.parallel_config.data_parallel_index
            self.events = EventLog(settings.event_log, rank)
        self._pruned_outputs: list[tuple[int, EngineCoreOutput]] = []
        self._pruned_groups: set[str] = set()
        self._kept_back: list[Any] = []  # KV blocks of pruned traces, on their way to be free
        self._held_since: dict[str, int] = {}  # group to step
        self._refused: dict[str, Refusal] = {}  # live requests whose opt-in cannot be used
        self._step = 0
        self.following = True

    def add_request(self, request: Request) -> None:
        """Take a request in; follow it as a trace if it opted in, or say why not."""
        super().add_request(request)  # first: scoring may fail, but never the request
        if not self.following:
            return
        try:
            self._begin(request)
        except InputError as error:
            self._refused[request.request_id] = {"error": f"{error!s:.300}"}
            logger.warning("Request %.100r is not scored. %.300s", request.request_id, error)
        except Exception:  # of this request only: one client must not stop scoring for others
            self._refused[request.request_id] = _FAILED
            logger.exception("Request %.100r is not scored.", request.request_id)

    def _begin(self, request: Request) -> None:
        params = request.sampling_params
        if params is None or request.resumable:
            return  # pooling, or a session whose later turns would count as the same trace
        if self.disabled:
            if (params.extra_args or {}).get(CONFIG_KEY) is not None:
                self._refused[request.request_id] = _FAILED  # the log has said so once
            return
        options = self.options_class.from_extra_args(params.extra_args)
        if options is None:
            return
        if request.lora_request is not None:
            raise InputError(
                "Expected a request without a LoRA adapter, found one with it: the scorer belongs "
                "to the model alone. Hint: merge the adapter into the model and train a scorer for "
                "that."
            )
        if options.group is not None:
            caller = (params.extra_args or {}).get(CALLER_KEY)
            if self.settings.private_groups and not caller:
                raise InputError(
                    f"Expected a group of a known caller, found {options.group!r:.60} of an "
                    "unknown one. Hint: send plain JSON to step-serve, or name no group."
                )
            group = owned_group(options.group, caller, request.cache_salt)
            options = dataclasses.replace(options, group=group)
        child = child_of(request.request_id)
        if options.group is None and child is not None:
            options = dataclasses.replace(options, group=IMPLICIT_GROUP + child[1])
        self.live.add(request.request_id, options, request.prompt_token_ids or ())
        trace = self.live.traces[request.request_id]
        trace.request = request
        self.reports.add(trace, bool(params.stop))

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Make room by pruning if the next step does not fit, then schedule it.

        A step in which no request has opted in is marked, so that the worker does not score it.
        """
        if not self.following:
            return super().schedule(*args, **kwargs)
        output = self._schedule(*args, **kwargs)
        if not self.live.traces:
            # After scheduling: a request that was added just now is in the step already.
            setattr(output, UNSCORED_ATTRIBUTE, True)
        return output

    def _schedule(self, *args: Any, **kwargs: Any) -> Any:
        held: set[str] = set()
        if self._kept_back:
            # Before the base call: a block that came free since the last one may be taken in it.
            self._kept_back = [block for block in self._kept_back if block.ref_cnt > 0]
        if not self.live.kept:  # no live group: nothing to prune, nothing to wait for
            self._pruned_groups.clear()
            self._held_since.clear()
        elif self.settings.prune and self._pause_state != PauseState.PAUSED_ALL:
            try:
                # Before the base call, which preempts as soon as a running request does not fit.
                held = self._hold(self._make_room())
            except Exception:
                self._disable("Pruning")
        if not held:
            return super().schedule(*args, **kwargs)
        with held_back(
            compat.waiting_queues(self),
            lambda request: not held.isdisjoint(self._groups([request])),
        ) as self._num_held:
            if self._num_held:
                self.counters.hold()
            output = super().schedule(*args, **kwargs)
        self._num_held = 0
        return output

    def get_request_counts(self) -> tuple[int, int]:
        """Return running and waiting requests, those that are held back included."""
        running, waiting = super().get_request_counts()
        return running, waiting + self._num_held

    def _competes(self, request: Request) -> bool:
        """Return whether a request is a trace that takes part in pruning."""
        trace = self.live.traces.get(request.request_id)
        return trace is not None and trace.group is not None and trace.prune

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Keep the step's boundary scores, let vLLM update, then look at the new tokens."""
        if not self.following:
            return super().update_from_output(scheduler_output, model_runner_output)
        rows = getattr(model_runner_output, ROWS_ATTRIBUTE, None)
        if rows is not None and rows.failed and not self.disabled:
            self._disable("Scoring in the worker")
        if self.live.pending:
            # Before the base call: `pending` holds the boundaries sampled up to the step before,
            # which are this step's input tokens; the base call brings the next ones.
            if rows is None and self.settings.scorer is not None and model_runner_output.req_ids:
                logger.warning_once(
                    "A step came without scores. Expected worker_cls "
                    "step_infer.worker.StepWorker, found %s.",
                    self.vllm_config.parallel_config.worker_cls,
                )
            try:
                self.live.take_scores(
                    rows,
                    model_runner_output.req_id_to_index,
                    model_runner_output.sampled_token_ids,
                )
            except Exception:
                self._disable("Scoring")
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if self.live.traces:
            try:
                self._follow(outputs, rows, model_runner_output.req_id_to_index)
            except Exception:
                self._disable("Scoring")
        if self._refused:
            self._tell_refusals(outputs)
        if self._pruned_outputs:
            # Only here: a step's outputs leave together, and a trace pruned while this step ran
            # must not end for its client before the tokens that it got earlier.
            for client_index, output in self._pruned_outputs:
                report = output.kv_transfer_params[CONFIG_KEY]
                _attach(output, self.reports.end(output.request_id, report))
                outputs.setdefault(client_index, EngineCoreOutputs()).outputs.append(output)
            self._pruned_outputs.clear()
        if self.counters.changed:
            self._send_counts(outputs)
        return outputs

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """Finish requests from outside (aborts, errors, pruning) and forget their traces."""
        why: dict[str, str] = {}
        if self.following and request_ids is not None and not isinstance(request_ids, str):
            request_ids, why = told_apart(request_ids)
        finished = super().finish_requests(request_ids, finished_status)
        try:
            for request in finished if self.following else ():
                self._refused.pop(request.request_id, None)
                self._forget(request.request_id, why.get(request.request_id))
        except Exception:
            self._disable("Scoring")
        return finished

    def _forget(self, request_id: str, why: str | None) -> None:
        trace = self.live.traces.get(request_id)
        if trace is not None:
            if why is not None:
                self.counters.close(why)
            trace.catch_up()  # its siblings may report of it
            if self.events is not None:
                reason = {} if why is None else {"reason": why}
                self.events.write("abort", trace, self.kv_cache_manager.usage, **reason)
        self.live.remove(request_id, survived=False)
        self.reports.abort(request_id)

    def _follow(
        self,
        outputs: dict[int, EngineCoreOutputs],
        rows: StepRows | None,
        place_of: dict[str, int],
    ) -> None:
        live, early, news = self.live, self.reports.early, self.live.news
        for client_outputs in outputs.values():
            for output in self._noteworthy(client_outputs.outputs, rows, place_of):
                request_id = output.request_id
                trace = live.traces.get(request_id)
                if trace is None:
                    continue
                tokens = output.new_token_ids
                trace.catch_up(len(tokens))
                if tokens and live.take_tokens(trace, tokens, rows, place_of[request_id]):
                    self._stop(trace, output)
                if (reason := output.finish_reason) is not None:
                    if self.events is not None:
                        usage = self.kv_cache_manager.usage
                        stopped = output.stop_reason == CONFIDENCE
                        why = CONFIDENCE if stopped else str(reason)
                        self.events.write("finish", trace, usage, reason=why)
                    _attach(output, self.reports.end(request_id, live.report(trace)))
                    failed = reason in (FinishReason.ABORT, FinishReason.ERROR)
                    live.remove(request_id, survived=not failed)
                elif request_id in early:
                    _attach(output, self.reports.so_far(request_id))
                elif request_id in news:
                    _attach(output, live.tell(trace, self._spare_tokens))
        news.clear()

    def _noteworthy(
        self, outputs: list[EngineCoreOutput], rows: StepRows | None, place_of: dict[str, int]
    ) -> list[EngineCoreOutput]:
        """Return the outputs at which a trace may need a look.

        Of the others the tokens only count, and their confidences, which are taken in here.
        """
        live, told = self.live, self.reports.early | self.live.news
        if live.confidence or live.stride:
            return self._not_passed_over(outputs, rows, place_of, told)
        # Runs for each request and step: no call, and no statement, for those that are left out.
        marks = live.marks
        return [
            output
            for output in outputs
            if len(tokens := output.new_token_ids) != 1
            or tokens[0] in marks
            or output.finish_reason is not None
            or (told and output.request_id in told)
        ]

    def _not_passed_over(
        self,
        outputs: list[EngineCoreOutput],
        rows: StepRows | None,
        place_of: dict[str, int],
        told: set[str],
    ) -> list[EngineCoreOutput]:
        found = []
        traces, marks, stride = self.live.traces, self.live.marks, self.live.stride
        sure = self.live.confidence
        confidences = (
            [] if rows is None or rows.confidences_B is None else rows.confidences_B.tolist()
        )
        first_rows = None if rows is None else rows.first_rows
        for output in outputs:
            trace = traces.get(request_id := output.request_id)
            if trace is None:
                continue
            tokens = output.new_token_ids
            if (
                len(tokens) != 1
                or tokens[0] in marks
                or output.finish_reason is not None
                or trace.groups is not None
                or (stride and (trace.request.num_output_tokens + trace.inherited) % stride == 0)
                or (told and request_id in told)
            ):
                found.append(output)
            elif not sure:
                continue
            elif confidences:
                row = place_of[request_id]  # below: `rows.first_row`, without a call
                trace.confidence_sum += confidences[row if first_rows is None else first_rows[row]]
            else:
                trace.confidence_sum = nan
        return found

    def _tell_refusals(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        for client_outputs in outputs.values():
            for output in client_outputs.outputs:
                refusal = self._refused.get(output.request_id)
                if refusal is not None:  # on each: a stop string may make any of them the last
                    _attach(output, refusal)
                    if output.finish_reason is not None:
                        del self._refused[output.request_id]

    def _stop(self, trace: LiveTrace, output: EngineCoreOutput) -> None:
        """End an unsure trace with this output, if it has not ended and its group can spare it."""
        if output.finish_reason is not None or not self.live.may_stop(trace):
            return
        output.finish_reason = FinishReason.ABORT
        output.stop_reason = CONFIDENCE
        # Not self.finish_requests: the report ends with this output, like any other's.
        super().finish_requests(trace.request_id, RequestStatus.FINISHED_ABORTED)

    def _make_room(self) -> int:
        """Prune until this step's growth fits; return the KV blocks that it leaves free.

        Blocks on their way count as well: else each step until they come would stop one more trace
        for the same need. vLLM waits for them, or preempts, where they come too late.
        """
        free = compat.free_blocks(self)
        if free < compat.most_growth_blocks(self):  # cheap; in ample memory no request is looked at
            while (needed := compat.growth_blocks(self)) > free + len(self._kept_back):
                victim = policy.pick_victim(self._prunable(), self.live.kept)
                if victim is None:
                    break
                self._prune(self.live.traces[victim.request_id])
                free = compat.free_blocks(self)
            free -= needed
        return free

    def _hold(self, free: int) -> set[str]:
        """Return the groups whose waiting traces stay so; `free` blocks are left in this step."""
        self._step += 1
        if not self._pruned_groups and not self._held_since:
            return set()
        self._pruned_groups &= self._groups(self.running)
        waiting = set[str]().union(*map(self._groups, compat.waiting_queues(self)))
        total = self.kv_cache_manager.block_pool.num_gpu_blocks
        admitted, self._held_since = policy.admit(
            waiting,
            self._held_since,
            self._step,
            self._pruned_groups,
            policy.Memory(free, total, self.settings.resume_free),
            self.settings.max_held_steps,
        )
        return waiting - admitted

    def _spare_tokens(self) -> int:
        """Return the KV cache that is free beyond `resume_free`, in tokens."""
        needed = ceil(self.settings.resume_free * self.kv_cache_manager.block_pool.num_gpu_blocks)
        return (compat.free_blocks(self) - needed) * self.block_size

    def _groups(self, requests: Iterable[Request]) -> set[str]:
        """Return the groups of those requests that compete: others neither press nor wait."""
        traces = (self.live.traces[r.request_id] for r in requests if self._competes(r))
        return {trace.group for trace in traces if trace.group is not None}

    def _prunable(self) -> list[policy.RunningTrace]:
        traces, min_keeps = [], self.live.min_keeps()
        for request in self.running:
            if not self._competes(request):
                continue
            if compat.ends_in_flight(self, request):
                continue  # it would end by itself with the step in flight, its answer complete
            trace = self.live.traces[request.request_id]
            trace.catch_up()
            assert trace.group is not None
            traces.append(
                policy.RunningTrace(
                    request.request_id,
                    trace.group,
                    self._rank(trace),
                    trace.num_scored,
                    sum(compat.held_blocks(self.kv_cache_manager, request.request_id)),
                    request.arrival_time,
                    trace.min_steps,
                    min_keeps[trace.group],
                )
            )
        return traces

    def _rank(self, trace: LiveTrace) -> float | None:
        """Return the number whose lowest is stopped; None for a trace that cannot be stopped."""
        return trace.score

    def _prune(self, trace: LiveTrace) -> None:
        request = self.requests[trace.request_id]
        output = EngineCoreOutput(
            request_id=trace.request_id,
            new_token_ids=[],
            finish_reason=FinishReason.ABORT,
            stop_reason=PRUNED,
            events=request.take_events(),
            trace_headers=request.trace_headers,
        )
        report = self.live.report(trace)
        report["pruned"] = True
        _attach(output, report)
        self._pruned_groups.add(trace.group)  # type: ignore[arg-type]
        tokens, free = request.num_computed_tokens, compat.free_blocks(self)
        own = compat.own_blocks(self.kv_cache_manager, trace.request_id)
        # Not self.finish_requests: the report ends when its output is sent, in its order.
        super().finish_requests(trace.request_id, RequestStatus.FINISHED_ABORTED)
        self._pruned_outputs.append((request.client_index, output))  # whatever fails below
        kept_back = [block for block in own if block.ref_cnt > 0]
        self._kept_back += kept_back
        freed = compat.free_blocks(self) - free + len(kept_back)
        self.counters.prune(tokens, freed)
        if self.events is not None:
            usage = self.kv_cache_manager.usage
            self.events.write("prune", trace, usage, freed_kv_blocks=freed)
        logger.debug(
            "step_prune request=%.100r group=%.300r score=%.4f steps=%d tokens=%d "
            "freed_kv_blocks=%d free_kv_blocks=%d kept=%d",
            trace.request_id,
            trace.group,
            trace.score,
            trace.num_scored,
            trace.num_tokens,
            freed,
            compat.free_blocks(self),
            self.live.kept[trace.group] - 1,  # type: ignore[index]
        )
        self.live.remove(trace.request_id, survived=False)

    def _send_counts(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Send what is new to the front end's metrics, and sum it up in the log now and then."""
        try:
            counts = self.counters.take_increments()
            for client_outputs in outputs.values() if self._sends_counts else ():
                if client_outputs.scheduler_stats is not None:
                    compat.send_counts(client_outputs.scheduler_stats, json.dumps(counts))
                    break
            if (line := self.counters.summary(time.monotonic())) is not None:
                logger.info(line)
        except Exception:
            logger.exception("Counting failed; scoring and pruning go on.")

    def shutdown(self) -> None:
        """Log a last summary of what is not logged yet, and end."""
        if self.following:
            if (line := self.counters.summary(inf)) is not None:
                logger.info(line)
            if self.events is not None:
                self.events.close()
        super().shutdown()

    def _disable(self, what: str) -> None:
        """After a failure of ours: say so once, forget all traces, leave vLLM alone from now on."""
        self.disabled = True
        self.counters.disable()
        running = self.live.traces.keys() & self.requests.keys()
        self._refused |= dict.fromkeys(running, _FAILED)
        self.live.clear()
        self.reports.clear()
        self._pruned_groups.clear()
        self._held_since.clear()
        logger.error(
            "%s failed: scoring and pruning are off from now on; generation goes on.",
            what,
            exc_info=sys.exc_info()[0] is not None,
        )


def owned_group(group: str, caller: object, salt: str | None) -> str:
    """Return a group's name with a hash of its owner, where something tells callers apart.

    Callers that vLLM keeps apart in the prefix cache, by their salts, do not share groups either.
    """
    if not (caller or salt):
        return group
    owner = hashlib.sha256(f"{caller or ''}\0{salt or ''}".encode()).hexdigest()
    return f"{group}\0{owner[:16]}"


def _attach(output: EngineCoreOutput, report: Report | ScoreSoFar | Refusal) -> None:
    output.kv_transfer_params = {**(output.kv_transfer_params or {}), CONFIG_KEY: report}
