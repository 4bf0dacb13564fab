"""What vLLM answers becomes a trace: which responses have an answer."""

from types import SimpleNamespace

import pytest
from vocabularies import vocabulary

from step_infer.client.requests import ended_trace
from step_infer.client.trace import Sampling, TracePlan
from step_infer.scorer.boundary import BoundaryRule

DRAFT = "S1=1\n\n\\boxed{1}\n\nS2=3"
ASKED = "<|im_start|>user\n1+2<|im_end|>\n<|im_start|>assistant\n"


def answer(prompt: str, text: str, reason: str, think_end: str = "</think>") -> str | None:
    tokenizer = vocabulary("demo")
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
    plan = TracePlan("q", 0, tuple(prompt_ids), None, Sampling(), "q")
    token_ids = tokenizer.encode(text + "." * (reason == "stop"), add_special_tokens=False)
    completion = SimpleNamespace(stop_reason=None, finish_reason=reason)
    output = SimpleNamespace(outputs=[completion], kv_transfer_params=None)
    rule = BoundaryRule.for_tokenizer(tokenizer, think_end=think_end)
    trace = ended_trace(plan, token_ids, output, 0.0, tokenizer, rule, 8)
    assert trace.text == text
    return trace.answer


@pytest.mark.parametrize(
    ("prompt", "text", "think_end"),
    [
        (ASKED + "<think>\n", DRAFT, "</think>"),
        (ASKED, "<think>\n" + DRAFT, "</think>"),
        (ASKED, "[THINK]" + DRAFT, "[/THINK]"),
        (ASKED + "<|channel>", DRAFT, "<channel|>"),
    ],
)
def test_a_draft_of_a_trace_that_was_cut_off_while_it_thought_is_no_answer(
    prompt: str, text: str, think_end: str
) -> None:
    assert answer(prompt, text, "length", think_end) is None
    assert answer(prompt, text + think_end + "\n\n", "length", think_end) is None
    assert answer(prompt, text + think_end + "\\boxed{3}", "length", think_end) == "3"
    assert answer(prompt, text + think_end + "\\boxed{3}", "stop", think_end) == "3"


def test_a_model_that_does_not_think_may_be_cut_off_after_its_answer() -> None:
    assert answer(ASKED, DRAFT, "length") == "1"
    assert answer(ASKED + "<think>\n\n</think>\n\n", DRAFT, "length") == "1"
