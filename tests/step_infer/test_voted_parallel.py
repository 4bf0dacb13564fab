"""Voted calls over two data-parallel engines: a call's traces meet in one of them."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from server_harness import serve
from settled_events import read_settled_events

pytest.importorskip("openai")
pytestmark = [pytest.mark.engine, pytest.mark.alone]

TRACES = 6


def test_the_traces_of_a_call_are_in_one_engine_which_hears_why_they_end(tmp_path):
    flags = ["--voted-model-name", "demo-voted", "--voted-traces", str(TRACES)]
    with serve(tmp_path, 161, "--data-parallel-size", "2", *flags) as server:

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
        logs = [server.events, server.events.with_name("events.1.jsonl")]
        groups = [{event["group"] for event in read_settled_events([log])[0]} for log in logs]
        events, _ = read_settled_events(logs)
    for response in whole:
        counts = response.step["traces"]
        assert counts["finished"] + counts["pruned"] == TRACES
    assert cut.step["traces"]["over_budget"] == TRACES
    assert all(groups), "each engine has calls"
    assert not groups[0] & groups[1]
    assert [event.get("reason") for event in events if event["event"] == "abort"] == [
        "over_budget"
    ] * TRACES
