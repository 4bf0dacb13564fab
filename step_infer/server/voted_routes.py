"""The voted model in vLLM's OpenAI server: an endpoint plug-in.

vLLM loads it by the entry point `vllm.endpoint_plugins` where `VLLM_PLUGINS` names it; without
`STEP_VOTED` in the environment it changes nothing. It stands before three of vLLM's own routes, and
passes on untouched whatever does not name the voted model.
"""

import asyncio
import copy
import functools
import os
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from step_infer.client.engine import takes_seeds
from step_infer.client.grading import Grader
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.card import read_card
from step_infer.server.voted_answer import voted_body
from step_infer.server.voted_call import VotedCall, VotedModel
from step_infer.server.voted_settings import VARIABLE, VotedOptions, VotedSettings
from step_infer.settings import StepSettings
from step_infer.wire import CONFIG_KEY

_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
_STATE = "step_voted"
_Endpoint = Callable[..., Awaitable[Any]]


class VotedRoutes:
    """What vLLM makes, attaches and starts (its `EndpointPlugin`)."""

    name = "step"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Stand before vLLM's routes, where a voted model is set."""
        text = os.environ.get(VARIABLE)
        if not text:
            return
        settings = VotedSettings.from_text(text)
        setattr(app.state, _STATE, settings)
        _stand_before(app, _CHAT, "POST", functools.partial(_completions, _chat))
        _stand_before(app, _TEXT, "POST", functools.partial(_completions, _text))
        _stand_before(app, "/v1/models", "GET", _models)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Prepare what the voted calls of a server share."""
        settings = getattr(state, _STATE, None)
        if settings is not None:
            state.step_voted_model = _model(settings, engine_client)


def _model(settings: VotedSettings, engine: Any) -> VotedModel:
    config = engine.vllm_config
    tokenizer = engine.get_tokenizer()
    adapter = config.additional_config
    card, aggregator, rule = None, None, None
    scored = bool(adapter) and adapter.get(CONFIG_KEY) is not None
    if scored:
        step = StepSettings.from_additional_config(adapter)
        aggregator = step.aggregator
        if step.scorer is not None:
            card = read_card(step.scorer)
            rule = card.boundary_rule
        else:
            rule = BoundaryRule.from_dict(step.boundary)
    chunked = {"enable_chunked_prefill": config.scheduler_config.enable_chunked_prefill}
    grader = Grader()
    return VotedModel(
        settings,
        engine,
        tokenizer,
        rule or BoundaryRule.for_tokenizer(tokenizer),
        grader,
        scored,
        card,
        aggregator,
        takes_seeds(chunked),
    )


def _stand_before(app: FastAPI, path: str, method: str, answer: Callable[..., Any]) -> None:
    """Put a route in the place of one of vLLM's, which it may ask.

    Newer versions replace a route of the same path by themselves; older ones let the first win.
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


async def _models(theirs: _Endpoint, raw_request: Request) -> Response:
    """List the voted model beside the others."""
    import json

    response = await theirs(raw_request=raw_request)
    body = json.loads(response.body)
    settings = getattr(raw_request.app.state, _STATE)
    voted = {**body["data"][0], "id": settings.name, "parent": body["data"][0]["id"]}
    body["data"].append(voted)
    return JSONResponse(body)


async def _completions(
    serve: Callable[..., Any], theirs: _Endpoint, request: Any, raw_request: Request
) -> Any:
    settings = getattr(raw_request.app.state, _STATE)
    if request.model != settings.name:
        return await theirs(request=request, raw_request=raw_request)
    model: VotedModel = raw_request.app.state.step_voted_model
    options = VotedOptions.of((request.model_extra or {}).get(CONFIG_KEY), settings)
    call = VotedCall(model, options)
    whole = request.model_copy(update={"stream": False, "stream_options": None})
    response = await serve(call, whole, raw_request)
    body = response.model_dump()
    if call.outcome is None:
        return JSONResponse(body, body["error"]["code"])
    return JSONResponse(voted_body(body, call.outcome))


def _handler(call: VotedCall, handler: Any, name: str) -> Any:
    """Return vLLM's serving object as one whose engine is a voted call."""
    voted = copy.copy(handler)
    path = type(handler.models.base_model_paths[0])
    models = type(handler.models)(
        engine_client=handler.engine_client,
        base_model_paths=[path(name=name, model_path=handler.model_config.model)],
    )
    voted.models, voted.engine_client = models, call
    return voted


async def _chat(call: VotedCall, request: Any, raw_request: Request) -> Any:
    handler = raw_request.app.state.openai_serving_chat
    voted = _handler(call, handler, request.model)
    return await voted.create_chat_completion(request, raw_request)


async def _text(call: VotedCall, request: Any, raw_request: Request) -> Any:
    handler = raw_request.app.state.openai_serving_completion
    voted = _handler(call, handler, request.model)
    return await voted.create_completion(request, raw_request)
