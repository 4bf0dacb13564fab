"""Where the voted model stands among a server's routes, without an engine."""

import asyncio
from types import SimpleNamespace

import pytest
from refusals import refusal

fastapi = pytest.importorskip("fastapi")
pytest.importorskip("vllm")
from fastapi.testclient import TestClient  # noqa: E402
from pydantic import BaseModel, ConfigDict  # noqa: E402
from starlette.requests import Request  # noqa: E402

from step_infer.server.voted_routes import VotedRoutes  # noqa: E402
from step_infer.server.voted_settings import VARIABLE  # noqa: E402


class Body(BaseModel):
    """A request as vLLM's are: a model, and whatever else."""

    model_config = ConfigDict(extra="allow")
    model: str


def server_of_another() -> fastapi.FastAPI:
    """Return a server whose routes say what they got."""
    app = fastapi.FastAPI()
    app.state.openai_serving_chat = app.state.openai_serving_completion = None

    async def echo(request: Body, raw_request: Request) -> dict:
        return {"path": raw_request.url.path, **request.model_dump()}

    for path in ("chat/completions", "completions", "responses"):
        app.add_api_route(f"/v1/{path}", echo, methods=["POST"])

    @app.get("/v1/models")
    async def models(raw_request: Request) -> fastapi.responses.JSONResponse:
        return fastapi.responses.JSONResponse({"data": [{"id": "plain", "max_model_len": 9}]})

    return app


@pytest.fixture
def app(monkeypatch):
    monkeypatch.setenv(VARIABLE, '{"name": "voted"}')
    app = server_of_another()
    VotedRoutes().attach_router(app)
    return app


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_what_names_another_model_passes_untouched(app, path):
    body = {"model": "plain", "step": {"traces": 0}, "n": 3}
    answer = TestClient(app).post(f"/v1/{path}", json=body)
    assert answer.json() == {"path": f"/v1/{path}", **body}


def test_each_route_stands_once_and_in_the_place_of_the_other(app):
    paths = [route.path for route in server_of_another().routes]
    assert [route.path for route in app.routes] == paths


def test_the_voted_model_is_listed_last(app):
    models = TestClient(app).get("/v1/models").json()["data"]
    assert models == [
        {"id": "plain", "max_model_len": 9},
        {"id": "voted", "max_model_len": 9, "parent": "plain"},
    ]


def test_without_settings_nothing_changes(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    app = server_of_another()
    before = list(app.routes)
    VotedRoutes().attach_router(app)
    assert app.routes == before


def test_responses_are_refused(app):
    assert refusal(lambda: TestClient(app).post("/v1/responses", json={"model": "voted"})) == (
        "Expected a chat or text completion for the voted model, found /v1/responses. "
        "Hint: POST to /v1/chat/completions."
    )


def test_a_name_that_is_served_already_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, '{"name": "plain"}')
    routes = VotedRoutes()
    routes.attach_router(server_of_another())
    served = SimpleNamespace(is_base_model=["plain"].__contains__)
    state = SimpleNamespace(openai_serving_models=served)
    assert refusal(lambda: asyncio.run(routes.init_state(None, state, None))) == (
        "Expected another name for the voted model than a served one, found 'plain'. "
        "Hint: --voted-model-name NAME-voted."
    )
