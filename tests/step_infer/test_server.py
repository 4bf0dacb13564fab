"""step-serve for real: vLLM's OpenAI server on the CPU, asked by the openai client.

One server with a KV cache far too small for many traces; a request alone always fits.
"""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from patience import wait_until
from places import SCORER
from server_harness import PROMPT, QUESTION, Server, serve
from two_callers import (
    KEYS,
    KV_BLOCKS,
    groups_of_every_route,
    pruned_beside_a_caller_who_keeps_all,
)

from step_infer.scorer.aggregate import AGGREGATORS
from step_infer.scorer.network import read_card

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("server"), KV_BLOCKS, "--api-key", *KEYS) as running:
        yield running.caller(KEYS[0])


def report(response: Any) -> dict[str, Any]:
    return response.kv_transfer_params["step"]


def text_of(choice: Any) -> str:
    return choice.text if hasattr(choice, "text") else choice.message.content


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_trace_of_a_group_comes_back_with_its_scores(server, kind):
    response = getattr(server, kind)("group-1")
    (choice,) = response.choices
    step = report(response)
    assert step.keys() == {"positions", "scores", "score", "pruned"}
    assert step["pruned"] is False
    assert step["positions"] == read_card(SCORER).boundary_rule.positions(choice.token_ids)
    assert len(step["scores"]) == len(step["positions"]) > 2
    assert all(0 < score < 1 for score in step["scores"])
    aggregate = AGGREGATORS[read_card(SCORER).aggregator]
    assert step["score"] == pytest.approx(aggregate(step["scores"]))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_without_opting_in_nothing_comes_back(server, kind, n):
    scored = server.step_metrics()["step_scored_steps_total"]
    response = getattr(server, kind)(None, max_tokens=150, n=n)
    assert response.kv_transfer_params is None
    assert [choice.finish_reason for choice in response.choices] == ["length"] * n
    assert server.step_metrics()["step_scored_steps_total"] == scored


def test_options_as_json_text_count(server):
    step = report(server.chat(json.dumps({"group": "group-2", "aggregator": "last"})))
    assert step["score"] == step["scores"][-1]


@pytest.mark.oldest
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_every_choice_of_one_request_has_its_scores(server, kind):
    response = getattr(server, kind)("{}", n=4)
    choices = report(response)["choices"]
    rule = read_card(SCORER).boundary_rule
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    for choice, returned in zip(choices, response.choices, strict=True):
        assert choice["positions"] == rule.positions(returned.token_ids)
        assert len(choice["scores"]) == len(choice["positions"])
        assert choice["pruned"] is False
    assert len({tuple(choice["scores"]) for choice in choices}) > 1


def test_when_memory_is_short_the_children_of_one_request_compete(server):
    response = server.chat("{}", n=12, max_tokens=1300)
    choices = report(response)["choices"]
    assert len(choices) == 12
    pruned = [choice["index"] for choice in choices if choice["pruned"]]
    assert 0 < len(pruned) < 12
    for choice, returned in zip(choices, response.choices, strict=True):
        assert returned.index == choice["index"]
        assert len(choice["scores"]) == len(choice["positions"])
        if choice["pruned"]:
            assert (returned.finish_reason, returned.stop_reason) == ("abort", "pruned")
            assert text_of(returned)
        else:
            assert returned.finish_reason in ("stop", "length")


def test_requests_of_one_group_compete_and_others_are_left_alone(server):
    before = server.gauge("num_preemptions_total")
    asked = ["shared"] * 10 + [None] * 2

    def ask(number: int) -> Any:  # the two others and one of the group always fit
        return server.chat(asked[number], max_tokens=900, seed=number)

    responses = server.answers_at_once(*(partial(ask, number) for number in range(len(asked))))
    marks = [report(response)["pruned"] for response in responses[:10]]
    assert 0 < sum(marks) < 10
    for response, mark in zip(responses[:10], marks, strict=True):
        assert (response.choices[0].stop_reason == "pruned") == mark
    for response in responses[10:]:
        assert response.kv_transfer_params is None
        assert response.choices[0].finish_reason in ("stop", "length")
    assert server.gauge("num_preemptions_total") == before


def test_a_request_may_ask_not_to_be_pruned(server):
    before = server.gauge("num_preemptions_total")
    response = server.chat('{"prune": false}', n=6, max_tokens=1000)
    assert [choice["pruned"] for choice in report(response)["choices"]] == [False] * 6
    assert server.gauge("num_preemptions_total") > before


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_stream_marks_pruned_choices(server, kind):
    finished = {}
    characters = dict.fromkeys(range(12), 0)
    for chunk in getattr(server, kind)("{}", n=12, max_tokens=1100, stream=True):
        for choice in chunk.choices:
            delta = choice.text if kind == "completion" else choice.delta.content
            characters[choice.index] += len(delta or "")
            if choice.finish_reason is not None:
                assert choice.index not in finished
                finished[choice.index] = (choice.finish_reason, choice.stop_reason)
    assert sorted(finished) == list(range(12))
    assert all(characters.values())
    pruned = [end for end in finished.values() if end == ("abort", "pruned")]
    assert 0 < len(pruned) < 12
    assert all(reason in ("stop", "length") for reason, stop in finished.values() if stop is None)


@pytest.mark.parametrize("step", ["group-3", None], ids=["group", "not opted in"])
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_stream_of_one_trace_ends_as_without_scores(server, kind, step):
    before = server.step_metrics()
    chunks = list(getattr(server, kind)(step, stream=True, max_tokens=200))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    ends = [choice for choice in choices if choice.finish_reason]
    assert [(end.finish_reason, end.stop_reason) for end in ends] == [("length", None)]
    assert sum(len(getattr(choice, "token_ids", None) or ()) for choice in choices) == 200
    server.chat(None, max_tokens=50)  # a step later, the last one's counts have come
    after = server.step_metrics()
    grown = after["step_scored_steps_total"] - before["step_scored_steps_total"]
    assert (grown > 0) == (step is not None)


def test_a_request_that_a_stop_string_ends_has_its_scores(server):
    response = server.chat("group-4", stop=["S4"])
    (choice,) = response.choices
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "S4")
    step = report(response)
    rule = read_card(SCORER).boundary_rule
    assert step["positions"] == rule.positions(choice.token_ids)
    assert len(step["scores"]) >= 3


def test_every_choice_has_its_score_with_stop_strings_too(server):
    response = server.chat("{}", n=3, stop=["S4"])
    assert {choice.stop_reason for choice in response.choices} == {"S4"}
    choices = report(response)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert all(0 < choice["score"] < 1 for choice in choices)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ('{"no_such": 1}', "found 'no_such'"),
        ('{"group": ', "Expected JSON"),
        ('{"aggregator": []}', "found \\[\\]"),
        ('{"min_keep": 0}', "found 0"),
        ('{"capture": true}', "capture in offline requests only"),
        ('{"group": "\\u00007_x"}', "without NUL"),
        ('{"group":' * 20_000, "Expected JSON"),
        (f'{{"window": 5, "stop_below": 1{"0" * 400}}}', "stop_below a finite number"),
        (7, "Expected an object"),
    ],
)
def test_a_bad_option_is_ignored_with_a_warning(server, step, reason):
    start = server.log.stat().st_size
    response = server.chat(step, max_tokens=100)
    assert response.choices[0].finish_reason == "length"
    assert report(response).keys() == {"error"}
    assert reason.replace("\\", "") in report(response)["error"]

    def told() -> bool:  # the engine is another process: its log may come later
        with server.log.open() as file:
            file.seek(start)
            lines = [line for line in file if "is not scored" in line]
        return any(reason.replace("\\", "") in line for line in lines)

    assert wait_until(told)


def test_a_client_that_goes_away_frees_its_traces(server):
    stream = server.chat("{}", n=8, max_tokens=1400, stream=True)
    for _ in range(20):
        next(stream)
    stream.close()
    all_of_it = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    assert wait_until(lambda: server.gauge(*all_of_it) == 0)
    assert report(server.chat("{}"))["scores"]


def test_the_same_group_of_two_keys_is_two_groups_on_every_route(server):
    groups = groups_of_every_route(server)
    assert sorted(groups.values()) == [7, 7]


def test_a_min_keep_of_another_key_protects_none_and_its_traces_are_never_compared(server):
    stopped, other_stopped = pruned_beside_a_caller_who_keeps_all(server)
    assert not other_stopped, "the only trace of its group"
    assert stopped == 1, "memory was short"


def test_a_key_that_vllm_does_not_know_is_refused_as_before(server):
    with pytest.raises(openai.AuthenticationError):
        server.caller("theirs").chat("q3")


def test_a_group_whose_caller_cannot_be_told_is_refused_and_says_so(server):
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 20,
        "vllm_xargs": {"step": "q3"},
    }
    hidden = json.dumps(body).replace("xargs", "\\u0078args").encode()
    answer = server.caller("mine").client.post(
        "/chat/completions",
        cast_to=object,
        content=hidden,
        options={"headers": {"Content-Type": "application/json"}},
    )
    error = answer["kv_transfer_params"]["step"]["error"]
    assert error.startswith("Expected a group of a known caller, found 'q3' of an unknown one.")


def test_several_prompts_return_the_first_ones_scores(server):
    prompts = [PROMPT.format(QUESTION), PROMPT.format(QUESTION[4:])]
    response = server.completion("group-5", prompts, max_tokens=200)
    rule = read_card(SCORER).boundary_rule
    assert len(response.choices) == 2
    assert report(response)["positions"] == rule.positions(response.choices[0].token_ids)


@pytest.mark.oldest
def test_metrics_stand_beside_vllms_own(server):
    before = server.step_metrics()
    assert before, "vLLM does not find our entry point: is this environment older than it?"
    generated = server.gauge("generation_tokens_total")
    response = server.chat("{}", n=12, max_tokens=1300)
    choices = report(response)["choices"]
    server.chat(None, max_tokens=50)  # a step later, the last one's counts have come
    after = server.step_metrics()
    assert server.gauge("generation_tokens_total") > generated
    grown = {name: after[name] - before[name] for name in after}
    scores = [score for choice in choices for score in choice["scores"]]
    assert grown["step_pruned_total"] == sum(choice["pruned"] for choice in choices) > 0
    assert grown["step_scored_steps_total"] == grown["step_score_count"] == len(scores)
    assert grown["step_score_sum"] == pytest.approx(sum(scores), abs=1e-3 * len(scores))
    low = 'step_score_bucket{engine="0",le="0.5",model_name="demo"}'
    assert grown[low] == sum(score <= 0.5 for score in scores)
    lost = [len(c.token_ids) for c in response.choices if c.stop_reason == "pruned"]
    assert grown["step_freed_tokens_total"] >= sum(lost)
    assert (
        0 < 32 * grown["step_freed_kv_blocks_total"] <= grown["step_freed_tokens_total"] + 32 * 12
    )
    parent = response.id
    events = [event for event in server.settled_events() if parent in event["request"]]
    assert sorted(event["score"] for event in events) == pytest.approx(
        sorted(choice["score"] for choice in choices), abs=1e-4
    )
    assert sum(event["event"] == "prune" for event in events) == len(lost)
    assert after["step_dropped_scores_total"] == after["step_disabled"] == 0
    assert "Step scoring: " in server.log.read_text()
