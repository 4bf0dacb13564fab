"""Two callers of one server, with an API key each, who name the same group."""

import json
from collections import Counter
from functools import partial
from typing import Any

from server_harness import QUESTION, Server

from step_infer.server.callers import caller_of

KEYS = ("mine", "yours")
KV_BLOCKS = 97
"""One is vLLM's own: 3,072 tokens, less than three long traces; a request alone always fits."""


def responses(caller: Server, step: str, **options):
    defaults = {"max_output_tokens": 40, "extra_body": {"vllm_xargs": {"step": step}}}
    return caller.client.responses.create(model="demo", input=QUESTION, **defaults | options)


def groups_of_every_route(server: Server) -> Counter[str]:
    """Return how many traces each group got of two callers who name the same one on every route."""
    group = "q1"
    step = json.dumps({"group": group})
    forged = {"step": step, "step_caller": caller_of(b"Bearer mine")}
    for key in KEYS:
        caller = server.caller(key)
        for stream in (False, True):
            for kind in (caller.chat, caller.completion):
                answer = kind(step, max_tokens=40, stream=stream)
                list(answer) if stream else None
            answer = responses(caller, step, stream=stream)
            list(answer) if stream else None
        caller.chat(None, max_tokens=40, extra_body={"vllm_xargs": forged})
    names = [event["group"] or "" for event in server.caller(KEYS[0]).settled_events()]
    return Counter(name for name in names if name.partition("\0")[0] == group)


def pruned_beside_a_caller_who_keeps_all(server: Server) -> tuple[int, bool]:
    """Return how many traces of one caller are stopped, and whether the other's is.

    The other has one trace in a group of the same name, of which it wants to keep all. It ends
    last, and only while it runs is there too little memory for all three.
    """
    mine, yours = server.caller("mine"), server.caller("yours")

    def ask(caller: Server, group: dict[str, Any], **options: Any) -> Any:
        extra = {"ignore_eos": True, "vllm_xargs": {"step": json.dumps(group)}}
        return caller.chat(None, extra_body=extra, **options)

    answers = server.answers_at_once(
        partial(ask, yours, {"group": "q2", "min_keep": 100}, max_tokens=1450),
        *(partial(ask, mine, {"group": "q2"}, max_tokens=1000, seed=seed) for seed in (1, 2)),
    )
    other, *traces = [answer.kv_transfer_params["step"]["pruned"] for answer in answers]
    return sum(traces), other
