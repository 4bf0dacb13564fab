"""Tells the engine who sent a request: an ASGI middleware of vLLM's OpenAI server.

    vllm serve MODEL … --middleware step_infer.server.callers.CallerMiddleware

The engine sees no headers. So a hash of the request's API key is put into its `vllm_xargs`, over
whatever the client wrote there, and the scheduler keeps the groups of different keys apart. The
hash of another's key can only be made by who knows that key. It is not put into `cache_salt`: all
callers go on to share the prefix cache.

Of requests without a key, all are one caller's. Only bodies that name extra arguments are changed,
and none is read before vLLM asks for it, which is after it has checked the key. A body in which the
extra arguments stand elsewhere (a form, escaped names) gets no mark; with the setting
`private_groups` its group is refused.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from step_infer.wire import CALLER_KEY

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MIDDLEWARE = "step_infer.server.callers.CallerMiddleware"
"""What `--middleware` of vLLM's server takes."""
_PLACES = (("vllm_xargs",), ("sampling_params", "extra_args"))
"""Where the routes of OpenAI and Anthropic, and vLLM's own, take extra arguments."""
_NAMES = tuple(names[-1].encode() for names in _PLACES)


class CallerMiddleware:
    """Marks the requests of a server with their callers."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on; a JSON body reaches the server with the caller in it."""
        headers = scope.get("headers", ())
        if scope["type"] == "http" and b"json" in _header(headers, b"content-type").lower():
            caller = caller_of(_header(headers, b"authorization"))
            # A mark makes the body longer: it goes on without its length, as one in chunks does.
            kept = [header for header in headers if header[0].lower() != b"content-length"]
            scope, receive = {**scope, "headers": kept}, _marked(receive, caller)
        await self._app(scope, receive, send)


def caller_of(authorization: bytes) -> str:
    """Return the mark of who sends an `Authorization` header; an empty one is a caller's, too."""
    scheme, _, key = authorization.partition(b" ")
    secret = key if scheme.lower() == b"bearer" else authorization
    return hashlib.sha256(b"step caller\0" + secret).hexdigest()


def marked_body(body: bytes, caller: str) -> bytes:
    """Return a request's JSON body with the caller among its extra arguments, where it has any."""
    if not any(name in body for name in _NAMES):
        return body
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        return body  # the server says what is wrong with it
    marked = False
    for names in _PLACES:
        place = values
        for name in names:
            place = place.get(name) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[CALLER_KEY] = caller
            marked = True
    return json.dumps(values).encode() if marked else body


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    """Return a header's first value, the one that vLLM looks at; empty without one."""
    return next((value for key, value in headers if key.lower() == name), b"")


def _marked(receive: Receive, caller: str) -> Receive:
    """Return what gives the whole body at once, marked, and then all that comes after it."""
    before = True

    async def marked() -> Message:
        nonlocal before
        message = await receive()
        if not before:
            return message
        before = False
        parts = []
        while message["type"] == "http.request":
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return {**message, "body": marked_body(b"".join(parts), caller)}
            message = await receive()
        return message  # the client has gone before its body was whole

    return marked
