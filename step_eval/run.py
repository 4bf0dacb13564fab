"""Run an evaluation: one engine per method, one question at a time, resumable per question.

Engines that share a device can take turns (`device_lock`): one answers, the others stand still.
"""

import dataclasses
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from data_gen.questions.load import Question
from step_eval.budget import Budget, fraction_budget
from step_eval.comparison import outcome, vote_name
from step_eval.config import EvalConfig
from step_eval.inputs import EvalInputs, load_inputs
from step_eval.manifest import earlier_manifest, make_manifest
from step_eval.measure import measure
from step_eval.methods.deepconf import CONSENSUS_SHARE
from step_eval.methods.registry import BASELINE, Method, Sampler, base_name, find_method
from step_eval.ranks import ORACLE, Ranks
from step_eval.records import RecordStore
from step_eval.results import KIND, write_results
from step_eval.votes import most_weight, score_weigher, trace_weigher
from step_infer.cli.progress import TraceProgress
from step_infer.client.deciding import CONSENSUS, LIKELY, NEVER, StopRule, likely_rule
from step_infer.client.grading import Grader
from step_infer.client.llm import StepLLM
from step_infer.client.prompt import dated_kwargs
from step_infer.client.running_vote import RunningVote
from step_infer.client.trace import Sampling, TracePlan, in_waves
from step_infer.errors import InputError
from step_infer.scorer.aggregate import NEVER_RISE
from step_infer.scorer.card import ScorerCard
from step_infer.storage.run_directory import RunDirectory, write_manifest

_WARM_UP_TOKENS = 16
_PILOT_QUESTIONS = 2
"""Asked for the mean response length: with N traces each, two give it to a few percent."""


class Evaluation:
    """One run: checked inputs first, then the engines."""

    def __init__(
        self,
        config: EvalConfig,
        start_engine: "Callable[..., StepLLM] | None" = None,
        console: Console | None = None,
        inputs: EvalInputs | None = None,
    ) -> None:
        """Read and check all inputs; no engine starts here.

        Args:
            config: the settings.
            start_engine: makes an engine, called like `StepLLM`; None is `StepLLM`.
            console: where notes go; None is standard output.
            inputs: what the settings name, if it has been read already.

        Raises:
            InputError: an input cannot be used.
        """
        self.config = config
        self.console = console or Console(soft_wrap=True)
        self._start_engine = start_engine
        self.inputs = inputs or load_inputs(config, self.console.print)
        self.store = RecordStore(config.out)
        self.ranks = Ranks(self.inputs)
        for name in config.method_names:  # a missing threshold, before any engine starts
            stop_rule(find_method(name), vote_name(name, config.vote), config, self.inputs.card)
        self._prompt_date = datetime.now().isoformat(timespec="seconds")

    def run(self) -> dict[str, Any]:
        """Ask what has not been asked yet, write records, results and report; return the results.

        Raises:
            InputError: the output directory cannot be used, or the engine refuses a setting.
        """
        config = self.config
        with RunDirectory(config.out, KIND).claim() as run:
            earlier = earlier_manifest(run, self.inputs.settings(), self.store.begun())
            self._prompt_date = (earlier or {}).get("prompt_date", self._prompt_date)
            # The baseline first: the oracle takes from it which traces come out right.
            names = sorted(config.method_names, key=lambda name: name != BASELINE)
            todo = {name: self._missing(name) for name in names}
            for name in (name for name in names if base_name(name) == ORACLE):
                todo[name] = self._known_to_oracle(todo[name], todo.get(BASELINE, []))
            budget = Budget(**earlier["budget"]) if earlier else self._budget()
            if earlier is None or any(todo.values()):
                manifest = make_manifest(self.inputs, budget, earlier, self._prompt_date)
                write_manifest(run.path, manifest)
            self._print_plan(budget, todo)
            with Grader(answers=config.answer_options) as grader:
                grader.warm_up()
                for name, missing in todo.items():
                    if missing:
                        self._run_method(name, missing, budget, grader)
            return write_results(run.path, config.vote)

    def _missing(self, method: str) -> list[tuple[int, Question]]:
        done = self.store.done(method)
        return [
            (repeat, question)
            for repeat in range(self.config.repeats)
            for question in self.inputs.mine
            if (repeat, question.id) not in done
        ]

    def _known_to_oracle(
        self, asked: list[tuple[int, Question]], coming: list[tuple[int, Question]]
    ) -> list[tuple[int, Question]]:
        known = self.ranks.answerable(asked, coming)
        if len(known) < len(asked):
            self.console.print(
                f"{find_method(ORACLE).label}: {len(asked) - len(known)} questions have no record "
                f"of the method sc in {self.config.oracle_from}, and are left out.",
                highlight=False,
            )
        return known

    def _budget(self) -> Budget:
        config = self.config
        if config.kv_budget_tokens is not None:
            return Budget(config.kv_budget_tokens)
        if not config.needs_lengths:
            return Budget(None)
        mean_response, source = self.inputs.mean_response_tokens, f"mean of {config.lengths_from}"
        if mean_response is None:
            mean_response, source = self._pilot()
        return fraction_budget(
            config.kv_budget,
            config.num_traces,
            self.inputs.mean_prompt_tokens,
            mean_response,
            source,
        )

    def _pilot(self) -> tuple[float, str]:
        """Sample a few questions on stock vLLM with all the machine's memory, for their lengths."""
        config = self.config
        chosen = self.inputs.questions[:_PILOT_QUESTIONS]
        self.console.print(f"Pilot for the KV budget: {len(chosen)} questions at full memory.")
        tokens = traces = 0
        with (
            self._engine({"plain": True}, None) as llm,
            TraceProgress(len(chosen) * config.num_traces, label="pilot") as progress,
        ):
            for question in chosen:
                plans = self._plans(llm, question, 0)
                for trace in llm.stream(plans, max_in_flight=len(plans), on_step=progress.step):
                    tokens += len(trace.token_ids)
                    traces += 1
                    progress.finished(len(trace.token_ids))
        return tokens / traces, f"pilot of {len(chosen)} questions, {traces} traces"

    def _run_method(
        self,
        name: str,
        missing: Sequence[tuple[int, Question]],
        budget: Budget,
        grader: Grader,
    ) -> None:
        config = self.config
        method = find_method(name)
        shown = {question.id for question in self.inputs.questions[: config.kv_series_questions]}
        vote_by = vote_name(name, config.vote)
        sampler = _sampler(method, config)
        with device_lock(config.device_lock, alone=False):
            engine = self._engine(method.engine_options(config), budget.tokens)
        with (
            engine as llm,
            TraceProgress(
                len(missing) * (method.traces or config.num_traces), label=f"{method.label} traces"
            ) as progress,
        ):
            with device_lock(config.device_lock, alone=False):
                self._warm_up(llm)
            for repeat, question in missing:
                record = measure(
                    llm,
                    name,
                    repeat,
                    question,
                    self._plans_of(name, llm, question, repeat),
                    grader,
                    keep_series=repeat == 0 and question.id in shown,
                    keep_text=config.keep_text,
                    on_trace=lambda trace: progress.finished(
                        trace.own_tokens, extra=trace.parent is not None
                    ),
                    on_step=progress.step,
                    sampler=sampler,
                    vote_open=self._vote(method, vote_by, grader),
                    alone=device_lock(config.device_lock, alone=True),
                )
                self.store.append(record)
                progress.question(outcome(record, vote_by).right)

    def _vote(self, method: Method, vote_by: str, grader: Grader) -> RunningVote | None:
        """Return what ends a question's traces when its vote is decided, if anything does."""
        if method.stop_rule == NEVER:
            return None
        config, card = self.config, self.inputs.card
        aggregator = config.aggregator or (None if card is None else card.aggregator)
        return RunningVote(
            range(method.traces or config.num_traces),
            trace_weigher(vote_by),
            most_weight(vote_by),
            stop_rule(method, vote_by, config, card),
            grader=grader,
            expect=score_weigher(vote_by),
            falls=aggregator in NEVER_RISE,
        )

    def _engine(self, options: Mapping[str, Any], kv_budget_tokens: int | None) -> StepLLM:
        start = self._start_engine
        if start is None:
            start = StepLLM
        # The same steps in every method's records, so that pruned traces find their twins.
        arguments = {"kv_budget_tokens": kv_budget_tokens, **options, **self.config.engine}
        if self.inputs.rule is not None and "scorer" not in options:
            arguments["boundary"] = self.inputs.rule
        return start(self.config.model, **arguments)

    def _plans_of(
        self, name: str, llm: StepLLM, question: Question, repeat: int
    ) -> list[TracePlan]:
        """Return the orders for a question's traces under a method."""
        ranks = self.ranks.for_question(base_name(name), repeat, question)
        plans = self._plans(llm, question, repeat)[: find_method(name).traces]
        return [
            dataclasses.replace(plan, options={**plan.options, "rank": ranks[plan.trace_id]})
            if plan.trace_id in ranks
            else plan
            for plan in plans
        ]

    def _plans(
        self, llm: StepLLM, question: Question, repeat: int, sampling: Sampling | None = None
    ) -> list[TracePlan]:
        config = self.config
        return llm.plan(
            question.id,
            question.question,
            config.num_traces,
            sampling or config.sampling,
            config.seed + repeat,
            config.system,
            chat_template_kwargs=dated_kwargs(config.chat_template_kwargs, self._prompt_date),
        )

    def _warm_up(self, llm: StepLLM) -> None:
        """Let the engine meet its batch sizes before the clock runs."""
        sampling = Sampling(max_tokens=_WARM_UP_TOKENS)
        plans = self._plans(llm, Question("warm-up", "Warm up.", None), 0, sampling)
        for _ in llm.stream(plans, max_in_flight=len(plans)):
            pass

    def _print_plan(self, budget: Budget, todo: Mapping[str, Sequence[Any]]) -> None:
        size = "no limit but memory" if budget.tokens is None else f"{budget.tokens:,} tokens"
        if budget.mean_response_tokens is not None:
            size += (
                f" ({self.config.kv_budget:g} of {self.config.num_traces} traces x "
                f"{(budget.mean_prompt_tokens or 0) + budget.mean_response_tokens:,.0f} tokens, "
                f"{budget.source})"
            )
        self.console.print(f"KV budget: {size}")
        total = len(self.inputs.mine) * self.config.repeats
        for name, missing in todo.items():
            already = f", {total - len(missing)} done before" if len(missing) < total else ""
            self.console.print(
                f"{find_method(name).label}: {len(missing)} questions to ask{already}"
                + (", repeats counted" if self.config.repeats > 1 else ""),
                highlight=False,
            )


def stop_rule(
    method: Method, vote_by: str, config: EvalConfig, card: ScorerCard | None
) -> StopRule:
    """Return a method's rule, with its threshold.

    Raises:
        InputError: the scorer card has no threshold for the rule `likely` and this vote.
    """
    if method.stop_rule == CONSENSUS:
        return StopRule(CONSENSUS, CONSENSUS_SHARE, config.warmup)
    if method.stop_rule == LIKELY:
        return likely_rule({} if card is None else card.deciding, vote_by)
    return StopRule(method.stop_rule)


def _sampler(method: Method, config: EvalConfig) -> Sampler | None:
    if method.wave is None:
        return None if method.sampler is None else method.sampler(config)
    wave = method.wave
    return lambda llm, plans, on_step: llm.stream(in_waves([plans], wave), len(plans), on_step)


def evaluate(
    config: EvalConfig,
    start_engine: "Callable[..., StepLLM] | None" = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Compare methods on the same questions, seeds and KV budget; see `Evaluation`."""
    return Evaluation(config, start_engine, console).run()


_PAUSE_S = 0.05


@contextmanager
def device_lock(path: Path | str | None, alone: bool) -> Iterator[None]:
    """Hold a lock file, alone or together with others that do not ask to be alone.

    Args:
        path: the file, made where it is missing; None waits for nobody.
        alone: True to measure; False to start an engine, which several may do at once.

    Raises:
        InputError: the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        file = Path(path).open("a")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(
            f"Expected a writable lock file at {path}, found: {error.strerror}. "
            "Hint: choose another --device-lock."
        ) from error
    # flock by itself: filelock can share a lock only through an SQLite database.
    with file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            # By word: an engine process that was forked meanwhile holds the file open as well.
            fcntl.flock(file, fcntl.LOCK_UN)
    if alone:
        time.sleep(_PAUSE_S)  # else the others, who wait, would seldom come first
