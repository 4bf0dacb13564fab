"""Two data-parallel engines behind one server: the traces of a group meet in one of them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from server_harness import Server, serve
from settled_events import read_settled_events

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


def groups_of(server: Server) -> list[set[str]]:
    """Return the groups of which each engine has ended traces."""
    logs = [server.events, server.events.with_name("events.1.jsonl")]
    return [{event["group"] for event in read_settled_events([log])[0]} for log in logs]


def test_the_traces_of_a_call_are_in_one_engine_which_hears_why_they_end(server):
    def ask(step: dict[str, Any]) -> Any:
        return server.client.chat.completions.create(
            model="demo-voted",
            messages=[{"role": "user", "content": "618+487+934 mod 1000 = ?"}],
            max_tokens=200,
            extra_body={"ignore_eos": True, "step": step},
        )

    with ThreadPoolExecutor(2) as pool:
        whole = list(pool.map(ask, [{"stop_rule": "never"}] * 2))
    cut = ask({"tokens": 60, "min_keep": TRACES})
    groups = groups_of(server)
    events, _ = read_settled_events([server.events, server.events.with_name("events.1.jsonl")])
    for response in whole:
        counts = response.step["traces"]
        assert counts["finished"] + counts["pruned"] == TRACES
    assert cut.step["traces"]["over_budget"] == TRACES
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
    there = [any(group.startswith(name) for group in groups) for groups in groups_of(server)]
    assert there == [rank == 0, rank == 1]
