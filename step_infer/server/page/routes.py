"""The page's routes: its files at /step, and at /v1/step/trace-events what it shows.

The page itself holds no data; only its events do, which stand under /v1 and so ask for an API key
where the server does.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import REGISTRY

from step_infer.server.page.board import LOOK_S, Board

PATH, EVENTS = "/step", "/v1/step/trace-events"
MOST_READERS = 16
_SILENT_S = 8.0
"""The longest time without an event; proxies close lines that are silent for longer."""
_LOAD_S = 1.0
"""The load of the engine is read again after this long."""
_TYPES = {
    "page.html": "text/html; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_LOAD: dict[str, tuple[str, Callable[[list[float]], float]]] = {
    "vllm:num_requests_running": ("running", sum),
    "vllm:num_requests_waiting": ("waiting", sum),
    "vllm:kv_cache_usage_perc": ("kv_use", max),
}
"""Gauges of vLLM's own, and how those of several engines become one number."""


class Page:
    """The page of one server process."""

    def __init__(self, app: FastAPI) -> None:
        """Add the routes to a server."""
        self.board = Board()
        self._app = app
        self._readers = 0
        self._server: dict[str, Any] = {}
        self._load: dict[str, float] = {}
        self._loaded_s = float("-inf")
        for name, media_type in _TYPES.items():
            content = (files(__package__) / name).read_bytes()
            path = PATH if name == "page.html" else f"{PATH}/{name}"
            app.add_api_route(path, _file(content, media_type), include_in_schema=False)
        app.add_api_route(EVENTS, self._events, methods=["GET"])

    def describe(self, **values: Any) -> None:
        """Say what the page tells of the server itself: names, whether traces are scored."""
        self._server = values

    async def _events(self, raw_request: Request) -> Response:
        """Stream the voted calls as server-sent events: a snapshot, then what changes."""
        if "origin" in raw_request.headers:  # browsers leave it out within a site
            return _refused(
                403,
                f"Expected no Origin on {EVENTS}, found one: a page of another site. "
                f"Hint: open {PATH} on this server.",
            )
        if self._readers >= MOST_READERS:
            return _refused(
                503,
                f"Expected at most {MOST_READERS} readers of {EVENTS}, found one more. "
                "Hint: close a page that nobody looks at.",
            )
        return _Events(self)

    async def events(self) -> AsyncIterator[str]:
        """Yield events, the newest state only: a reader that is slow leaves some out."""
        told: dict[int, int] = {}
        told_rest: Any = None
        told_s = time.monotonic()
        kind = "snapshot"
        # An open stream would keep the server from its end.
        while not self._closing():
            cards = self.board.look()
            rest = {
                "server": {**self._server, **self._engine_load()},
                "order": [card.number for card in cards],
                "running": self.board.running,
            }
            texts = [card.text for card in cards if told.get(card.number) != card.version]
            now_s = time.monotonic()
            if texts or rest != told_rest:
                told, told_rest, told_s = {c.number: c.version for c in cards}, rest, now_s
                head = json.dumps({"now": round(time.time(), 3), **rest})[:-1]
                yield f'event: {kind}\ndata: {head}, "calls": [{", ".join(texts)}]}}\n\n'
                kind = "changes"
            elif now_s - told_s >= _SILENT_S:
                told_s = now_s
                yield ": nothing new\n\n"
            await asyncio.sleep(LOOK_S)

    def _closing(self) -> bool:
        """Return whether vLLM's server is about to end."""
        server = getattr(self._app.state, "server", None)
        return server is not None and bool(server.should_exit)

    def _engine_load(self) -> dict[str, float]:
        """Return the requests that run and wait, and the part of the KV cache in use."""
        now_s = time.monotonic()
        if now_s - self._loaded_s >= _LOAD_S:
            self._loaded_s = now_s
            found: dict[str, list[float]] = {}
            for metric in REGISTRY.restricted_registry(_LOAD).collect():
                for sample in metric.samples:
                    found.setdefault(sample.name, []).append(sample.value)
            self._load = {
                name: round(merge(found[series]), 3)
                for series, (name, merge) in _LOAD.items()
                if series in found
            }
        return self._load

    @contextmanager
    def reader(self) -> Iterator[None]:
        """Count a reader."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1


class _Events(StreamingResponse):
    """A stream that is counted as a reader, however it ends."""

    def __init__(self, page: Page) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(page.events(), media_type="text/event-stream", headers=headers)
        self._page = page

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with self._page.reader():
            await super().__call__(scope, receive, send)


def _file(content: bytes, media_type: str) -> Callable[[], Any]:
    async def answer() -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return answer


def _refused(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "code": status}}, status)
