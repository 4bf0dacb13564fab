"""What the offline client does before its engine starts."""

from types import SimpleNamespace

import pytest

from step_infer.client import llm
from step_infer.client.llm import StepLLM


class Stopped(Exception):
    """Stands for all that follows."""


def test_the_revision_is_that_of_identity_and_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def identify(model: str, revision: str | None) -> SimpleNamespace:
        seen.append((model, revision))
        return SimpleNamespace(hidden_size=8)

    def load_tokenizer(model: str, revision: str | None) -> None:
        seen.append((model, revision))
        raise Stopped

    monkeypatch.setattr(llm, "identify", identify)
    monkeypatch.setattr(llm, "load_tokenizer", load_tokenizer)
    with pytest.raises(Stopped):
        StepLLM("org/name", revision="v1")
    with pytest.raises(Stopped):
        StepLLM("org/name")
    assert seen == [("org/name", "v1")] * 2 + [("org/name", None)] * 2
