"""Settings of `step-eval replay`."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from step_eval.config import EvalConfig, MethodOptions
from step_eval.methods.registry import ALL, find_method, method_names
from step_infer.cli.options import check_at_least
from step_infer.client.kinds import AnswerOptions
from step_infer.errors import InputError


@dataclass(frozen=True)
class ReplayConfig(MethodOptions):
    """Everything that `step-eval replay` can be told."""

    MAIN_OPTIONS: ClassVar = (
        "traces",
        "out",
        "shape",
        "methods",
        "num_traces",
        "kv_budget",
        "mean_tokens",
        "repeats",
        "limit",
        "engine",
    )

    traces: str
    """Recorded traces: a file of step-eval record, a part or a directory of step-collect, or a
    directory of step-eval with the method sc. Methods that prune need recorded step scores."""
    out: str
    """Directory for records, results.json and report.html; a run that was stopped goes on."""
    shape: str = "qwen3-8b"
    """Model whose shape the engine takes, with random weights: qwen3-4b, qwen3-8b, phi-4-15b, or
    a config.json."""
    scorer: str | None = None
    """Scorer file whose size the worker's scorer takes; none given, one of random weights with 512
    units. Its scores are computed and then replaced by the recorded ones; the methods +likely take
    their threshold from it."""
    limit: int | None = None
    """Use only so many questions from the start."""
    length_scale: float = 1.0
    """Factor on the length of every response; boundaries move in proportion."""
    mean_tokens: float | None = None
    """Mean response length in tokens that all lengths are scaled to; sets the factor."""
    seed: int = 0
    """Decides which traces a repeat takes."""
    kv_budget: float = field(default=0.25, kw_only=True)
    """KV cache for every method, as a part of what all traces of a question need together:
    N x (prompt + mean response tokens). 1.0 sets no limit but the machine's memory."""

    def __post_init__(self) -> None:
        for name in self.method_names:
            if (why := find_method(name).no_replay) is not None:
                raise InputError(
                    f"Expected methods that recorded traces can be replayed under, found {name!r}: "
                    f"{why}. Hint: leave it out of --methods."
                )
        super().__post_init__()
        check_at_least(1, self, "limit")
        if self.length_scale <= 0:
            raise InputError(f"Expected --length-scale above 0, found {self.length_scale}.")
        if self.mean_tokens is not None:
            if self.mean_tokens <= 0:
                raise InputError(f"Expected --mean-tokens above 0, found {self.mean_tokens}.")
            if self.length_scale != 1:
                raise InputError("Expected either --length-scale or --mean-tokens, found both.")

    @property
    def method_names(self) -> list[str]:
        """The methods to run; "all" leaves out those that cannot be replayed."""
        names = method_names(self.methods)
        if self.methods.strip() == ALL:
            names = [name for name in names if find_method(name).no_replay is None]
        return names

    def evaluation(
        self,
        model: Path | str,
        scorer: Path | str | None,
        engine: dict[str, Any],
        answers: AnswerOptions,
    ) -> EvalConfig:
        """Return the evaluation that the replay is, on a model without weights."""
        shared = {item.name: getattr(self, item.name) for item in dataclasses.fields(MethodOptions)}
        own = {
            "model": str(model),
            "methods": ",".join(self.method_names),
            "questions": self.traces,
            "scorer": None if scorer is None else str(scorer),
            "lengths_from": self.traces,
            "engine": engine,
            "answers": answers,
        }
        return EvalConfig(**{**shared, **own}, out=self.out, limit=self.limit, seed=self.seed)
