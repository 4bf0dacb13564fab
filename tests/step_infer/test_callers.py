"""Who sent a request: what the server's middleware makes of headers and bodies."""

import json

import pytest

from step_infer.server.callers import CallerMiddleware, caller_of, marked_body

testclient = pytest.importorskip("starlette.testclient")
applications = pytest.importorskip("starlette.applications")
responses = pytest.importorskip("starlette.responses")
routing = pytest.importorskip("starlette.routing")

MINE, YOURS = caller_of(b"Bearer k1"), caller_of(b"Bearer k2")


async def echo(request):
    """Answer with the body, and say how long it was said to be."""
    body = await request.body()
    length = request.headers.get("content-length", "unknown")
    return responses.Response(body, headers={"x-length": length})


@pytest.fixture(scope="module")
def server():
    routes = [routing.Route("/{path:path}", echo, methods=["POST", "GET"])]
    app = applications.Starlette(routes=routes)
    app.add_middleware(CallerMiddleware)
    return testclient.TestClient(app)


def sent(server, body, key="k1", **headers):
    """Return what the server gets of a JSON body."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"} | headers
    return server.post("/v1/chat/completions", content=body, headers=headers)


def test_a_caller_is_a_key_not_the_way_it_is_sent():
    assert caller_of(b"bearer k1") == caller_of(b"BEARER k1") == MINE
    assert len({MINE, YOURS, caller_of(b""), caller_of(b"Basic k1")}) == 4
    assert "k1" not in MINE


@pytest.mark.parametrize("place", [["vllm_xargs"], ["sampling_params", "extra_args"]])
def test_the_caller_stands_beside_the_options_whatever_the_client_wrote(server, place):
    values = {"step": "g", "step_caller": YOURS, "other": [1, 2.5]}
    expected = {**values, "step_caller": MINE}
    for name in reversed(place):
        values, expected = {name: values}, {name: expected}
    values, expected = ({**v, "model": "é\ud800", "seed": 2**63} for v in (values, expected))
    answer = sent(server, json.dumps(values))
    assert answer.json() == expected
    assert answer.headers["x-length"] == "unknown"


def test_of_two_objects_of_one_name_the_one_that_counts_is_marked(server):
    body = '{"vllm_xargs": {"step": "a"}, "vllm_xargs": {"step": "g", "step_caller": "x"}}'
    assert sent(server, body).json() == {"vllm_xargs": {"step": "g", "step_caller": MINE}}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"messages":  [{"content": "vllm_xargs"}]}',
        b'{"vllm_xargs": null}',
        b'{"vllm_xargs": ["step"]}',
        b'{"vllm_xargs": "step"}',
        b'{"sampling_params": ["extra_args"]}',
        b'["vllm_xargs"]',
        b'{"vllm_xargs": {"step": "g"}',
        b'{"vllm_xargs": ' + b"[" * 100_000,
        b'{"vllm_xargs": {"seed": ' + b"9" * 10_000 + b"}}",
        b"vllm_xargs \xff",
    ],
)
def test_a_body_without_options_or_one_that_vllm_refuses_arrives_as_it_was_sent(server, body):
    assert sent(server, body).content == body


def test_a_body_that_comes_in_pieces_is_marked(server):
    pieces = iter([b'{"vllm_', b'xargs": {"step"', b': "g"}}'])
    assert sent(server, pieces).json() == {"vllm_xargs": {"step": "g", "step_caller": MINE}}


def test_requests_without_a_key_are_one_callers(server):
    def caller(**headers):
        body = b'{"vllm_xargs": {}}'
        headers = {"content-type": "application/json; charset=utf-8"} | headers
        return server.post("/v1/completions", content=body, headers=headers).json()["vllm_xargs"]

    assert caller() == caller() == {"step_caller": caller_of(b"")}
    assert caller(Authorization="Bearer k1") == {"step_caller": MINE}


def test_what_is_no_json_is_left_alone(server):
    body = b'{"vllm_xargs": {"step": "g"}}'
    answer = sent(server, body, **{"content-type": "multipart/form-data; boundary=x"})
    assert answer.content == body
    assert answer.headers["x-length"] == str(len(body))
    assert server.get("/health").content == b""


def test_a_client_that_goes_before_its_body_is_whole_is_seen_to_go():
    seen = []

    async def app(scope, receive, send):
        seen.extend([await receive(), await receive()])

    async def run():
        messages = iter(
            [
                {"type": "http.request", "body": b'{"vllm_xargs"', "more_body": True},
                {"type": "http.disconnect"},
                {"type": "http.disconnect"},
            ]
        )

        async def receive():
            return next(messages)

        headers = [(b"content-type", b"application/json")]
        await CallerMiddleware(app)({"type": "http", "headers": headers}, receive, None)

    with pytest.raises(StopIteration):
        run().send(None)
    assert seen == [{"type": "http.disconnect"}] * 2


def test_a_marked_body_is_what_python_reads_back():
    body = b'{"vllm_xargs": {"step": "g"}, "x": 1e400, "y": -0.0, "z": NaN}'
    again = marked_body(body, MINE)
    assert json.loads(again, parse_constant=str, parse_float=str) == {
        "vllm_xargs": {"step": "g", "step_caller": MINE},
        "x": "Infinity",
        "y": "-0.0",
        "z": "NaN",
    }
