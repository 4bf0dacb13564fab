"""One question on one engine: sample its traces, measure, grade."""

import struct
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from data_gen.questions.load import Question
from step_eval.methods.registry import Sampler
from step_eval.records import AnswerRecord, KvSeries, QuestionRecord, TraceRecord
from step_infer.client.answers import vote
from step_infer.client.deciding import FINISHED
from step_infer.client.engine import EngineStats
from step_infer.client.grading import Grader
from step_infer.client.llm import StepLLM
from step_infer.client.running_vote import RunningVote
from step_infer.client.trace import Trace, TracePlan

SAMPLE_S = 0.05
"""Seconds between two readings of the engine's counters: some 10 engine steps of a small model."""


class Meter:
    """Reads the engine's counters while a question runs; call it after every engine step."""

    def __init__(self, read: "Callable[[], EngineStats]") -> None:
        self._read = read
        first = read()
        self.started_s = first.time_s
        self._first_preemptions = first.preemptions
        self._next_s = time.monotonic()
        self.series = KvSeries()

    def __call__(self) -> None:
        """Take a reading, if one is due."""
        if time.monotonic() >= self._next_s:
            self.read()

    def read(self) -> None:
        """Take a reading."""
        stats = self._read()
        self._next_s = time.monotonic() + SAMPLE_S
        self.series.time_s.append(stats.time_s - self.started_s)
        self.series.kv_use.append(stats.kv_use)
        self.series.running.append(stats.running)
        self.series.waiting.append(stats.waiting)
        self.series.preemptions.append(stats.preemptions - self._first_preemptions)

    def seconds_of(self, counts: Sequence[int]) -> float:
        """Return the sum over time of a count of traces, in trace-seconds."""
        times = [0.0, *self.series.time_s]
        return sum(
            count * (after - before)
            for count, before, after in zip(counts, times, times[1:], strict=False)
        )


def measure(
    llm: StepLLM,
    method: str,
    repeat: int,
    question: Question,
    plans: Sequence[TracePlan],
    grader: Grader,
    *,
    keep_series: bool = False,
    keep_text: bool = False,
    on_trace: Callable[[Trace], None] | None = None,
    on_step: Callable[[], None] | None = None,
    sampler: "Sampler | None" = None,
    vote_open: RunningVote | None = None,
    alone: AbstractContextManager[None] | None = None,
) -> QuestionRecord:
    """Sample one question's traces and return its record.

    The clock runs from the submission to the last trace; grading comes after it.

    Args:
        llm: the running engine.
        method: name of the method, for the record.
        repeat: number of the repeat, for the record.
        question: the question, with its answer.
        plans: the orders for its traces.
        grader: finds answers, and compares them with each other and with the truth.
        keep_series: keep the readings of the engine's counters in the record.
        keep_text: keep the traces' text in the record.
        on_trace: called with each trace when it is finished.
        on_step: called after every engine step.
        sampler: samples the traces; None hands all plans to the engine at once.
        vote_open: the vote that ends the traces it does not need; None lets all run to their ends.
        alone: entered while the traces are sampled, and left before they are graded.
    """
    traces = []
    plans = [replace(plan, vote=vote_open, extract=grader.extract) for plan in plans]
    with alone or nullcontext():
        meter = Meter(llm.stats)

        def after_step() -> None:
            meter()
            if on_step is not None:
                on_step()

        if sampler is None:
            sampled = llm.stream(plans, max_in_flight=len(plans), on_step=after_step)
        else:
            sampled = sampler(llm, plans, after_step)
        for trace in sampled:
            traces.append(trace)
            if vote_open is not None:
                vote_open.add(trace)
            if on_trace is not None:
                on_trace(trace)
        meter.read()
    traces.sort(key=lambda trace: trace.trace_id)
    answers = [None if trace.stopped else trace.answer for trace in traces]
    voting = [
        None if trace.filtered else answer for trace, answer in zip(traces, answers, strict=True)
    ]
    groups = vote(voting, equal=grader.same(voting)).groups
    group_of = {voter: index for index, (_, _, voters) in enumerate(groups) for voter in voters}
    verdicts = grader.grade_many([(answer, question.answer) for answer in answers])
    return QuestionRecord(
        method=method,
        repeat=repeat,
        question_id=question.id,
        truth=question.answer,
        prompt_tokens=len(plans[0].prompt_token_ids),
        seconds=max(trace.finished_s for trace in traces) - meter.started_s,
        preemptions=meter.series.preemptions[-1],
        peak_kv_use=max(meter.series.kv_use),
        running_trace_s=meter.seconds_of(meter.series.running),
        waiting_trace_s=meter.seconds_of(meter.series.waiting),
        kv_capacity_tokens=llm.kv_capacity_tokens,
        answers=[AnswerRecord(form, grader.grade(form, question.answer)) for form, _, _ in groups],
        traces=[
            _trace_record(trace, group_of.get(index), verdicts[index], meter.started_s, keep_text)
            for index, trace in enumerate(traces)
        ],
        series=meter.series if keep_series else None,
        ended=(vote_open.closed if vote_open is not None else None) or FINISHED,
    )


def _trace_record(
    trace: Trace, group: int | None, correct: bool | None, started_s: float, keep_text: bool
) -> TraceRecord:
    return TraceRecord(
        trace_id=trace.trace_id,
        seed=trace.seed,
        tokens=len(trace.token_ids),
        finish_reason=trace.finish_reason,
        answer=None if trace.stopped else trace.answer,
        group=group,
        correct=correct,
        score=trace.trace_score,
        positions=list(trace.boundary_positions),
        scores=list(trace.step_scores),
        prefix_hashes=prefix_hashes(trace.token_ids, trace.boundary_positions),
        submitted_s=trace.submitted_s - started_s,
        finished_s=trace.finished_s - started_s,
        lowest_confidence=trace.lowest_group_confidence,
        mean_confidence=trace.mean_token_confidence,
        text=trace.text if keep_text else None,
        parent=trace.parent,
        inherited=trace.inherited,
        cached_tokens=trace.cached_tokens,
    )


def prefix_hashes(token_ids: Sequence[int], positions: Sequence[int]) -> list[int]:
    """Return the CRC-32 of the tokens up to and with each position [S], positions ascending."""
    hashes = []
    value = start = 0
    for position in positions:
        part = token_ids[start : position + 1]
        value = zlib.crc32(struct.pack(f"<{len(part)}i", *part), value)
        hashes.append(value)
        start = position + 1
    return hashes
