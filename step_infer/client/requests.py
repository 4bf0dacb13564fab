"""A question as orders, an order as vLLM's request, and what vLLM answers as a trace."""

import hashlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from step_infer.client.prompt import chat_prompt
from step_infer.client.trace import (
    STOPPED,
    Inherited,
    Sampling,
    Trace,
    TraceKey,
    TracePlan,
    trace_seed,
)
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.think_end import is_unfinished
from step_infer.settings import MAX_GROUP_CHARACTERS
from step_infer.wire import CONFIG_KEY

if TYPE_CHECKING:
    from vllm import SamplingParams


_PROMPT_END = 64
"""Tokens of a prompt that say whether it ends by opening the thinking."""


def request_id(key: TraceKey) -> str:
    """Return the name that a trace has in the engine."""
    return f"{key[0]}/{key[1]}"


def sampling_params(
    order: TracePlan,
    options: dict[str, Any] | None,
    room: int,
    by_delta: bool,
    parent: str = "",
) -> "SamplingParams":
    """Return how vLLM samples an order.

    Args:
        order: the trace's order.
        options: the adapter's options for every request; None for stock vLLM.
        room: tokens that the context leaves for the response, inherited tokens among them.
        by_delta: whether every step's tokens come at once, not all of them at the end.
        parent: of a branch: the engine's name of its parent's request.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = order.sampling
    extra_args = None
    if options is not None:
        group = order.group
        if (
            group is not None and len(group) > MAX_GROUP_CHARACTERS
        ):  # a question's name may be longer than a group's
            group = hashlib.sha256(group.encode()).hexdigest()
        extra_args = {CONFIG_KEY: {"group": group, **options, **order.options}}
        if order.inherited is not None:
            extra_args[CONFIG_KEY]["inherit"] = inherit_option(order.inherited, parent)
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or -1,
        max_tokens=min(sampling.max_tokens, room) - len(inherited_ids(order)),
        seed=order.seed,
        detokenize=False,  # once at the end instead of token by token, which costs more
        output_kind=RequestOutputKind.DELTA if by_delta else RequestOutputKind.FINAL_ONLY,
        extra_args=extra_args,
    )


def inherit_option(inherited: Inherited, parent: str) -> dict[str, Any]:
    """Return the request option `inherit` of a branch, given the engine's name of its parent."""
    return {
        "parent": parent,
        "tokens": len(inherited.token_ids),
        "scores": list(inherited.scores),
        "confidences": list(inherited.confidences),
    }


def inherited_ids(order: TracePlan) -> tuple[int, ...]:
    """Return the generated tokens that an order begins with."""
    return () if order.inherited is None else order.inherited.token_ids


def report_of(output: Any) -> dict[str, Any]:
    """Return the adapter's report in vLLM's `RequestOutput` of a trace; empty without one.

    That of a trace that the engine refuses to score has an "error".
    """
    found = None if output is None else output.kv_transfer_params
    return (found or {}).get(CONFIG_KEY, {})


def ended_trace(
    order: TracePlan,
    token_ids: list[int],
    output: Any,
    submitted_s: float,
    tokenizer: Any,
    rule: BoundaryRule,
    hidden_size: int,
    stopped: str | None = None,
    cached_tokens: int | None = None,
) -> Trace:
    """Return a trace that ends now.

    Args:
        order: its order.
        token_ids: the tokens that it generated itself.
        output: vLLM's last `RequestOutput` of it; None for one that the client stopped.
        submitted_s: when it was handed to the engine, seconds of `time.monotonic()`.
        tokenizer: the model's.
        rule: where steps end, for a trace that the engine did not look at.
        hidden_size: width H of the hidden states that may come with it.
        stopped: why the client stopped it, if it did.
        cached_tokens: of a branch: tokens of its prompt that the prefix cache had.
    """
    token_ids = [*inherited_ids(order), *token_ids]
    reason, report = stopped or "", report_of(output)
    if output is not None:
        completion = output.outputs[0]
        why = completion.stop_reason
        reason = why if why in STOPPED else completion.finish_reason
    # The token that ends the turn is no part of the text.
    shown = token_ids[:-1] if reason == "stop" else token_ids
    text = tokenizer.decode(shown, clean_up_tokenization_spaces=False)
    trace = Trace(
        order.question_id,
        order.trace_id,
        order.seed,
        list(order.prompt_token_ids),
        token_ids,
        text,
        reason,
        _answer(order, text, reason, tokenizer, rule),
        report.get("positions", rule.positions(token_ids)),
        report.get("scores", []),
        report.get("score"),
        report.get("confidences"),
        report.get("confidence"),
        report.get("lowest_confidence"),
        submitted_s=submitted_s,
        finished_s=time.monotonic(),
        parent=None if order.inherited is None else order.inherited.parent,
        inherited=len(inherited_ids(order)),
        cached_tokens=cached_tokens,
    )
    if "hidden" in report:
        import torch

        dtype = getattr(torch, report["hidden_dtype"])
        bits = np.frombuffer(report["hidden"], np.uint16).reshape(-1, hidden_size)
        trace.hidden_SH = torch.from_numpy(bits.copy()).view(dtype)
    return trace


def _answer(
    order: TracePlan, text: str, reason: str, tokenizer: Any, rule: BoundaryRule
) -> str | None:
    """Return a response's answer; None for one that was stopped, or cut off while it thought."""
    if reason in STOPPED:
        return None
    if reason != "stop" and rule.think_end is not None:
        prompt_end = tokenizer.decode(list(order.prompt_token_ids[-_PROMPT_END:]))
        if is_unfinished(prompt_end, text, rule.think_end):
            return None
    return order.extract(text, rule.think_end)


def question_plans(
    tokenizer: Any,
    max_model_len: int,
    question_id: str,
    question: str,
    n: int,
    sampling: Sampling | None,
    seed: int | None,
    system: str,
    first_trace_id: int,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> list[TracePlan]:
    """Return the orders for the traces of one question, as `StepLLM.plan` says.

    Args:
        tokenizer: the model's.
        max_model_len: its context, in tokens.
        question_id: names the question.
        question: what to ask.
        n: traces.
        sampling: how they are sampled.
        seed: each trace's own seed follows from this one; None takes the engine's.
        system: system text of the prompt; an empty text leaves it out.
        first_trace_id: number of the first trace.
        chat_template_kwargs: more arguments of the model's chat template.

    Raises:
        InputError: as `StepLLM.plan`.
    """
    if not isinstance(n, int) or n < 1:
        raise InputError(
            f"Expected at least 1 trace a question, found {n!r:.60}. "
            "Hint: give n as an int, such as n=64."
        )
    if not isinstance(question, str):
        raise InputError(
            f"Expected a text as question {question_id}, found {question!r:.60}. "
            "Hint: give each question as a str."
        )
    if not isinstance(system, str):
        raise InputError(
            f"Expected a text as system, found {system!r:.60}. Hint: an empty text leaves it out."
        )
    if sampling is not None and not isinstance(sampling, Sampling):
        raise InputError(f"Expected a Sampling, found {sampling!r:.60}. Hint: Sampling(top_p=0.9).")
    prompt = tuple(chat_prompt(tokenizer, question, system, chat_template_kwargs))
    if len(prompt) >= max_model_len:
        raise InputError(
            f"Expected a prompt shorter than the context ({max_model_len} tokens), "
            f"found {len(prompt)} tokens for question {question_id}. "
            "Hint: shorten the question or the system prompt, or raise max_model_len."
        )
    return [
        TracePlan(
            question_id,
            trace_id,
            prompt,
            None if seed is None else trace_seed(seed, question_id, trace_id),
            sampling or Sampling(),
            question_id,
        )
        for trace_id in range(first_trace_id, first_trace_id + n)
    ]
