"""The page at /step of a real step-serve, watched in a real Chromium while voted calls run."""

import contextlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from server_harness import Server, serve

pytest.importorskip("openai")
pytest.importorskip("vllm")
from chromium import chromium, page  # noqa: E402

pytestmark = pytest.mark.engine

NAME = "demo-voted"
KEY = "mine"
QUESTION = "618+487+934 mod 1000 = ?"
KV_BLOCKS = 161
"""5,120 tokens, which the traces of one call of `CROWD` outgrow."""
CROWD = {"traces": 20, "stop_rule": "never"}
LONG: dict[str, Any] = {"max_tokens": 1400, "extra": {"ignore_eos": True}}
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ["--api-key", KEY, "--voted-model-name", NAME, "--voted-max-traces", "64"]
    with serve(tmp_path_factory.mktemp("page"), KV_BLOCKS, *flags, "--step-page") as running:
        yield running.caller(KEY)


def ask(server: Server, question: str, step: dict[str, Any], **options: Any) -> Any:
    extra = {"step": step, **options.pop("extra", {})}
    defaults = {"temperature": 1.0, "max_tokens": 300, "seed": 0}
    return server.client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": question}],
        extra_body=extra,
        **defaults | options,
    )


def crowd_after_crowd(server: Server, seen: Event) -> list[Any]:
    """Ask until all has been seen that is to be seen of running calls; a slow page misses some."""
    responses = []
    while not seen.is_set() and len(responses) < 12:
        responses.append(ask(server, QUESTION, CROWD, **LONG))
    return responses


def test_running_calls_are_drawn_to_their_end(server):
    with (
        chromium() as browser,
        page(browser, f"{server.url}/step") as (opened, complaints),
        ThreadPoolExecutor() as pool,
    ):
        opened.locator("#key").fill("another")
        opened.locator("#key-form button").click()
        opened.locator("#line", has_text="wrong").wait_for()
        opened.locator("#key").fill(KEY)
        opened.locator("#key-form button").click()
        opened.locator("#line[data-state=live]").wait_for()
        assert opened.locator("#key-form").is_hidden()
        assert all("401" in complaint for complaint in complaints), "asked without a key, and wrong"
        complaints.clear()

        seen = Event()
        crowds = pool.submit(crowd_after_crowd, server, seen)
        running = opened.locator(".call[data-state=running]")
        running.locator(".traces li[data-state=running] .bar").first.wait_for()
        running.locator(".traces li[data-state=pruned]").first.wait_for()
        running.locator(".traces .bar:is(.low, .high)").first.wait_for()
        opened.locator("#kv-use", has_text=re.compile("[1-9][0-9]?%")).wait_for()
        seen.set()

        named = {"X-Request-Id": EVIL}
        # So many that none of them has ended before anybody goes.
        cut = {"traces": 20, "min_keep": 20, "progress": "reasoning"}
        calls = [
            pool.submit(
                ask, server, QUESTION, {"traces": 9, "vote": "uniform"}, extra_headers=named
            ),
            pool.submit(ask, server, QUESTION, {"traces": 6}, seed=1),
            pool.submit(ask, server, QUESTION, {"traces": 6, "tokens": 300}, seed=2),
        ]
        with ask(server, QUESTION, cut, stream=True, **LONG) as stream:
            assert "0 of 20 traces" in next(iter(stream)).choices[0].delta.model_dump_json()
        gone = opened.locator(".call[data-state=cut_off]")
        gone.wait_for()
        assert gone.locator(".traces li").count() == 20
        responses = [*(call.result() for call in calls), *crowds.result()]
        for response in responses:
            step = response.step
            card = opened.locator(".call", has_text=response.id)
            card.and_(opened.locator(f"[data-state={step['ended']}]")).wait_for()
            said = card.locator(".verdict").inner_text()
            if step["answer"] is None:
                assert said.startswith("No trace gave an answer")
            else:
                assert said.startswith(f"Answer {step['answer']} with {step['share']:.0%}")
                first = card.locator(".answers li").first
                assert first.locator(".answer").inner_text() == step["answers"][0]["answer"]
            states = card.locator(".traces li")
            for name in ("finished", "pruned", "decided", "over_budget"):
                marked = states.and_(opened.locator(f"[data-state={name}]"))
                assert marked.count() == step["traces"][name], name
        assert responses[2].step["ended"] == "over_budget"
        assert EVIL in responses[0].id
        assert opened.locator("img").count() == 0
        assert opened.locator(".call").count() == len(responses) + 1
        assert QUESTION not in opened.content()
        assert complaints == []


def test_the_page_holds_nothing_and_its_events_ask_for_the_key(server):
    assert NAME not in urllib.request.urlopen(f"{server.url}/step").read().decode()
    url = f"{server.url}/v1/step/trace-events"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {KEY}"})
    with contextlib.closing(urllib.request.urlopen(request)) as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        assert stream.readline() == b"event: snapshot\n"
        told = json.loads(stream.readline().removeprefix(b"data: "))
    assert (told["server"]["voted"], told["server"]["model"]) == (NAME, "demo")


def test_an_open_page_does_not_keep_the_server_from_its_end(server):
    """The last test: the server ends."""
    request = urllib.request.Request(
        f"{server.url}/v1/step/trace-events", headers={"Authorization": f"Bearer {KEY}"}
    )
    with contextlib.closing(urllib.request.urlopen(request)) as stream:
        assert stream.readline()
        server.process.terminate()
        while stream.readline():
            pass
        server.process.wait(120)
