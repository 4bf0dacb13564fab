"""Settings of collecting, importing and joining traces, and which of them decide the content."""

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from data_gen.questions.load import QuestionOptions
from step_infer.cli.options import check_at_least
from step_infer.client.kinds import AnswerOptions
from step_infer.client.prompt import SYSTEM_PROMPT
from step_infer.client.trace import Sampling
from step_infer.errors import InputError
from step_infer.replicas.options import ReplicaOptions
from step_infer.scorer.boundary import BoundaryOptions

RESULT_ENGINE_ARGS = ("dtype", "quantization", "max_model_len", "revision", "hf_overrides")
"""Engine arguments that change which traces come out; all others may change when a run goes on."""

RESULT_FIELDS = (
    "num_traces",
    "seed",
    "system",
    "chat_template_kwargs",
    "no_answers",
    "skip_bad_lines",
    "limit",
    "shard",
    "features",
    "feature_dtype",
    "confidence",
)
"""Settings that must agree when a run goes on."""


def spare_cores() -> int:
    """Return how many processes can compare answers beside an engine and its caller."""
    return max(1, len(os.sched_getaffinity(0)) - 2)


@dataclass(frozen=True)
class CollectConfig(ReplicaOptions, QuestionOptions):
    """Everything that `step-collect` can be told."""

    MAIN_OPTIONS: ClassVar = (
        "model",
        "questions",
        "out",
        "num_traces",
        "limit",
        "shard",
        "sampling.temperature",
        "sampling.max_tokens",
        "system",
        "features",
        "engine",
    )

    model: str
    """Model folder or Hugging Face id."""
    questions: str
    """A file (JSON lines, .csv or .parquet), a data set of the Hugging Face hub as
    org/name[:config][@split], or the name of a benchmark (see --benchmark)."""
    out: str
    """Traces directory to make, or to go on with after an interruption."""
    num_traces: int = 64
    """Traces N for each question."""
    sampling: Sampling = field(default_factory=Sampling)
    """How traces are sampled."""
    seed: int = 0
    """Each trace's own seed follows from this one, its question and its number."""
    system: str = SYSTEM_PROMPT
    """System text of the chat prompt; an empty text leaves it out."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """More arguments of the model's chat template, as --chat-template-kwargs.NAME VALUE: those
    that its author gave it, such as enable_thinking or reasoning_effort."""
    no_answers: bool = False
    """Accept questions without an answer; their traces are not graded."""
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    """How answers are found and compared."""
    boundary: BoundaryOptions = field(default_factory=BoundaryOptions)
    """What ends a step. A scorer brings its own rule, which must be the same."""
    features: bool = True
    """Also write the hidden state at every step boundary, for training a scorer."""
    feature_dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Number format of stored states; auto keeps what the engine gives, the model's own."""
    confidence: bool = True
    """Also record how sure the model is of its tokens: mean token confidence (DeepConf)."""
    scorer: str | None = None
    """Scorer file, to record step scores as well; nothing is pruned."""
    allow_mismatch: list[str] = field(default_factory=list)
    """Fields of the scorer card that may differ from the model."""
    max_in_flight: int = 1024
    """Traces handed to an engine at a time."""
    part_traces: int = 256
    """Traces that are written at a time; what is not yet written is lost in a crash."""
    steps_per_trace: int = 300
    """Steps a trace taken for the size estimate, until the first part is written."""
    grading_workers: int | None = None
    """Processes that compare answers; none given, one for each core but two, at least one."""
    engine: dict[str, Any] = field(default_factory=dict)
    """More vLLM engine arguments, as --engine.NAME VALUE."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("num_traces", "max_in_flight", "part_traces", "steps_per_trace")
        check_at_least(1, self, *counts, "grading_workers")
        self._check_replicas()
        if self.allow_mismatch and self.scorer is None:
            raise InputError("Expected --scorer beside --allow-mismatch, found none.")

    @property
    def grading_processes(self) -> int:
        """The processes that compare answers."""
        return self.grading_workers or spare_cores()

    @property
    def answer_options(self) -> AnswerOptions:
        """The answer kind, that of the benchmark where none is given."""
        return self.answers.with_default(self.form(self.questions).answers)

    def result_settings(self) -> dict[str, Any]:
        """Return the settings that decide the content, flat and JSON-ready.

        Only these must agree when a run goes on. Files are left to the caller, who adds their
        checksums.
        """
        settings = self.reading_settings() | {name: getattr(self, name) for name in RESULT_FIELDS}
        settings |= self.answer_options.settings()
        for name, value in dataclasses.asdict(self.sampling).items():
            settings[f"sampling.{name}"] = value
        for name in RESULT_ENGINE_ARGS:
            settings[f"engine.{name}"] = self.engine.get(name)
        return settings


@dataclass(frozen=True)
class CollectMergeConfig:
    """What `step-collect merge` can be told."""

    POSITIONAL: ClassVar = "shards"

    out: str
    """Traces directory to make."""
    shards: list[str] = field(default_factory=list)
    """Directories of step-collect --shard, one for each part of the questions."""


@dataclass(frozen=True)
class ImportConfig:
    """Everything that `step-collect import` can be told."""

    MAIN_OPTIONS: ClassVar = (
        "responses",
        "model",
        "out",
        "question_field",
        "response_field",
        "answer_field",
        "system",
        "answers.kind",
    )

    responses: str
    """A file (JSON lines, .csv or .parquet) or a data set of the Hugging Face hub as
    org/name[:config][@split]; each row has a question, a response or a list of them, and the right
    answer."""
    model: str
    """Model folder or Hugging Face id of the model that made the responses."""
    out: str
    """Traces directory to make, or to go on with after an interruption."""
    question_field: str = "question"
    """Field of the question's text; rows with the same text are one question."""
    response_field: str = "response"
    """Field of the response, or of a list of responses, thinking part included."""
    answer_field: str = "ground_truth"
    """Field of the right answer."""
    system: str = SYSTEM_PROMPT
    """System text of the chat prompt; an empty text leaves it out."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """More arguments of the model's chat template, as --chat-template-kwargs.NAME VALUE: those
    that its author gave it, such as enable_thinking or reasoning_effort."""
    revision: str | None = None
    """Branch, tag or commit of a model from the hub."""
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    """How answers are found and compared."""
    boundary: BoundaryOptions = field(default_factory=BoundaryOptions)
    """What ends a step."""
    skip_bad_lines: bool = False
    """Leave out rows that cannot be used, and count them, where the default is to stop."""
    part_traces: int = 256
    """Traces that are written at a time; what is not yet written is lost in a crash."""
    grading_workers: int | None = None
    """Processes that compare answers; none given, one for each core but two, at least one."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "part_traces", "grading_workers")

    @property
    def grading_processes(self) -> int:
        """The processes that compare answers."""
        return self.grading_workers or spare_cores()

    def result_settings(self) -> dict[str, Any]:
        """Return the settings that decide the content, flat and JSON-ready."""
        names = ["question_field", "response_field", "answer_field", "skip_bad_lines"]
        names += ["system", "chat_template_kwargs", "revision"]
        return {name: getattr(self, name) for name in names} | self.answers.settings()
