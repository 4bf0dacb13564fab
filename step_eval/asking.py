"""Ask questions under methods, on an engine that is started anew for each method."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from data_gen.questions.load import Question
from step_eval.comparison import vote_name
from step_eval.config import EvalConfig
from step_eval.device_lock import device_lock
from step_eval.measure import measure
from step_eval.methods.deepconf import CONSENSUS_SHARE
from step_eval.methods.registry import Method, Sampler, find_method
from step_eval.records import QuestionRecord
from step_eval.votes import most_weight, score_weigher, trace_weigher
from step_infer.client.deciding import CONSENSUS, LIKELY, NEVER, StopRule, likely_rule
from step_infer.client.grading import Grader
from step_infer.client.llm import StepLLM
from step_infer.client.prompt import dated_kwargs
from step_infer.client.running_vote import RunningVote
from step_infer.client.trace import Sampling, Trace, TracePlan, in_waves
from step_infer.replicas.cluster import Share
from step_infer.replicas.pool import ReplicaPool, seen_elsewhere
from step_infer.scorer.aggregate import NEVER_RISE
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.card import ScorerCard
from step_infer.storage.files import real_path

_WARM_UP_TOKENS = 16

RecordKey = tuple[str, int, str]
"""Method, repeat and question: what there is one record of."""


@dataclass(frozen=True)
class Asked:
    """The order to ask a question under a method."""

    method: str
    repeat: int
    question: Question
    ranks: Mapping[int, float]
    """Rank of each trace by its number, where the method stops traces by rank."""
    keep_series: bool
    """Keep the readings of the engine's counters in the record."""

    @property
    def key(self) -> RecordKey:
        """What tells it from other orders."""
        return self.method, self.repeat, self.question.id

    @property
    def question_id(self) -> str:
        """The question's id."""
        return self.question.id


@dataclass(frozen=True)
class EngineSetup:
    """How the engines of an evaluation start, and what they are asked."""

    config: EvalConfig
    card: ScorerCard | None
    rule: BoundaryRule | None
    prompt_date: str
    start_engine: Callable[..., StepLLM] | None = None
    """Makes an engine, called like `StepLLM`; None is `StepLLM`."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """Engine arguments that those of the user go before."""

    def on_replicas(self, share: Share) -> "EngineSetup":
        """Return the setup of engines in other processes, which have a share of a node."""
        config = self.config
        seen = dataclasses.replace(
            config,
            model=seen_elsewhere(config.model),
            scorer=config.scorer and seen_elsewhere(config.scorer),
            device_lock=config.device_lock and str(real_path(config.device_lock)),
        )
        return dataclasses.replace(self, config=seen, engine_args=share.engine_args())

    def engine(self, options: Mapping[str, Any], kv_budget_tokens: int | None) -> StepLLM:
        """Start an engine with a method's options."""
        start = StepLLM if self.start_engine is None else self.start_engine
        # The same steps in every method's records, so that pruned traces find their twins.
        arguments = {"kv_budget_tokens": kv_budget_tokens, **options, **self.engine_args}
        arguments |= self.config.engine
        if self.rule is not None and "scorer" not in options:
            arguments["boundary"] = self.rule
        return start(self.config.model, **arguments)

    def plans(
        self,
        llm: StepLLM | ReplicaPool,
        question: Question,
        repeat: int,
        sampling: Sampling | None = None,
    ) -> list[TracePlan]:
        """Return the orders for all traces of a question in a repeat."""
        config = self.config
        return llm.plan(
            question.id,
            question.question,
            config.num_traces,
            sampling or config.sampling,
            config.seed + repeat,
            config.system,
            chat_template_kwargs=dated_kwargs(config.chat_template_kwargs, self.prompt_date),
        )


class Asker:
    """An engine for one method at a time; use it as a context manager."""

    def __init__(
        self,
        setup: EngineSetup,
        kv_budget_tokens: int | None,
        grader: Grader,
        locks: Sequence[str] = (),
    ) -> None:
        """Make it without an engine.

        Args:
            setup: how engines start.
            kv_budget_tokens: size of each one's KV cache; None takes what memory gives.
            grader: finds answers, and compares them.
            locks: files to hold (`step_eval.device_lock`): to start an engine together with
                others, to measure alone.
        """
        self._setup = setup
        self._budget = kv_budget_tokens
        self._grader = grader
        self._locks = locks
        self._started: tuple[str, StepLLM] | None = None
        self._engine = ExitStack()

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine."""
        self._started = None
        self._engine.close()

    def start(self, name: str) -> StepLLM:
        """Return the running engine of a method: the one that is there, or a new one."""
        if self._started is None or self._started[0] != name:
            self.close()
            options = find_method(name).engine_options(self._setup.config)
            with self._locked(alone=False):
                llm = self._engine.enter_context(self._setup.engine(options, self._budget))
                self._warm_up(llm)
            self._started = name, llm
        return self._started[1]

    def ask(
        self,
        asked: Asked,
        on_trace: Callable[[Trace], None] | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> QuestionRecord:
        """Ask a question, and return its record; its method's engine is started before.

        Args:
            asked: the order.
            on_trace: called with each trace when it is finished.
            on_step: called after every engine step.
        """
        config = self._setup.config
        name, question = asked.method, asked.question
        method = find_method(name)
        llm = self.start(name)
        plans = [
            dataclasses.replace(plan, options={**plan.options, "rank": asked.ranks[plan.trace_id]})
            if plan.trace_id in asked.ranks
            else plan
            for plan in self._setup.plans(llm, question, asked.repeat)[: method.traces]
        ]
        return measure(
            llm,
            name,
            asked.repeat,
            question,
            plans,
            self._grader,
            keep_series=asked.keep_series,
            keep_text=config.keep_text,
            on_trace=on_trace,
            on_step=on_step,
            sampler=_sampler(method, config),
            vote_open=self._vote(method, vote_name(name, config.vote)),
            alone=self._locked(alone=True),
        )

    def _vote(self, method: Method, vote_by: str) -> RunningVote | None:
        """Return what ends a question's traces when its vote is decided, if anything does."""
        if method.stop_rule == NEVER:
            return None
        config, card = self._setup.config, self._setup.card
        aggregator = config.aggregator or (None if card is None else card.aggregator)
        return RunningVote(
            range(method.traces or config.num_traces),
            trace_weigher(vote_by),
            most_weight(vote_by),
            stop_rule(method, vote_by, config, card),
            grader=self._grader,
            expect=score_weigher(vote_by),
            falls=aggregator in NEVER_RISE,
        )

    def _warm_up(self, llm: StepLLM) -> None:
        """Let the engine meet its batch sizes before the clock runs."""
        sampling = Sampling(max_tokens=_WARM_UP_TOKENS)
        plans = self._setup.plans(llm, Question("warm-up", "Warm up.", None), 0, sampling)
        for _ in llm.stream(plans, max_in_flight=len(plans)):
            pass

    @contextmanager
    def _locked(self, alone: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for path in self._locks:
                stack.enter_context(device_lock(path, alone))
            yield


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
