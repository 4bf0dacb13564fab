"""One run of a collection: what is there, what is missing, what waits to be written."""

import dataclasses
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from torch import Tensor

from data_gen.config import CollectConfig
from data_gen.questions.load import Question
from data_gen.traces.features import FEATURE_DTYPES, feature_bytes
from data_gen.traces.groups import AnswerGroups
from data_gen.traces.writer import TraceWriter
from step_infer.cli.command import sigterm_as_interrupt
from step_infer.cli.progress import TraceProgress, track
from step_infer.client.grading import Grader
from step_infer.client.llm import StepLLM
from step_infer.client.prompt import dated_kwargs
from step_infer.client.trace import Trace, TracePlan
from step_infer.errors import InputError
from step_infer.replicas.pool import ReplicaPool
from step_infer.scorer.boundary import NO_BOUNDARY, BoundaryRule
from step_infer.scorer.identity import ModelIdentity

TABLE_BYTES_PER_TOKEN = 4
"""Bytes of the compressed table a generated token, assumed: its id and its text, about 2 each."""
TOKENS_PER_STEP = 60
"""Tokens in a step, assumed until the first part is written."""
_PART_BYTES = 512 * 2**20
"""States held in memory before they are written, whatever the number of traces."""

PART_SECONDS = 600.0
"""Finished traces are written at least this often: no crash costs more of a slow engine's time."""


class Collection:
    """One run's state: what is there, what is missing, what waits to be written."""

    def __init__(
        self,
        config: CollectConfig,
        identity: ModelIdentity,
        questions: Sequence[Question],
        out: TraceWriter,
        console: Console,
    ) -> None:
        self.config = config
        self.identity = identity
        self.questions = {question.id: question for question in questions}
        self.out = out
        self.console = console
        found = out.read()
        counted = Counter(found.keys())
        self.done = set(counted)
        assert len(self.done) == found.num_traces, "a trace is listed twice"
        self.total = len(questions) * config.num_traces
        self.missing = self.total - len(self.done)
        self.dtype = FEATURE_DTYPES.get(config.feature_dtype, torch.bfloat16)
        self.waiting: list[Trace] = []
        self.waiting_bytes = 0
        self.seen: dict[str, set[str]] = {}
        """The different answers to each question."""

    def print_start(self, context: int | None = None) -> None:
        """Say how much there is to do and how much room it needs, and check that there is room.

        Args:
            context: the model's longest prompt and response together, in tokens, where known.
        """
        config = self.config
        self.console.print(
            f"{len(self.questions)} questions x {config.num_traces} traces = {self.total} traces"
            + (f", {len(self.done)} of them done" if self.done else "")
        )
        if not self.missing:
            return
        longest = min(config.sampling.max_tokens, context or config.sampling.max_tokens)
        steps = min(config.steps_per_trace, math.ceil(longest / 2))
        tokens = min(longest, steps * TOKENS_PER_STEP)
        needed, free = self._estimate(f"assuming {steps} steps a trace", steps, tokens)
        if needed > free:
            raise InputError(
                f"Expected about {_size(needed)} of free space at {config.out}, found "
                f"{_size(free)}. Hint: choose another disk, fewer traces, --features false, or a "
                "smaller --steps-per-trace if traces are shorter than assumed."
            )

    def _estimate(self, basis: str, steps: float, tokens: float) -> tuple[int, int]:
        """Print and return the bytes still to be written, and those that are free."""
        table = int(self.missing * tokens * TABLE_BYTES_PER_TOKEN)
        states = 0
        if self.config.features:
            states = feature_bytes(self.missing * steps, self.identity.hidden_size, self.dtype)
        free = shutil.disk_usage(self.config.out).free
        self.console.print(
            f"Size estimate, {basis}: states {_size(states)}, table {_size(table)}; "
            f"free {_size(free)}"
        )
        return table + states, free

    def run(
        self,
        start_engine: Callable[..., StepLLM | ReplicaPool],
        rule: BoundaryRule,
        grader: Grader,
        groups: AnswerGroups,
    ) -> None:
        """Sample what is missing and write it, part by part."""
        self.grader, self.groups = grader, groups
        config = self.config
        engines = f"{config.replicas} engines" if config.replicas > 1 else "the engine"
        self.console.print(f"Starting {engines} …")
        engine = start_engine(
            config.model,
            config.scorer,
            prune=False,
            capture=config.features,
            confidence=config.confidence,
            boundary=None if config.scorer else rule,
            allow_mismatch=config.allow_mismatch,
            **config.engine,
        )
        self.clock = self.written = time.monotonic()
        try:
            self._check_prompts(engine)
            with sigterm_as_interrupt():
                try:
                    self._sample(engine)
                finally:
                    # After an interruption too: what is finished need not be sampled again.
                    self._await_verdicts()
                    self._flush()
        finally:
            engine.close()

    def _sample(self, engine: StepLLM | ReplicaPool) -> None:
        with TraceProgress(self.total, len(self.done)) as progress:

            def on_step() -> None:
                self.grader.poll()
                if isinstance(engine, ReplicaPool):
                    progress.note = engine.rates()
                progress.step(lambda: engine.stats().generated_tokens)

            traces = engine.stream(
                self._plans(engine), max_in_flight=self.config.max_in_flight, on_step=on_step
            )
            for trace in traces:
                progress.finished(len(trace.token_ids))
                self._take(trace, progress)

    def _plans(self, engine: StepLLM | ReplicaPool) -> Iterator[TracePlan]:
        for question in self.questions.values():
            for plan in self._plans_of(engine, question):
                if (plan.question_id, plan.trace_id) not in self.done:
                    yield dataclasses.replace(plan, extract=self.grader.extract)

    def _plans_of(self, engine: StepLLM | ReplicaPool, question: Question) -> list[TracePlan]:
        config = self.config
        # The date of the run's beginning: a question that was begun goes on with its prompt.
        template_kwargs = dated_kwargs(
            config.chat_template_kwargs, self.out.manifest["prompt_date"]
        )
        return engine.plan(
            question.id,
            question.question,
            config.num_traces,
            config.sampling,
            config.seed,
            config.system,
            chat_template_kwargs=template_kwargs,
        )

    def _check_prompts(self, engine: StepLLM | ReplicaPool) -> None:
        """See that questions with some of their traces done would be asked the same again.

        Raises:
            InputError: the prompt of one has changed.
        """
        done = Counter(question_id for question_id, _ in self.done)
        begun = {name for name, count in done.items() if count < self.config.num_traces}
        found = self.out.read()
        for index in range(found.num_parts if begun else 0):
            rows = found.part(index, ("question_id", "prompt_token_ids")).to_pylist()
            for row in rows:
                name = row["question_id"]
                if name not in begun:
                    continue
                begun.remove(name)
                plan = self._plans_of(engine, self.questions[name])[0]
                if list(plan.prompt_token_ids) != row["prompt_token_ids"]:
                    raise InputError(
                        f"Expected the prompt of question {name} as in its traces in "
                        f"{self.config.out}, found another: the model's chat template has changed. "
                        "Hint: choose another output directory."
                    )

    def _take(self, trace: Trace, progress: TraceProgress) -> None:
        self.waiting.append(trace)
        if trace.hidden_SH is not None:
            self.waiting_bytes += trace.hidden_SH.nbytes
        self._begin_grading(trace)
        if self._is_due(1):
            first = not self.out.manifest["parts"]
            steps = sum(len(t.boundary_positions) for t in self.waiting) / len(self.waiting)
            tokens = sum(len(t.token_ids) for t in self.waiting) / len(self.waiting)
            # Sampling does not wait for verdicts, unless they are long in coming.
            self._flush(waits=self._is_due(4))
            if first and self.out.manifest["parts"] and self.missing:
                with progress.paused():
                    basis = f"measured {steps:.0f} steps a trace"
                    needed, free = self._estimate(basis, steps, tokens)
                    if needed > free:
                        self.console.print(
                            "[bold]warning:[/] the disk will be full before the end; what is "
                            "written stays, and the same command goes on once there is room"
                        )

    def _is_due(self, parts: int) -> bool:
        return (
            len(self.waiting) >= parts * self.config.part_traces
            or self.waiting_bytes >= parts * _PART_BYTES
            or time.monotonic() - self.written >= parts * PART_SECONDS
        )

    def _begin_grading(self, trace: Trace) -> None:
        """Have an answer compared with the truth and the question's other ones, beside sampling."""
        seen = self.seen.get(trace.question_id)
        if seen is None:
            seen = self.seen[trace.question_id] = set(self.groups.answers(trace.question_id))
        if trace.answer is None or trace.answer in seen:
            return
        truth = self.questions[trace.question_id].answer
        if truth is not None:
            self.grader.submit(trace.answer, [truth])
        self.grader.submit(trace.answer, seen, in_vote=True)
        seen.add(trace.answer)

    def _graded(self) -> list[Trace]:
        """Return the waiting traces whose questions have no comparison open."""
        is_open = {}
        for question_id in {trace.question_id for trace in self.waiting}:
            truth = self.questions[question_id].answer
            texts = self.seen[question_id].union(() if truth is None else (truth,))
            is_open[question_id] = bool(self.grader.pending(texts))
        return [trace for trace in self.waiting if not is_open[trace.question_id]]

    def _await_verdicts(self) -> None:
        """Wait for the open comparisons of the waiting traces, and show how many there are."""
        graded = {trace.question_id for trace in self._graded()}
        missing = sorted({trace.question_id for trace in self.waiting} - graded)
        for question_id in track(missing, len(missing), "questions graded", delay_s=2):
            answers = self.seen[question_id]
            self.grader.grade_many((text, self.questions[question_id].answer) for text in answers)
            self.grader.same(answers)

    def _flush(self, waits: bool = True) -> None:
        """Grade, group and write the finished traces as one part.

        Args:
            waits: for verdicts; else those that need none are written, if they are half of all.
        """
        traces = self.waiting if waits else self._graded()
        if not traces or 2 * len(traces) < len(self.waiting):
            return
        truths = [self.questions[trace.question_id].answer for trace in traces]
        verdicts = self.grader.grade_many(
            (trace.answer, truth) for trace, truth in zip(traces, truths, strict=True)
        )
        rows = [self._row(trace, verdict) for trace, verdict in zip(traces, verdicts, strict=True)]
        for row, number in zip(rows, self.groups.add(rows), strict=True):
            row["answer_group"] = number
        hidden = self._hidden(traces) if self.config.features else None
        now = time.monotonic()
        seconds = self.out.manifest["seconds"] + now - self.clock
        if not self.out.manifest["parts"] and not any(row["boundary_positions"] for row in rows):
            self.console.print(f"[bold]warning:[/] {NO_BOUNDARY}", highlight=False)
        try:
            self.out.add_part(rows, hidden, seconds=seconds)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"Expected to write a part to {self.config.out}, found: {error}. Hint: make room "
                "and give the same command again; it goes on where it stopped."
            ) from error
        written = {(trace.question_id, trace.trace_id) for trace in traces}
        self.done |= written
        self.missing = self.total - len(self.done)
        self.waiting = [
            trace for trace in self.waiting if (trace.question_id, trace.trace_id) not in written
        ]
        self.waiting_bytes = sum(
            trace.hidden_SH.nbytes for trace in self.waiting if trace.hidden_SH is not None
        )
        self.clock = self.written = now

    def _row(self, trace: Trace, verdict: bool | None) -> dict[str, Any]:
        question = self.questions[trace.question_id]
        return {
            "question_id": trace.question_id,
            "trace_id": trace.trace_id,
            "seed": trace.seed,
            "question": question.question,
            "ground_truth": question.answer,
            "prompt_token_ids": trace.prompt_token_ids,
            "token_ids": trace.token_ids,
            "text": trace.text,
            "finish_reason": trace.finish_reason,
            "extracted_answer": trace.answer,
            "is_correct": verdict,
            "boundary_positions": trace.boundary_positions,
            "step_scores": trace.step_scores if self.config.scorer is not None else None,
            "trace_score": trace.trace_score,
            "step_confidences": trace.step_confidences,
            "mean_token_confidence": trace.mean_token_confidence,
        }

    def _hidden(self, traces: Sequence[Trace]) -> list[Tensor]:
        """Return each trace's states [S, H] in the type they are stored in."""
        for trace in traces:
            if trace.hidden_SH is not None and self.config.feature_dtype == "auto":
                self.dtype = trace.hidden_SH.dtype
        none_SH = torch.empty(0, self.identity.hidden_size, dtype=self.dtype)
        return [
            none_SH if trace.hidden_SH is None else trace.hidden_SH.to(self.dtype)
            for trace in traces
        ]


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
