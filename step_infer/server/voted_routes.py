"""The voted model in vLLM's OpenAI server: an endpoint plug-in.

vLLM loads it by the entry point `vllm.endpoint_plugins` where `VLLM_PLUGINS` names it; without
`STEP_VOTED` in the environment it changes nothing. It stands before some of vLLM's own routes, and
passes on untouched whatever does not name the voted model.
"""

import asyncio
import copy
import functools
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.routing import APIRoute

from step_infer.client.engine import takes_seeds
from step_infer.errors import InputError, logged_errors
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.card import ScorerCard, read_card
from step_infer.server import voted_metrics
from step_infer.server.page.routes import Page
from step_infer.server.voted_answer import (
    DONE,
    chunks,
    comment,
    event,
    progress_chunk,
    voted_body,
)
from step_infer.server.voted_call import VotedCall, VotedModel
from step_infer.server.voted_grading import VotedGrading
from step_infer.server.voted_settings import (
    REASONING,
    VARIABLE,
    VotedOptions,
    VotedSettings,
    refuse_what_no_vote_can_do,
)
from step_infer.settings import StepSettings
from step_infer.wire import CONFIG_KEY

logger = logging.getLogger(__name__)

_CHAT, _TEXT, _RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
_LOOK_S = 1.0
"""Between two looks at the progress of a stream's vote."""
_SILENT_S = 8.0
"""The longest time without an event; proxies close lines that are silent for longer."""
_Endpoint = Callable[..., Awaitable[Any]]


class VotedRoutes:
    """What vLLM makes, attaches and starts (its `EndpointPlugin`)."""

    name = "step"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._settings: VotedSettings | None = None
        self._model: VotedModel | None = None
        self._page: Page | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Stand before vLLM's routes, where a voted model is set."""
        text = os.environ.get(VARIABLE)
        if text is None:
            return
        with logged_errors(logger):
            self._settings = VotedSettings.from_text(text)
        _stand_before(app, "/v1/models", "GET", self._list)
        _stand_before(app, _CHAT, "POST", self._chat)
        _stand_before(app, _TEXT, "POST", self._text)
        _stand_before(app, _RESPONSES, "POST", self._responses)
        if self._settings.page:
            self._page = Page(app)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Prepare what the voted calls of a server share."""
        if self._settings is None:
            return
        with logged_errors(logger):
            if state.openai_serving_models.is_base_model(self._settings.name):
                raise InputError(
                    f"Expected another name for the voted model than a served one, found "
                    f"{self._settings.name!r:.60}. Hint: --voted-model-name NAME-voted."
                )
            self._model = _voted_model(self._settings, engine_client)
        voted_metrics.show(self._settings.name)
        if self._page is not None:
            self._page.describe(
                voted=self._settings.name,
                model=state.openai_serving_models.base_model_paths[0].name,
                scored=self._model.scored,
                servers=getattr(args, "api_server_count", None) or 1,
            )

    async def _list(self, theirs: _Endpoint, raw_request: Request) -> Response:
        """List the voted model beside the others."""
        response = await theirs(raw_request=raw_request)
        body = json.loads(response.body)
        first = body["data"][0]
        body["data"].append({**first, "id": self._name, "parent": first["id"]})
        return JSONResponse(body)

    async def _chat(self, theirs: _Endpoint, request: Any, raw_request: Request) -> Any:
        handler = raw_request.app.state.openai_serving_chat
        if request.model != self._name or handler is None:
            return await theirs(request=request, raw_request=raw_request)
        return await self._answer(request, raw_request, handler)

    async def _text(self, theirs: _Endpoint, request: Any, raw_request: Request) -> Any:
        handler = raw_request.app.state.openai_serving_completion
        if request.model != self._name or handler is None:
            return await theirs(request=request, raw_request=raw_request)
        return await self._answer(request, raw_request, handler)

    async def _responses(self, theirs: _Endpoint, request: Any, raw_request: Request) -> Any:
        if request.model != self._name:
            return await theirs(request=request, raw_request=raw_request)
        raise InputError(
            f"Expected a chat or text completion for the voted model, found {_RESPONSES}. "
            f"Hint: POST to {_CHAT}."
        )

    @property
    def _name(self) -> str:
        assert self._settings is not None
        return self._settings.name

    async def _answer(self, request: Any, raw_request: Request, handler: Any) -> Response:
        """Answer a request for the voted model.

        Raises:
            InputError: the request cannot be voted on, or asks for more than it may.
        """
        assert self._model is not None
        refuse_what_no_vote_can_do(request)
        extra = request.model_extra or {}
        options = VotedOptions.of(extra.get(CONFIG_KEY), self._model.settings)
        if request.stream and options.progress == REASONING and not hasattr(request, "messages"):
            raise InputError(
                "Expected progress as comments in the stream of a text completion, which has no "
                "reasoning, found 'reasoning'. Hint: leave it out, or ask for a chat completion."
            )
        call = VotedCall(self._model, options)
        voted = _as_voted(handler, call, self._name)
        serve = getattr(voted, "create_chat_completion", None) or voted.create_completion
        whole = request.model_copy(update={"stream": False, "stream_options": None})
        # A task of its own: whatever cancels the request's scope cancels this once, and it can
        # take its time to end its traces.
        answer = asyncio.create_task(serve(whole, raw_request))
        if self._page is not None:
            self._page.board.begin(call, options)
        answer.add_done_callback(functools.partial(self._end, call))
        streams = False
        try:
            if request.stream:
                await _first(answer, asyncio.create_task(call.begun.wait()))
                if not answer.done():
                    shown = getattr(handler, "enable_force_include_usage", False) or (
                        request.stream_options is not None and request.stream_options.include_usage
                    )
                    events = _events(call, answer, handler, options.progress, self._name, shown)
                    streams = True
                    return _Stream(events, answer)
            else:
                await _first(answer, asyncio.create_task(_gone(raw_request)))
                if not answer.done():
                    return Response(status_code=499)  # nobody is there to read it
            body = (await answer).model_dump()
        finally:
            if not streams:
                answer.cancel()
        if call.outcome is None:
            return JSONResponse(body, body["error"]["code"])
        return JSONResponse(voted_body(body, call.outcome))

    def _end(self, call: VotedCall, answer: "asyncio.Task[Any]") -> None:
        """Note how a call has ended."""
        ended = None
        if call.outcome is not None:
            ended = call.outcome.ended
            voted_metrics.count(self._name, call.outcome)
        elif call.begun.is_set():
            cut = answer.cancelled() or answer.cancelling() > 0
            ended = voted_metrics.CUT_OFF if cut else voted_metrics.FAILED
            voted_metrics.count_without_outcome(self._name, ended)
        if self._page is not None:
            self._page.board.end(call, ended)
        if not answer.cancelled():
            answer.exception()  # it has been looked at


class _Stream(StreamingResponse):
    """A stream that ends its call, however it ends itself."""

    def __init__(self, events: AsyncIterator[str], answer: "asyncio.Task[Any]") -> None:
        super().__init__(events, media_type="text/event-stream")
        self._answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


async def _events(
    call: VotedCall,
    answer: "asyncio.Task[Any]",
    handler: Any,
    progress: str,
    model: str,
    usage: bool,
) -> AsyncIterator[str]:
    """Yield the events of a stream: progress while the vote goes on, then the answer."""
    told, told_s = "", 0.0
    while not answer.done():
        text, now_s = call.progress(), time.monotonic()
        if text != told or now_s - told_s >= _SILENT_S:
            told, told_s = text, now_s
            if progress == REASONING:
                assert call.request_id is not None
                yield event(progress_chunk(text, call.request_id, model))
            else:
                yield comment(text)
        await asyncio.wait({answer}, timeout=_LOOK_S)
    try:
        body = answer.result().model_dump()
    except Exception as error:
        yield f"data: {handler.create_streaming_error_response(error)}\n\n"
    else:
        if call.outcome is None:
            yield event(body)
        else:
            for chunk in chunks(voted_body(body, call.outcome), usage):
                yield event(chunk)
    yield DONE


async def _first(answer: "asyncio.Task[Any]", other: "asyncio.Task[Any]") -> None:
    """Wait for the first of two tasks, and end the second one."""
    try:
        await asyncio.wait({answer, other}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        other.cancel()


async def _gone(raw_request: Request) -> None:
    """Wait until the client has gone; its request has been read."""
    while (await raw_request.receive())["type"] != "http.disconnect":
        pass


def _voted_model(settings: VotedSettings, engine: Any) -> VotedModel:
    config, tokenizer = engine.vllm_config, engine.get_tokenizer()
    adapter = config.additional_config
    step, card = None, None
    if adapter and adapter.get(CONFIG_KEY) is not None:
        step = StepSettings.from_additional_config(adapter)
        card = None if step.scorer is None else read_card(step.scorer)
    parallel = config.parallel_config
    local = parallel.local_engines_only
    return VotedModel(
        settings,
        engine,
        tokenizer,
        _rule(step, card, tokenizer),
        VotedGrading(settings.answers),
        step is not None,
        card,
        None if step is None else step.aggregator,
        takes_seeds({"enable_chunked_prefill": config.scheduler_config.enable_chunked_prefill}),
        bool(config.cache_config.enable_prefix_caching),
        config.model_config.max_model_len,
        parallel.data_parallel_size_local if local else parallel.data_parallel_size,
    )


def _rule(step: StepSettings | None, card: ScorerCard | None, tokenizer: Any) -> BoundaryRule:
    if card is not None:
        return card.boundary_rule
    if step is not None and step.boundary is not None:
        return BoundaryRule.from_dict(step.boundary)
    return BoundaryRule.for_tokenizer(tokenizer)


def _as_voted(handler: Any, call: VotedCall, name: str) -> Any:
    """Return vLLM's serving object as one of the voted model, whose engine is a voted call."""
    voted, theirs = copy.copy(handler), handler.models
    path = type(theirs.base_model_paths[0])(name=name, model_path=handler.model_config.model)
    voted.models = type(theirs)(engine_client=handler.engine_client, base_model_paths=[path])
    voted.engine_client = call
    return voted


def _stand_before(app: FastAPI, path: str, method: str, answer: Callable[..., Any]) -> None:
    """Put a route in the place of one of vLLM's, which it may ask.

    Newer versions replace a route of the same path by themselves; in older ones the first wins.
    """
    routes = app.router.routes
    place, route = next(
        (place, route)
        for place, route in enumerate(routes)
        if isinstance(route, APIRoute) and route.path == path and method in route.methods
    )

    @functools.wraps(route.endpoint)  # with its signature, by which FastAPI reads the request
    async def endpoint(**values: Any) -> Any:
        return await answer(route.endpoint, **values)

    app.router.add_api_route(
        path,
        endpoint,
        methods=[method],
        dependencies=route.dependencies,
        responses=route.responses,
        name=route.name,
    )
    routes[place] = routes.pop()
