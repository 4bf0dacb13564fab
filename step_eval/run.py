"""Run an evaluation: one engine per method, one question at a time, resumable per question."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from datetime import datetime
from typing import Any

from rich.console import Console

from data_gen.questions.load import Question
from step_eval.asking import Asked, Asker, EngineSetup, stop_rule
from step_eval.budget import Budget, fraction_budget
from step_eval.comparison import outcome, vote_name
from step_eval.config import EvalConfig
from step_eval.inputs import EvalInputs, load_inputs
from step_eval.manifest import earlier_manifest, make_manifest
from step_eval.methods.registry import BASELINE, base_name, find_method
from step_eval.ranks import ORACLE, Ranks
from step_eval.records import QuestionRecord, RecordStore
from step_eval.replicas import QuestionPool
from step_eval.results import KIND, write_results
from step_infer.cli.progress import TraceProgress
from step_infer.client.grading import Grader
from step_infer.client.llm import StepLLM
from step_infer.replicas.options import LOGS_FOLDER
from step_infer.replicas.pool import ReplicaPool
from step_infer.storage.run_directory import RunDirectory, read_manifest, write_manifest

_PILOT_QUESTIONS = 2
"""Asked for the mean response length: with N traces each, two give it to a few percent."""
_Todo = dict[str, list[tuple[int, Question]]]
"""Repeats and questions that are missing, by method."""


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
        self.inputs = inputs or load_inputs(config, self.console.print)
        self.store = RecordStore(config.out)
        self.ranks = Ranks(self.inputs)
        for name in config.method_names:  # a missing threshold, before any engine starts
            stop_rule(find_method(name), vote_name(name, config.vote), config, self.inputs.card)
        self._setup = EngineSetup(
            config,
            self.inputs.card,
            self.inputs.rule,
            datetime.now().isoformat(timespec="seconds"),
            start_engine,
        )

    def run(self) -> dict[str, Any]:
        """Ask what has not been asked yet, write records, results and report; return the results.

        Raises:
            InputError: the output directory cannot be used, or the engine refuses a setting.
        """
        config = self.config
        with config.connected(), RunDirectory(config.out, KIND).claim() as run:
            earlier = earlier_manifest(run, self.inputs.settings(), self.store.begun())
            # A run that goes on asks with the date of its beginning.
            date = (earlier or {}).get("prompt_date", self._setup.prompt_date)
            self._setup = dataclasses.replace(self._setup, prompt_date=date)
            # The baseline first: the oracle takes from it which traces come out right.
            names = sorted(config.method_names, key=lambda name: name != BASELINE)
            todo = {name: self._missing(name) for name in names}
            for name in (name for name in names if base_name(name) == ORACLE):
                todo[name] = self._known_to_oracle(todo[name], todo.get(BASELINE, []))
            budget = Budget(**earlier["budget"]) if earlier else self._budget()
            if earlier is None or any(todo.values()):
                manifest = make_manifest(self.inputs, budget, earlier, date)
                write_manifest(run.path, manifest)
            self._print_plan(budget, todo)
            if config.uses_ray and any(todo.values()):
                self._ask_on_replicas(todo, budget, run)
            else:
                self._ask_here(todo, budget)
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
            self._pilot_engine() as llm,
            TraceProgress(len(chosen) * config.num_traces, label="pilot") as progress,
        ):
            for question in chosen:
                plans = self._setup.plans(llm, question, 0)
                for trace in llm.stream(plans, max_in_flight=len(plans), on_step=progress.step):
                    tokens += len(trace.token_ids)
                    traces += 1
                    progress.finished(len(trace.token_ids))
        return tokens / traces, f"pilot of {len(chosen)} questions, {traces} traces"

    def _pilot_engine(self) -> AbstractContextManager[StepLLM | ReplicaPool]:
        config = self.config
        if not config.uses_ray:
            return self._setup.engine({"plain": True}, None)
        return closing(
            ReplicaPool(
                config.model, replicas=1, address=config.ray_address, plain=True, **config.engine
            )
        )

    def _ask_here(self, todo: _Todo, budget: Budget) -> None:
        """Ask one method's questions after the other's, on engines in this process."""
        config = self.config
        locks = [] if config.device_lock is None else [config.device_lock]
        with (
            Grader(answers=config.answer_options) as grader,
            Asker(self._setup, budget.tokens, grader, locks) as asker,
        ):
            grader.warm_up()
            for name, missing in todo.items():
                if not missing:
                    continue
                method = find_method(name)
                asker.start(name)
                with TraceProgress(
                    len(missing) * (method.traces or config.num_traces),
                    label=f"{method.label} traces",
                ) as progress:
                    for repeat, question in missing:
                        record = asker.ask(
                            self._asked(name, repeat, question),
                            on_trace=lambda trace: progress.finished(
                                trace.own_tokens, extra=trace.parent is not None
                            ),
                            on_step=progress.step,
                        )
                        self._keep(record, progress)

    def _ask_on_replicas(self, todo: _Todo, budget: Budget, run: RunDirectory) -> None:
        """Share the questions out over replicas, and say in the manifest what these were."""
        config = self.config
        traces = sum(
            len(missing) * (find_method(name).traces or config.num_traces)
            for name, missing in todo.items()
        )
        todo_by_method = [(name, *place) for name in todo for place in todo[name]]
        pool = QuestionPool(
            self._setup,
            budget.tokens,
            replicas=config.replicas,
            address=config.ray_address,
            log_dir=run.path / LOGS_FOLDER,
        )
        with closing(pool):
            manifest = read_manifest(run.path)
            write_manifest(run.path, manifest | pool.described(manifest["replicas"]))
            with TraceProgress(traces, label="traces") as progress:
                for record in pool.ask(todo_by_method, self._asked, progress):
                    self._keep(record, progress)

    def _asked(self, name: str, repeat: int, question: Question) -> Asked:
        shown = self.inputs.questions[: self.config.kv_series_questions]
        return Asked(
            name,
            repeat,
            question,
            self.ranks.for_question(base_name(name), repeat, question),
            keep_series=repeat == 0 and question.id in {other.id for other in shown},
        )

    def _keep(self, record: QuestionRecord, progress: TraceProgress) -> None:
        self.store.append(record)
        progress.question(outcome(record, vote_name(record.method, self.config.vote)).right)

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


def evaluate(
    config: EvalConfig,
    start_engine: "Callable[..., StepLLM] | None" = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Compare methods on the same questions, seeds and KV budget; see `Evaluation`."""
    return Evaluation(config, start_engine, console).run()
