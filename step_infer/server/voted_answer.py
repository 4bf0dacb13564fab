"""A voted call's answer as it goes over HTTP: one chat or text completion, whole or in chunks.

Pure: from what vLLM's serving code made of the best trace, and from what came of the vote.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from step_infer.server.voted_call import Outcome
from step_infer.wire import CONFIG_KEY, DECIDED, OVER_BUDGET, PRUNED

_PIECE = 64
"""Characters of one delta."""
DONE = "data: [DONE]\n\n"


def step_object(outcome: Outcome) -> dict[str, Any]:
    """Return what the body tells of the vote, under `step`."""
    total = sum(weight for _, weight, _ in outcome.vote.groups)
    reasons = Counter(trace.finish_reason for trace in outcome.traces)
    others = {name: reasons[name] for name in (PRUNED, DECIDED, OVER_BUDGET)}
    return {
        "answer": outcome.vote.answer,
        "kind": outcome.kind,
        "chosen_by": outcome.chosen_by,
        "share": outcome.vote.share,
        "answers": [
            {
                "answer": form,
                "weight": weight,
                "share": weight / total if total > 0 else 0.0,
                "traces": len(voters),
            }
            for form, weight, voters in outcome.vote.groups
        ],
        "traces": {
            "all": len(outcome.traces),
            "finished": len(outcome.traces) - sum(others.values()),
            **others,
        },
        "uncompared": outcome.uncompared,
        "branched": None if outcome.shared_vote is None else _branched(outcome),
        "trace": outcome.best.trace_id,
        "parent": outcome.best.parent,
        "score": outcome.best.trace_score,
        "ended": outcome.ended,
        "why": outcome.why,
        "seconds": round(outcome.seconds, 3),
    }


def _branched(outcome: Outcome) -> dict[str, Any]:
    """Return what the body tells of a call's children."""
    children, shared = outcome.children, outcome.shared_vote
    assert shared is not None
    begun = [trace for trace in children if trace.cached_tokens is not None]
    return {
        "traces": len(children),
        "inherited_tokens": sum(trace.inherited for trace in children),
        "prefix_tokens": sum(outcome.prompt_tokens + trace.inherited for trace in begun),
        "cached_tokens": sum(trace.cached_tokens or 0 for trace in begun),
        "shared_answer": shared.answer,
        "shared_share": shared.share,
    }


def voted_body(body: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """Return the body of the best trace's response as that of the vote.

    Args:
        body: as vLLM's serving code makes it; it is changed.
        outcome: what came of the vote.
    """
    body["usage"] = {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": outcome.cached_tokens},
    }
    body[CONFIG_KEY] = step_object(outcome)
    for choice in body["choices"]:
        message = choice.get("message")
        if message is not None and message.get("reasoning") is not None:
            # vLLM's name for it, and the one that most clients look for.
            message["reasoning_content"] = message["reasoning"]
    return body


def chunks(body: dict[str, Any], usage: bool) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a stream of a whole response.

    Args:
        body: the response.
        usage: whether the last chunk tells of the usage, as clients may ask.
    """
    (choice,) = body["choices"]
    base = {name: body[name] for name in ("id", "created", "model")}
    chat = "message" in choice
    base["object"] = "chat.completion.chunk" if chat else "text_completion"
    if usage:
        base["usage"] = None

    def chunk(part: dict[str, Any], **ending: Any) -> dict[str, Any]:
        own = {"index": 0, "finish_reason": None, **({"delta": part} if chat else part), **ending}
        return {**base, "choices": [own]}

    if chat:
        message = choice["message"]
        yield chunk({"role": message["role"], "content": ""})
        for piece in _pieces(message.get("reasoning")):
            yield chunk({"reasoning": piece, "reasoning_content": piece})
        for piece in _pieces(message["content"]):
            yield chunk({"content": piece})
    else:
        for piece in _pieces(choice["text"]):
            yield chunk({"text": piece})
    ending = {name: choice[name] for name in ("finish_reason", "stop_reason")}
    yield {**chunk({} if chat else {"text": ""}, **ending), CONFIG_KEY: body[CONFIG_KEY]}
    if usage:
        yield {**base, "choices": [], "usage": body["usage"]}


def progress_chunk(text: str, request_id: str, model: str) -> dict[str, Any]:
    """Return a chunk that tells of a chat's progress as the model's reasoning."""
    line = f"{text}\n"
    delta = {"role": "assistant", "reasoning": line, "reasoning_content": line}
    return {
        "id": request_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
    }


def event(values: dict[str, Any]) -> str:
    """Return a chunk as a server-sent event."""
    return f"data: {json.dumps(values)}\n\n"


def comment(text: str) -> str:
    """Return a line that clients of server-sent events pass over."""
    return f": {text}\n\n"


def _pieces(text: str | None) -> Iterator[str]:
    text = text or ""
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]
