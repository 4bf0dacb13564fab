"""A voted server without a model: its engine's traces say what a script tells them to."""

import asyncio
import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import fastapi
import pytest
import uvicorn
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput

from step_infer.scorer.boundary import BoundaryRule
from step_infer.server.voted_routes import VotedRoutes
from step_infer.server.voted_settings import VARIABLE, VotedSettings

END = 0
"""The token that ends a turn."""
Part = tuple[str, float | None, str | None]
"""What comes of a trace at once: text, a new score, and why it ends, where it does, as in
`CompletionOutput.finish_reason`, or "pruned"."""
Script = Callable[[int], AsyncIterator[Part]]
"""The parts of a trace, by its number."""


class OnAndOn:
    """Traces that go on until a test has seen enough; so the test need not be quick."""

    def __init__(self, pause_s: float = 0.01) -> None:
        self._pause_s = pause_s
        self._enough = threading.Event()

    def end(self) -> None:
        self._enough.set()

    async def __call__(self, number: int) -> AsyncIterator[Part]:
        while not self._enough.is_set():
            yield "on and on", None, None
            await asyncio.sleep(self._pause_s)
        yield "", None, "stop"


class Characters:
    """A tokenizer whose tokens are characters."""

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return "".join(map(chr, token_ids))


class ScriptedEngine:
    """What of vLLM's `AsyncLLM` voted calls use."""

    errored = False
    dead_error = RuntimeError("the engine is dead")

    def __init__(self, script: Script) -> None:
        self._script = script
        self._aborted: dict[str, asyncio.Event] = {}
        rule = BoundaryRule("stride", frozenset(), None, stride=1000, think_end=None)
        self.vllm_config = SimpleNamespace(
            additional_config={"step": {"boundary": rule.to_dict()}},
            parallel_config=SimpleNamespace(local_engines_only=False, data_parallel_size=1),
            scheduler_config=SimpleNamespace(enable_chunked_prefill=False),
            cache_config=SimpleNamespace(enable_prefix_caching=True),
            model_config=SimpleNamespace(max_model_len=100),
        )
        self.output_processor = self
        self.engine_core = self

    def get_tokenizer(self) -> Characters:
        return Characters()

    async def generate(self, prompt: Any, params: Any, name: str, **_: Any) -> AsyncIterator[Any]:
        gone = self._aborted.setdefault(name, asyncio.Event())

        def output(text: str, score: float | None, end: str | None) -> RequestOutput:
            reason, why = ("abort", end) if end == "pruned" else (end, None)
            tokens = [*map(ord, text), *[END] * (end == "stop")]
            made = CompletionOutput(0, text, tokens, None, None)
            made.finish_reason, made.stop_reason = reason, why
            report = {"step": {"score": score}} if score is not None else None
            return RequestOutput(
                name, "", [1], None, [made], end is not None, kv_transfer_params=report
            )

        parts = self._script(int(name.rpartition("-")[2]))
        async for text, score, end in _until(parts, gone):
            yield output(text, score, end)
            if end is not None:
                return
        yield output("", None, "abort")

    async def abort(self, names: list[str]) -> None:
        self.abort_requests(names, internal=False)

    def abort_requests(self, names: list[str], internal: bool) -> list[str]:
        for name in names:
            self._aborted[name].set()
        return names

    async def abort_requests_async(self, names: Any) -> None:
        """Do nothing: the traces end by `abort_requests`."""


class ScriptedServing:
    """What of vLLM's serving object for text completions the voted model uses."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine_client = engine
        self.models = SimpleModels(engine, [SimplePath(name="plain", model_path="plain")])
        self.model_config = SimpleNamespace(model="plain")
        self._numbers = itertools.count()

    async def create_completion(self, request: Any, raw_request: Request) -> Any:
        name = raw_request.headers.get("x-request-id", f"cmpl-{next(self._numbers)}")
        async for output in self.engine_client.generate("", SamplingParams(), name):
            (made,) = output.outputs
        choice = {"index": 0, "text": made.text, "finish_reason": made.finish_reason}
        choice["stop_reason"] = made.stop_reason
        body = {"id": name, "created": 0, "model": request.model, "choices": [choice]}
        return SimpleNamespace(model_dump=lambda: body)

    def create_streaming_error_response(self, error: Exception) -> str:
        return json.dumps({"error": {"message": str(error)}})


class SimplePath(SimpleNamespace):
    """A served name."""


class SimpleModels:
    """The served names."""

    def __init__(self, engine_client: Any, base_model_paths: list[SimplePath]) -> None:
        self.base_model_paths = base_model_paths

    def is_base_model(self, name: str) -> bool:
        return name in [path.name for path in self.base_model_paths]


class Body(BaseModel):
    """A request as vLLM's are."""

    model_config = ConfigDict(extra="allow")
    model: str
    prompt: str = ""
    stream: bool = False
    stream_options: Any = None


@contextlib.contextmanager
def scripted_server(script: Script, settings: VotedSettings, port: int = 0) -> Iterator[str]:
    """Serve a voted model; yields the URL. It must end although somebody still reads from it."""
    app = fastapi.FastAPI()
    engine = ScriptedEngine(script)
    app.state.openai_serving_chat = None
    app.state.openai_serving_completion = ScriptedServing(engine)
    app.state.openai_serving_models = app.state.openai_serving_completion.models

    async def plain(request: Body, raw_request: Request) -> dict[str, Any]:
        return {}

    for path in ("chat/completions", "completions", "responses"):
        app.add_api_route(f"/v1/{path}", plain, methods=["POST"])
    app.add_api_route("/v1/models", plain)
    app.add_exception_handler(ValueError, _bad_request)
    routes = VotedRoutes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, settings.to_text())
        routes.attach_router(app)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    app.state.server = server  # as vLLM does

    async def run() -> None:
        await routes.init_state(engine, app.state, SimpleNamespace())
        await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended at its start"
        time.sleep(0.01)
    (listening,) = server.servers[0].sockets
    # Connections inherit it: little is on its way to a reader that does not read.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    engine.errored = True  # vLLM's server ends its engine first
    server.should_exit = True
    thread.join(120)
    assert not thread.is_alive(), "the server waits for a reader"


async def _bad_request(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": {"message": str(error)}}, 400)  # as vLLM does


async def _until(parts: AsyncIterator[Part], gone: asyncio.Event) -> AsyncIterator[Part]:
    """Yield parts until a trace is aborted."""
    end = asyncio.ensure_future(gone.wait())
    try:
        while True:
            part = asyncio.ensure_future(anext(parts))
            await asyncio.wait({part, end}, return_when=asyncio.FIRST_COMPLETED)
            if not part.done():
                part.cancel()
                return
            yield part.result()
    finally:
        end.cancel()
