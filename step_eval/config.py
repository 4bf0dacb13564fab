"""Settings of an evaluation, and which of them decide its records."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from data_gen.questions.load import QuestionOptions, shard_part
from step_eval.methods.deepconf import WARMUP
from step_eval.methods.registry import find_method, method_names
from step_eval.methods.slim_sc import SlimSC
from step_eval.votes import CONFIDENCE, vote_rule
from step_infer.cli.options import check_at_least
from step_infer.client.branching import Branching
from step_infer.client.kinds import AnswerOptions
from step_infer.client.prompt import SYSTEM_PROMPT
from step_infer.client.trace import Sampling
from step_infer.errors import InputError
from step_infer.replicas.options import ReplicaOptions
from step_infer.scorer.aggregate import AGGREGATORS
from step_infer.scorer.boundary import BoundaryOptions
from step_infer.scorer.group_confidence import WINDOW


@dataclass(frozen=True, kw_only=True)
class PruningOptions:
    """How STEP prunes; the commands that evaluate, replay and simulate it share these options."""

    aggregator: str | None = None
    """From step scores to a trace score: mean, last, min or ema; none given, that of the scorer
    card or of the recorded traces, else mean."""
    min_keep: int = 1
    """Traces of a question that pruning always keeps."""
    min_steps: int = 1
    """Step scores that a trace must have before it can be pruned."""
    repeats: int = 1
    """How often each question is asked, each time with other seeds or other recorded traces."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "min_keep", "min_steps", "repeats")
        if self.aggregator is not None and self.aggregator not in AGGREGATORS:
            raise InputError(
                f"Expected --aggregator out of {', '.join(AGGREGATORS)}, found {self.aggregator!r}."
            )


@dataclass(frozen=True, kw_only=True)
class MethodOptions(PruningOptions):
    """How methods are compared on engines; step-eval and step-eval replay share these options."""

    methods: str = "sc,step"
    """Methods to compare, separated by commas: sc, step, deepconf-low, deepconf-high, slim-sc,
    branch (STEP that also continues good traces as further ones), branch-random (its control),
    single (one trace a question); and STEP with another choice of the trace that is stopped:
    random, youngest, longest, least-confident, oracle. all: every method (a replay leaves slim-sc
    and branching out). With +decided after a name, a question ends as soon as its vote is decided;
    with +likely as soon as that is likely (step-eval calibrate); +waveK after that runs at most K
    of its traces at once."""
    num_traces: int = 64
    """Traces N for each question."""
    sampling: Sampling = field(default_factory=Sampling)
    """How traces are sampled."""
    kv_budget: float = 1.0
    """KV cache for every method, as a part of what all traces of a question need together:
    N x (prompt + mean response tokens). 1.0 sets no limit but the machine's memory."""
    kv_budget_tokens: int | None = None
    """KV cache for every method in tokens; wins over --kv-budget."""
    vote: str = "auto"
    """How traces vote: uniform, score, score^POWER, score-top-K (only the K highest-scored traces,
    by score), score-shared (by score, shared among traces that branched from one another), best,
    confidence (mean token confidence) or lowest-confidence; auto takes each method's own: uniform
    for sc, score for step, lowest-confidence for DeepConf. Where a method's traces lack that
    number, each has one vote."""
    confidence: bool = False
    """Also record the mean token confidence of traces on engines that score, for the vote
    confidence; DeepConf and least-confident always record it, stock vLLM never."""
    warmup: int = WARMUP
    """Traces of a question that DeepConf lets run to their ends first, for its threshold."""
    window: int = WINDOW
    """Tokens of DeepConf's sliding window; traces shorter than that are never stopped."""
    device_lock: str | None = None
    """Lock file for runs that share a device: their engines start together, then each question has
    the device to itself. With replicas, each GPU of a node has a file of its own, FILE.gpu0 and so
    on."""
    kv_series_questions: int = 3
    """Questions of the file whose KV use over time is kept for the report."""
    engine: dict[str, Any] = field(default_factory=dict)
    """More vLLM engine arguments, as --engine.NAME VALUE."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, self, "num_traces", "kv_budget_tokens", "warmup", "window")
        check_at_least(0, self, "kv_series_questions")
        if not 0 < self.kv_budget <= 1:
            raise InputError(
                f"Expected --kv-budget in (0, 1], a part of what all traces need, "
                f"found {self.kv_budget}. Hint: --kv-budget-tokens takes tokens."
            )
        if self.vote != "auto":
            vote_rule(self.vote)


@dataclass(frozen=True)
class EvalConfig(MethodOptions, ReplicaOptions, QuestionOptions):
    """Everything that `step-eval` can be told."""

    MAIN_OPTIONS: ClassVar = (
        "model",
        "questions",
        "out",
        "methods",
        "scorer",
        "num_traces",
        "kv_budget",
        "lengths_from",
        "repeats",
        "limit",
        "engine",
    )

    model: str
    """Model folder or Hugging Face id."""
    questions: str
    """A file (JSON lines, .csv or .parquet), a data set of the Hugging Face hub as
    org/name[:config][@split], or the name of a benchmark (see --benchmark)."""
    out: str
    """Directory for records, results.json and report.html; a run that was stopped goes on."""
    scorer: str | None = None
    """Scorer file; the method step needs it, and those that differ from it by the victim only."""
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    """How answers are found and compared."""
    boundary: BoundaryOptions = field(default_factory=BoundaryOptions)
    """What ends a step, and the thinking. A scorer brings its own rule, which must be the same."""
    oracle_from: str | None = None
    """Directory of step-eval whose records of the method sc say which traces come out right, for
    the method oracle; none given, --out itself. Questions that are missing there are left
    out."""
    seed: int = 0
    """Each trace's own seed follows from this one, the repeat, its question and its number."""
    system: str = SYSTEM_PROMPT
    """System text of the chat prompt; an empty text leaves it out."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """More arguments of the model's chat template, as --chat-template-kwargs.NAME VALUE: those
    that its author gave it, such as enable_thinking or reasoning_effort."""
    lengths_from: str | None = None
    """Where the mean response length for --kv-budget comes from: a directory of step-collect, a
    Parquet file with token_ids, or a directory or results.json of step-eval with the method sc.
    Without it, a pilot samples a few questions at full memory first."""
    allow_mismatch: list[str] = field(default_factory=list)
    """Fields of the scorer card that may differ from the model."""
    slim: SlimSC = field(default_factory=SlimSC)
    """How Slim-SC finds and stops traces that are alike."""
    branch: Branching = field(default_factory=Branching)
    """Who may be a parent under branch and branch-random."""
    keep_text: bool = False
    """Keep the full text of every trace in the records."""

    def __post_init__(self) -> None:
        QuestionOptions.__post_init__(self)
        super().__post_init__()
        self._check_replicas()
        if self.vote == CONFIDENCE and not self.confidence:
            raise InputError(
                "Expected --confidence true beside --vote confidence, found false: the engine "
                "would not record it. Hint: add it, or choose another --vote."
            )
        if self.oracle_from is not None and "oracle" not in self.method_names:
            raise InputError(
                "Expected the method oracle beside --oracle-from, found none. "
                "Hint: add oracle to --methods, or leave --oracle-from out."
            )
        warming = [name for name in self.method_names if "warmup" in find_method(name).settings]
        if warming and self.warmup >= self.num_traces:
            raise InputError(
                f"Expected --warmup below --num-traces ({self.num_traces}) for the method "
                f"{warming[0]}, found {self.warmup}. Hint: lower --warmup or raise --num-traces."
            )
        needing = [name for name in self.method_names if find_method(name).needs_scorer]
        if needing and self.scorer is None:
            raise InputError(
                f"Expected --scorer FILE for the method {needing[0]}, found none. "
                "Hint: make one with scorer-export."
            )
        if self.allow_mismatch and self.scorer is None:
            raise InputError(
                "Expected --scorer beside --allow-mismatch, found none. "
                "Hint: leave --allow-mismatch out, or add --scorer FILE."
            )
        if shard_part(self.shard)[1] > 1 and self.needs_lengths and self.lengths_from is None:
            raise InputError(
                "Expected --lengths-from or --kv-budget-tokens beside --shard, so that all shards "
                "have the same KV budget, found neither. Hint: give every shard the same one."
            )

    @property
    def method_names(self) -> list[str]:
        """The methods to run, in the order given."""
        return method_names(self.methods)

    @property
    def needs_lengths(self) -> bool:
        """Whether the KV budget depends on the mean response length."""
        return self.kv_budget_tokens is None and self.kv_budget < 1

    @property
    def answer_options(self) -> AnswerOptions:
        """The answer kind, that of the benchmark where none is given."""
        return self.answers.with_default(self.form(self.questions).answers)

    def result_settings(self) -> dict[str, Any]:
        """Return the settings that decide what a question's record holds, flat and JSON-ready.

        Methods, repeats, limit and vote are left out: a run may go on with more of them. Files are
        left to the caller, who adds their checksums.
        """
        names = ["num_traces", "seed", "system", "chat_template_kwargs"]
        names += ["kv_budget", "kv_budget_tokens"]
        names += sorted({s for name in self.method_names for s in find_method(name).settings})
        settings = self.reading_settings() | self.answer_options.settings()
        for name in (*names, "sampling", "boundary"):
            value = getattr(self, name)
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                parts = dataclasses.asdict(value).items()
                settings |= {f"{name}.{part}": part_value for part, part_value in parts}
            else:
                settings[name] = value
        for name in sorted(self.engine):
            settings[f"engine.{name}"] = self.engine[name]
        return settings
