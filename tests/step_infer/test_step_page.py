"""The page at /step and its events, over HTTP and in a real Chromium; the engine is scripted."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from patience import PATIENCE_S

pytest.importorskip("fastapi")
pytest.importorskip("vllm")
from chromium import chromium, page  # noqa: E402
from scripted_engine import OnAndOn, Part, Script, scripted_server  # noqa: E402

from step_infer.client.kinds import AnswerOptions  # noqa: E402
from step_infer.scorer.boundary import BoundaryRule  # noqa: E402
from step_infer.server.page.board import MOST_SHOWN, Board  # noqa: E402
from step_infer.server.page.routes import EVENTS, MOST_READERS  # noqa: E402
from step_infer.server.voted_call import VotedCall, VotedModel  # noqa: E402
from step_infer.server.voted_grading import VotedGrading  # noqa: E402
from step_infer.server.voted_settings import VotedOptions, VotedSettings  # noqa: E402

NAME = "voted"
EVIL = '<img src=x onerror="window.stolen = true">'


def settings(**options: Any) -> VotedSettings:
    return VotedSettings(NAME, max_traces=1000, page=True, **options)


class Play:
    """Traces that go on when a test says so."""

    def __init__(self) -> None:
        self._goes_on = threading.Event()

    def go_on(self) -> None:
        self._goes_on.set()

    async def __call__(self, number: int) -> AsyncIterator[Part]:
        if number == 0:  # has no token yet
            await self._wait()
            yield r"\boxed{7}", 0.9, "stop"
        elif number == 1:
            yield "long " * 10, 0.25, None
            await self._wait()
            yield r"\boxed{7}", 0.5, "stop"
        elif number == 2:
            yield "short", 0.125, None
            yield "er", None, "pruned"
        elif number == 3:
            yield r"\boxed{8}", 0.75, "stop"
        else:
            yield "more", None, None
            await self._wait()
            yield "", None, "stop"

    async def _wait(self) -> None:
        while not self._goes_on.is_set():
            await asyncio.sleep(0.01)


def all_say(text: str) -> Script:
    async def script(number: int) -> AsyncIterator[Part]:
        yield text, 0.5, "stop"

    return script


async def fails(number: int) -> AsyncIterator[Part]:
    yield "so far", 0.5, None
    await asyncio.sleep(0.5)
    raise RuntimeError("the secret prompt is in this text")


def body(**step: Any) -> bytes:
    return json.dumps({"model": NAME, "prompt": "the secret prompt", "step": step}).encode()


def post(url: str, name: str | None = None, **step: Any) -> dict[str, Any]:
    """Call the voted model."""
    headers = {"Content-Type": "application/json"} | ({"X-Request-Id": name} if name else {})
    request = urllib.request.Request(f"{url}/v1/completions", body(**step), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return json.load(response)


class Reader:
    """Somebody who reads the events."""

    def __init__(self, url: str, **headers: str) -> None:
        request = urllib.request.Request(url + EVENTS, headers=headers)
        self.response = urllib.request.urlopen(request, timeout=PATIENCE_S)
        self.calls: dict[int, dict[str, Any]] = {}
        self.last: dict[str, Any] = {}

    def event(self) -> str:
        """Take in the next event or comment; return its kind."""
        kind = "comment"
        lines = iter(self.response.readline, b"\n")
        for line in (raw.decode().rstrip("\n") for raw in lines):
            assert line, "the line was closed"
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                self.last = json.loads(value)
                self.calls |= {call["number"]: call for call in self.last["calls"]}
        return kind

    def until(self, true: Any) -> dict[str, Any]:
        """Read until something holds of the first call that is shown; return that call."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for number in self.last.get("order", ()):
                if true(self.calls[number]):
                    return self.calls[number]
            self.event()
        raise AssertionError(f"not told: {self.calls}")

    def until_ended(self) -> dict[str, Any]:
        return self.until(lambda call: call["state"] != "running")


@contextlib.contextmanager
def reader(url: str, **headers: str) -> Iterator[Reader]:
    made = Reader(url, **headers)
    with contextlib.closing(made.response):
        yield made


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def pool():
    with ThreadPoolExecutor(MOST_SHOWN + 4) as threads:
        yield threads


def refused(url: str, **headers: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as error:
        Reader(url, **headers)
    return error.value.code, json.load(error.value)["error"]["message"]


def test_without_the_setting_there_is_no_page():
    with scripted_server(all_say("x"), VotedSettings(NAME)) as url:
        for path in ("/step", EVENTS):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(url + path)


def test_the_page_lets_in_nothing_from_elsewhere():
    with scripted_server(all_say("x"), settings()) as url:
        for name in ("", "/page.js", "/page.css", "/icon.svg"):
            headers = urllib.request.urlopen(f"{url}/step{name}").headers
            policy = headers["Content-Security-Policy"].split("; ")
            assert "default-src 'none'" in policy
            assert {source for part in policy for source in part.split()[1:]} == {
                "'none'",
                "'self'",
            }
            assert headers["X-Content-Type-Options"] == "nosniff"


def test_events_tell_of_a_call_from_its_begin_to_its_end(pool):
    play = Play()
    before = {
        "states": ["waiting", "running", "pruned", "finished", "running", "running"],
        "tokens": [0, 50, 7, 10, 4, 4],
        "scores": [None, 0.25, 0.125, 0.75, None, None],
        "gave": [None, None, None, 0, None, None],
    }
    with scripted_server(play, settings()) as url:
        answer = pool.submit(post, url, traces=6, stop_rule="never", vote="uniform")
        with reader(url) as events:
            try:
                call = events.until(lambda call: call["traces"] == before)
            finally:
                play.go_on()
            assert call["state"] == "running"
            assert call["closed"] is call["answer"] is call["seconds"] is None
            assert abs(events.last["now"] - call["began"]) < 60
            assert call["answers"] == [{"answer": "8", "share": 1.0, "traces": 1}]
            call = events.until_ended()
        assert call["answers"][0] == {"answer": "7", "share": 0.6667, "traces": 2}
        assert call["traces"]["gave"] == [0, 0, None, 1, None, None]
        assert answer.result()["id"] == call["id"]


def test_the_end_of_a_call_is_as_its_response_says(pool):
    with scripted_server(all_say(r"\boxed{7}"), settings()) as url:
        body = post(url, traces=5)
        with reader(url) as events:
            call = events.until_ended()
    step = body["step"]
    assert (call["id"], call["answer"], call["share"]) == (body["id"], "7", 1.0)
    assert (call["state"], call["why"]) == (step["ended"], step["why"])
    assert (call["best"], call["seconds"]) == (step["trace"], step["seconds"])
    assert sum(call["traces"]["tokens"]) == body["usage"]["completion_tokens"]


def test_a_decision_is_told(browser):
    thinking = set()

    async def two_wait(number: int) -> AsyncIterator[Part]:
        if number > 2:
            yield "hm", 0.25, None
            thinking.add(number)  # which has been taken in
            await asyncio.sleep(1000)
        while len(thinking) < 2:
            await asyncio.sleep(0.01)
        yield r"\boxed{7}", 0.5, "stop"

    with scripted_server(two_wait, settings()) as url:
        post(url, traces=5, vote="uniform")
        with reader(url) as events:
            call = events.until_ended()
        with page(browser, f"{url}/step") as (opened, complaints):
            card = opened.locator(".call[data-state=decided]")
            assert card.locator(".verdict").inner_text().startswith("Answer 7 with 100% (decided")
            assert card.locator(".traces li[data-state=decided]").count() == 2
            assert complaints == []
    assert (call["state"], call["closed"], call["why"]) == ("decided", "decided", "unbeatable")
    assert call["traces"]["states"] == ["finished"] * 3 + ["decided"] * 2
    assert call["traces"]["scores"] == [0.5] * 3 + [0.25] * 2, "what was known of them stays"


def test_a_client_that_goes_away_ends_its_call_on_the_page():
    with scripted_server(OnAndOn(), settings()) as url, reader(url) as events:
        address = urllib.parse.urlparse(url).netloc
        with contextlib.closing(http.client.HTTPConnection(address)) as client:
            headers = {"Content-Type": "application/json"}
            client.request("POST", "/v1/completions", body(traces=3), headers)
            events.until(lambda call: call["traces"]["states"] == ["running"] * 3)
            seen_s = time.monotonic()
            for _ in range(3):
                events.event()
            watched_s = time.monotonic() - seen_s
        call = events.until_ended()
    assert call["state"] == "cut_off"
    assert call["traces"]["states"] == ["cut_off"] * 3
    assert call["seconds"] > watched_s - 0.001
    assert call["answer"] is None


def test_a_call_that_fails_is_shown_to_its_end_without_the_reason():
    with scripted_server(fails, settings()) as url, reader(url) as events:
        with pytest.raises(urllib.error.HTTPError, match="500"):
            post(url, traces=3)
        call = events.until_ended()
        assert "secret" not in json.dumps(events.last)
    assert call["state"] == "failed"
    assert call["traces"]["states"] == ["failed"] * 3
    assert call["traces"]["tokens"] == [6] * 3


def test_a_call_whose_traces_have_not_begun_is_shown_and_may_end():
    options = VotedOptions(traces=2)
    rule, grading = BoundaryRule("stride", frozenset(), None), VotedGrading(AnswerOptions("auto"))
    model = VotedModel(settings(), None, None, rule, grading)
    call, board = VotedCall(model, options), Board()
    board.begin(call, options)
    assert board.look() == []
    call.begun.set()
    board.end(call, "cut_off")
    (card,) = board.look()
    told = json.loads(card.text)
    assert told["traces"]["states"] == ["cut_off"] * 2
    assert told["seconds"] == 0


def test_a_call_that_is_refused_is_not_shown():
    with scripted_server(all_say("x"), settings()) as url, reader(url) as events:
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(url, traces=1001)
        post(url, traces=1)
        assert events.until_ended()["number"] == 1


def test_a_snapshot_comes_first_and_then_only_what_changes():
    play = OnAndOn()
    with scripted_server(play, settings()) as url, ThreadPoolExecutor() as threads:
        post_one = threads.submit(post, url, traces=2)
        with reader(url) as first:
            try:
                kinds = [first.event() for _ in range(4)]
                told = first.last["now"]
                for _ in range(4):
                    first.event()
            finally:
                play.end()
            assert first.last["now"] - told > 0.9, "at most four a second"
            assert kinds == ["snapshot", "changes", "changes", "changes"]
            first.until_ended()
            post(url, traces=1)
            first.until(lambda call: call["number"] == 2 and call["state"] != "running")
            assert [call["number"] for call in first.last["calls"]] == [2]
            assert first.last["order"] == [2, 1]
        post_one.result()


def test_a_silent_line_is_kept_open(monkeypatch):
    monkeypatch.setattr("step_infer.server.page.routes._SILENT_S", 0.5)
    with scripted_server(all_say("x"), settings()) as url, reader(url) as events:
        assert [events.event() for _ in range(3)] == ["snapshot", "comment", "comment"]


def test_a_slow_reader_gets_the_newest_state_and_no_backlog(monkeypatch):
    """One that reads nothing while more is told than its line holds."""
    for module in ("board", "routes"):
        monkeypatch.setattr(f"step_infer.server.page.{module}.LOOK_S", 0.02)

    play = OnAndOn(pause_s=0.1)
    with scripted_server(play, settings()) as url, reader(url) as quick:
        address = urllib.parse.urlparse(url)
        with socket.socket() as line, ThreadPoolExecutor() as threads:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.settimeout(PATIENCE_S)
            line.connect((address.hostname, address.port))
            line.sendall(f"GET {EVENTS} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
            for _ in range(2):
                threads.submit(post, url, traces=1000)
            quick_events = 0
            try:
                while quick.last.get("running") != 2:
                    quick.event()
                while quick_events < 40:
                    quick_events += quick.event() == "changes"
            finally:
                play.end()
            while quick.last["running"]:
                quick.event()
            said = b""
            while b'"running": 0, "calls": [{' not in said:
                said += line.recv(1 << 16)
    assert said.count(b"event: ") < quick_events / 2


def test_there_are_only_so_many_readers():
    with (
        scripted_server(all_say("x"), settings()) as url,
        contextlib.ExitStack() as readers,
    ):
        opened = [readers.enter_context(reader(url)) for _ in range(MOST_READERS)]
        for each in opened:
            assert each.event() == "snapshot"
        assert refused(url) == (
            503,
            f"Expected at most {MOST_READERS} readers of {EVENTS}, found one more. "
            "Hint: close a page that nobody looks at.",
        )
        opened[0].response.close()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.HTTPError), reader(url) as another:
                assert another.event() == "snapshot"
                return
            time.sleep(0.05)
    raise AssertionError("no room after one has gone")


def test_pages_of_other_sites_cannot_read():
    with scripted_server(all_say("x"), settings()) as url:
        assert refused(url, Origin="http://elsewhere.example") == (
            403,
            f"Expected no Origin on {EVENTS}, found one: a page of another site. "
            "Hint: open /step on this server.",
        )


def test_of_many_calls_the_oldest_are_shown_and_the_others_counted(pool):
    play = OnAndOn(pause_s=0.1)
    with scripted_server(play, settings()) as url, reader(url) as events:
        calls = [pool.submit(post, url, traces=1) for _ in range(MOST_SHOWN + 3)]
        try:
            while events.last.get("running") != MOST_SHOWN + 3:
                events.event()
        finally:
            play.end()
        assert events.last["order"] == list(range(1, MOST_SHOWN + 1))
        for call in calls:
            call.result()
        while events.last["running"]:
            events.event()
        assert len(events.last["order"]) == 20, "the last that have ended"


def test_answers_and_names_are_text_on_the_page(browser):
    with scripted_server(all_say(rf"\boxed{{{EVIL}}}"), settings()) as url:
        assert post(url, name=EVIL, traces=2, stop_rule="never")["step"]["answer"] == EVIL
        with page(browser, f"{url}/step") as (opened, complaints):
            call = opened.locator(".call[data-state=finished]")
            assert call.locator(".answers .answer").inner_text() == EVIL
            assert call.locator(".id").inner_text() == EVIL
            assert EVIL in call.locator(".verdict").inner_text()
            assert call.locator(".traces .gave").first.inner_text().startswith(EVIL)
            assert opened.locator("img").count() == 0
            assert opened.evaluate("window.stolen") is None
            assert complaints == []


def test_nothing_runs_that_is_not_the_servers_own(browser):
    with (
        scripted_server(all_say("x"), settings()) as url,
        page(browser, f"{url}/step") as (opened, _),
    ):
        with opened.expect_console_message(lambda told: "Content Security Policy" in told.text):
            opened.evaluate(
                """html => new Promise(failed => {
                    document.body.insertAdjacentHTML("beforeend", html);
                    document.querySelector("img").addEventListener("error", () => failed());
                })""",
                EVIL,
            )
        assert opened.evaluate("window.stolen") is None


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_follows_the_system(browser, width):
    long = "8" * 400
    with scripted_server(all_say(rf"\boxed{{{long}}}"), settings()) as url:
        post(url, name="n" * 300, traces=70)
        backs = set()
        for scheme in ("light", "dark"):
            options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
            with page(browser, f"{url}/step", **options) as (opened, _):
                opened.locator(".call").wait_for()
                assert opened.evaluate("document.documentElement.scrollWidth") <= width
                assert opened.locator(".traces li").count() == 70
                backs.add(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(backs) == 2


def test_a_page_finds_a_server_that_starts_again(browser):
    with contextlib.ExitStack() as later:
        with scripted_server(all_say(r"\boxed{7}"), settings()) as url:
            post(url, traces=9)
            opened, _ = later.enter_context(page(browser, f"{url}/step"))
            opened.locator(".verdict", has_text="Answer 7").wait_for()
        opened.locator("#line[data-state=lost]").wait_for()
        port = urllib.parse.urlparse(url).port
        with scripted_server(all_say(r"\boxed{8}"), settings(), port) as again:
            post(again, traces=2)
            opened.locator(".verdict", has_text="Answer 8").wait_for()
            assert opened.locator(".traces li").count() == 2
