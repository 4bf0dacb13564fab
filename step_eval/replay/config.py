"""Settings of `step-eval replay`."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from step_eval.config import EvalConfig
from step_eval.methods.deepconf import WARMUP
from step_eval.methods.registry import ALL, METHODS, method_names
from step_eval.votes import vote_rule
from step_infer.client.trace import Sampling
from step_infer.confidence import WINDOW
from step_infer.errors import InputError
from step_infer.scorer.aggregate import AGGREGATORS


@dataclass(frozen=True)
class ReplayConfig:
    """Everything that `step-eval replay` can be told."""

    traces: str
    """Recorded traces: a file of step-eval record, a part or a directory of step-collect, or a
    directory of step-eval with the method sc. Methods that prune need recorded step scores."""
    out: str
    """Directory for records, results.json and report.html; a run that was stopped goes on."""
    shape: str = "qwen3-8b"
    """Model whose shape the engine takes, with random weights: qwen3-4b, qwen3-8b, phi-4-15b, or
    a config.json."""
    methods: str = "sc,step"
    """Methods to compare, separated by commas; see step-eval --help. All that need no text: all,
    which leaves slim-sc out. Which traces come out right, the oracle knows from the recording."""
    scorer: str | None = None
    """Scorer file whose size the worker's scorer takes; none given, one of random weights with 512
    units. Its scores are computed and then replaced by the recorded ones."""
    num_traces: int = 64
    """Traces N for each question; where fewer are recorded, some come several times."""
    repeats: int = 1
    """How often each question is asked, each time with other traces, where more are recorded."""
    limit: int | None = None
    """Use only so many questions from the start."""
    scale: float = 1.0
    """Factor on the length of every response; boundaries move in proportion."""
    mean_tokens: float | None = None
    """Mean response length in tokens that all lengths are scaled to; sets the factor."""
    sampling: Sampling = field(default_factory=Sampling)
    """How tokens are sampled: it decides the sampler's time. max_tokens is not used."""
    seed: int = 0
    """Decides which traces a repeat takes."""
    kv_budget: float = 0.25
    """KV cache for every method, as a part of what all traces of a question need together:
    N x (prompt + mean response tokens). 1.0 sets no limit but the machine's memory."""
    kv_budget_tokens: int | None = None
    """KV cache for every method in tokens; wins over kv_budget."""
    vote: str = "auto"
    """How traces vote; see step-eval --help."""
    confidence: bool = False
    """Also record mean token confidences; see step-eval --help."""
    aggregator: str | None = None
    """From step scores to a trace score: mean, last, min or ema; none given, that of the recorded
    traces, or mean."""
    min_keep: int = 1
    """Traces of a question that pruning always keeps."""
    min_steps: int = 1
    """Step scores that a trace must have before it can be pruned."""
    warmup: int = WARMUP
    """Warm-up traces of DeepConf; see step-eval --help."""
    window: int = WINDOW
    """Tokens of DeepConf's sliding window; see step-eval --help."""
    turns: str | None = None
    """Lock file by which engines on one device take turns; see step-eval --help."""
    kv_series_questions: int = 3
    """Questions whose KV use over time is kept for the report."""
    sample_seconds: float = 0.05
    """Seconds between two readings of the engine's counters."""
    engine: dict[str, Any] = field(default_factory=dict)
    """More vLLM engine arguments, as --engine.NAME VALUE."""

    def __post_init__(self) -> None:
        for name in self.method_names:
            if METHODS[name].needs_text:
                raise InputError(
                    f"Expected methods that do not look at the text of traces, found {name!r}: "
                    "a replay has no text."
                )
        for name in ("num_traces", "repeats", "limit", "min_keep", "min_steps", "kv_budget_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"Expected {_option(name)} of at least 1, found {value}.")
        if not 0 < self.kv_budget <= 1:
            raise InputError(f"Expected --kv-budget in (0, 1], found {self.kv_budget}.")
        if self.scale <= 0:
            raise InputError(f"Expected --scale above 0, found {self.scale}.")
        if self.mean_tokens is not None:
            if self.mean_tokens <= 0:
                raise InputError(f"Expected --mean-tokens above 0, found {self.mean_tokens}.")
            if self.scale != 1:
                raise InputError("Expected either --scale or --mean-tokens, found both.")
        if self.aggregator is not None and self.aggregator not in AGGREGATORS:
            raise InputError(
                f"Expected --aggregator out of {', '.join(AGGREGATORS)}, found {self.aggregator!r}."
            )
        if self.vote != "auto":
            vote_rule(self.vote)

    @property
    def method_names(self) -> list[str]:
        """The methods to run; "all" leaves out those that need text."""
        names = method_names(self.methods)
        if self.methods.strip() == ALL:
            names = [name for name in names if not METHODS[name].needs_text]
        return names

    def evaluation(
        self, model: Path | str, scorer: Path | str | None, engine: dict[str, Any]
    ) -> EvalConfig:
        """Return the evaluation that the replay is, on a model without weights."""
        ours = {item.name for item in dataclasses.fields(self)}
        shared = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(EvalConfig)
            if item.name in ours
        }
        own = {
            "model": str(model),
            "methods": ",".join(self.method_names),
            "questions": self.traces,
            "scorer": None if scorer is None else str(scorer),
            "lengths_from": self.traces,
            "engine": engine,
        }
        return EvalConfig(**{**shared, **own})


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
