"""How voted calls end, over HTTP; the engine is scripted."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("vllm")
from scripted_engine import Part, scripted_server  # noqa: E402

from step_infer.server.voted_settings import VotedSettings  # noqa: E402

SETTINGS = VotedSettings("voted", 2)


def post(url: str, **options: Any) -> tuple[int, str]:
    """Call the voted model; return the status and the body."""
    body = {"model": "voted", "prompt": "?", **options}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("reason", "told"),
    [("stop", "stop"), ("length", "length"), ("repetition", "repetition"), ("pruned", "length")],
)
def test_the_finish_reason_is_that_of_the_trace_that_answers(reason, told):
    async def script(number: int) -> AsyncIterator[Part]:
        yield "so far", 0.5, reason

    with scripted_server(script, SETTINGS) as url:
        status, body = post(url)
    assert (status, json.loads(body)["choices"][0]["finish_reason"]) == (200, told)


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_ends_with_its_engine(stream):
    begun, ended = threading.Event(), []

    async def silent(number: int) -> AsyncIterator[Part]:
        begun.set()
        yield "so far", 0.5, None
        while True:
            await asyncio.sleep(60)

    with scripted_server(silent, SETTINGS) as url:
        call = threading.Thread(target=lambda: ended.append(post(url, stream=stream)))
        call.start()
        assert begun.wait(60)
    call.join(60)
    ((status, body),) = ended
    if stream:
        assert (status, body.rpartition("data: ")[2]) == (200, "[DONE]\n\n")
        assert "the engine is dead" in body
    else:
        assert status == 500


def test_progress_as_reasoning_is_refused_where_there_is_none():
    async def script(number: int) -> AsyncIterator[Part]:
        yield "so far", 0.5, "stop"

    step = {"progress": "reasoning"}
    with scripted_server(script, SETTINGS) as url:
        status, body = post(url, stream=True, step=step)
        assert post(url, step=step)[0] == 200
    assert (status, json.loads(body)["error"]["message"]) == (
        400,
        "Expected progress as comments in the stream of a text completion, which has no "
        "reasoning, found 'reasoning'. Hint: leave it out, or ask for a chat completion.",
    )
