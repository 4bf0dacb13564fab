"""Two data-parallel engines behind one server: the traces of a group meet in one of them."""

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from patience import PATIENCE_S
from server_harness import Server, serve

pytest.importorskip("openai")
pytestmark = [pytest.mark.engine, pytest.mark.alone]

TRACES = 6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ["--voted-model-name", "demo-voted", "--voted-traces", str(TRACES)]
    with serve(
        tmp_path_factory.mktemp("server"), 161, "--data-parallel-size", "2", *flags
    ) as found:
        yield found


def groups_of(events: list[dict[str, Any]]) -> list[set[str]]:
    """Return the groups of which each engine has ended traces."""
    return [{event["group"] for event in events if event["engine"] == n} for n in range(2)]


def test_the_traces_of_a_call_are_in_one_engine_which_hears_why_they_end(server):
    def ask(step: dict[str, Any], max_tokens: int, stream: bool = False) -> Any:
        body = {
            "model": "demo-voted",
            "messages": [{"role": "user", "content": "618+487+934 mod 1000 = ?"}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": stream,
            "step": step,
        }
        request = urllib.request.Request(
            f"{server.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=PATIENCE_S)

    whole, groups = [], [set[str](), set[str]()]
    for _ in range(8):  # vLLM hears of its engines' requests a little late
        # The second comes while the first one's traces run, of which none may be stopped early.
        with ask({"stop_rule": "never", "min_keep": TRACES}, 800, stream=True) as first:
            assert first.readline() == f": 0 of {TRACES} traces\n".encode()
            with ask({"stop_rule": "never"}, 200) as second:
                whole.append(json.load(second))
            *_, last, _ = [line for line in first.read().split(b"\n\n") if line]
            whole.append(json.loads(last.removeprefix(b"data: ")))
        groups = groups_of(server.settled_events(engines=2))
        if all(groups):
            break
    with ask({"tokens": 60, "min_keep": TRACES}, 1400) as third:
        cut = json.load(third)
    events = server.settled_events(engines=2)
    groups = groups_of(events)
    for response in whole:
        counts = response["step"]["traces"]
        assert counts["finished"] + counts["pruned"] == TRACES
    assert cut["step"]["traces"]["over_budget"] == TRACES
    assert all(groups), "each engine has calls"
    assert not groups[0] & groups[1]
    assert [event.get("reason") for event in events if event["event"] == "abort"] == [
        "over_budget"
    ] * TRACES


@pytest.mark.parametrize("rank", [0, 1])
def test_a_clients_own_group_meets_in_the_engine_that_its_header_names(server, rank):
    name = f"mine-{rank}"

    def ask(seed: int) -> Any:
        header = {"X-data-parallel-rank": str(rank)}
        return server.chat(name, max_tokens=100, seed=seed, extra_headers=header)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))
    groups = groups_of(server.settled_events(engines=2))
    there = [any(group.startswith(name) for group in of_one) for of_one in groups]
    assert there == [rank == 0, rank == 1]
