"""How traces are sampled."""

from dataclasses import dataclass

from step_infer.errors import InputError

_WHOLE = ("top_k", "max_tokens")


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters; the defaults are the paper's (arXiv 2601.09093, section 4.1)."""

    temperature: float = 0.6
    """Softmax temperature; 0 is greedy."""
    top_p: float = 0.95
    """Nucleus: smallest set of tokens with this probability."""
    top_k: int = 20
    """Most likely tokens kept; 0 keeps all."""
    max_tokens: int = 65536
    """Longest response in tokens; cut to what the model's context leaves after the prompt."""

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "top_k", "max_tokens"):
            value = getattr(self, name)
            kind, kinds = (int, "whole numbers") if name in _WHOLE else (int | float, "numbers")
            if not isinstance(value, kind):
                raise InputError(f"Expected {name} out of {kinds}, found {value!r}.")
        for name, value, good in (
            ("temperature", self.temperature, self.temperature >= 0),
            ("top_p", self.top_p, 0 < self.top_p <= 1),
            ("top_k", self.top_k, self.top_k >= 0),
            ("max_tokens", self.max_tokens, self.max_tokens >= 1),
        ):
            if not good:
                bounds = {"temperature": ">= 0", "top_p": "in (0, 1]", "top_k": ">= 0"}
                raise InputError(f"Expected {name} {bounds.get(name, '>= 1')}, found {value}.")
