"""The voted model for real: vLLM's OpenAI server on the CPU, asked by the openai client."""

import asyncio
import contextlib
import http.client
import json
import re
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from patience import wait_until
from server_harness import PROMPT, Server, serve
from server_harness import QUESTION as LONG_QUESTION

from step_infer.client.answers import extract_boxed
from step_infer.client.trace import trace_seed

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")
pytestmark = [pytest.mark.engine, pytest.mark.oldest]

QUESTION = "618+487+934 mod 1000 = ?"
KEY = "mine"
NAME = "demo-voted"
KV_BLOCKS = 161
"""5,120 tokens: a few long traces, so that pruning has something to do."""
TRACES = 6
MOST_TRACES = 12
MOST_SECONDS = 100
MESSAGES = [{"role": "user", "content": QUESTION}]
ALL_KEPT = {"ignore_eos": True, "step": {"traces": 12, "min_keep": 12}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ["--reasoning-parser", "deepseek_r1"]
    flags += ["--voted-model-name", NAME, "--voted-traces", str(TRACES)]
    flags += ["--voted-max-traces", str(MOST_TRACES), "--voted-max-seconds", str(MOST_SECONDS)]
    flags += ["--voted-max-children", "2"]
    directory = tmp_path_factory.mktemp("voted")
    with serve(directory, KV_BLOCKS, "--api-key", KEY, *flags) as running:
        yield running.caller(KEY)


def chat(server: Server, step: dict[str, Any] | None = None, **options: Any) -> Any:
    defaults = {"messages": MESSAGES, "temperature": 1.0, "max_tokens": 900, "seed": 0}
    extra = {} if step is None else {"extra_body": {"step": step}}
    return server.client.chat.completions.create(model=NAME, **defaults | extra | options)


def text(server: Server, step: dict[str, Any] | None = None, **options: Any) -> Any:
    defaults = {"temperature": 1.0, "max_tokens": 900, "seed": 0}
    extra = {} if step is None else {"extra_body": {"step": step}}
    prompt = PROMPT.format(QUESTION)
    return server.client.completions.create(model=NAME, prompt=prompt, **defaults | extra | options)


def post(server: Server, body: dict[str, Any]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=300)


def text_of(response: Any) -> str:
    """Return all text of a response, the reasoning first."""
    (choice,) = response.choices
    if hasattr(choice, "text"):
        return choice.text
    return (choice.message.reasoning or "") + (choice.message.content or "")


def requests_in(server: Server) -> float:
    return server.gauge("num_requests_running", "num_requests_waiting")


def calls(server: Server, ended: str) -> float:
    series = f'step_voted_calls_total{{ended="{ended}",model_name="{NAME}"}}'
    return server.step_metrics()[series]


def raw_events(server: Server, body: dict[str, Any]) -> list[str]:
    """Return the events of a stream as they came, comments too."""
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps({"model": NAME, "messages": MESSAGES, "stream": True, **body}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        return [event for event in response.read().decode().split("\n\n") if event]


def test_both_names_are_listed(server):
    models = {model.id: model for model in server.client.models.list().data}
    assert models.keys() == {"demo", NAME}
    assert models[NAME].max_model_len == models["demo"].max_model_len


@pytest.mark.parametrize("ask", [chat, text])
def test_one_call_has_one_voted_answer(server, ask):
    response = ask(server)
    step = response.step
    assert response.model == NAME
    assert response.choices[0].finish_reason == "stop"
    assert extract_boxed(text_of(response)) == step["answer"] is not None
    if ask is chat:
        message = response.choices[0].message
        assert message.content.strip() == rf"\boxed{{{step['answer']}}}"
        assert message.reasoning_content == message.reasoning
        assert "S1" in message.reasoning
    assert step["answers"][0]["answer"] == step["answer"]
    assert step["share"] == step["answers"][0]["share"] > 0
    assert sum(group["share"] for group in step["answers"]) == pytest.approx(1)
    counts = step["traces"]
    assert counts.pop("all") == TRACES == sum(counts.values())
    assert sum(group["traces"] for group in step["answers"]) <= counts["finished"]
    assert step["ended"] in ("finished", "decided")
    usage = response.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens is not None


@pytest.mark.parametrize("budget", [{}, {"tokens": 5000}])  # which is counted token by token
def test_the_traces_are_those_of_plain_calls_with_seeds_of_their_own(server, budget):
    """One trace at a time, as what runs beside a trace may change its last bits."""
    voted = chat(server, {"traces": 1, **budget}, seed=7)
    plain = server.client.chat.completions.create(
        model="demo",
        messages=MESSAGES,
        temperature=1.0,
        max_tokens=900,
        seed=trace_seed(7, "0", 0),
    )
    assert text_of(voted) == text_of(plain)
    assert plain.choices[0].finish_reason == voted.choices[0].finish_reason
    assert voted.usage.completion_tokens == plain.usage.completion_tokens
    assert voted.usage.prompt_tokens == plain.usage.prompt_tokens
    assert voted.step["traces"]["all"] == 1


def test_usage_counts_the_tokens_of_every_trace(server):
    options = {"ignore_eos": True, "step": {"stop_rule": "never", "traces": 5}}
    response = chat(server, max_tokens=20, extra_body=options)
    assert response.usage.completion_tokens == 5 * 20
    assert response.choices[0].finish_reason == "length"
    assert response.step["ended"] == "finished"


def test_without_any_answer_the_best_scored_trace_answers(server):
    options = {"ignore_eos": True, "step": {"stop_rule": "never"}}
    response = chat(server, max_tokens=60, extra_body=options)
    step = response.step
    assert (step["answer"], step["share"], step["answers"]) == (None, 0.0, [])
    assert text_of(response)
    assert step["score"] is not None


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        ("math", r"\d+"),
        ({"kind": "number", "tolerance": 999}, r"\d+"),
        ({"kind": "regex", "pattern": r"boxed.(\d)"}, r"\d"),
        ("choice", None),
        ("json", None),
    ],
)
def test_a_call_names_the_kind_of_its_answers(server, kind, answers):
    step = chat(server, {"stop_rule": "never", "answers": kind}).step
    assert step["kind"] == (kind if isinstance(kind, str) else kind["kind"])
    if answers is None:
        assert (step["answer"], step["chosen_by"], step["answers"]) == (None, "score", [])
    else:
        assert step["chosen_by"] == "vote"
        assert all(re.fullmatch(answers, group["answer"]) for group in step["answers"])
    if isinstance(kind, dict) and "tolerance" in kind:
        assert len(step["answers"]) == 1, "all are near each other"


@pytest.mark.parametrize(
    ("budget", "why"), [({"tokens": 100}, "tokens"), ({"seconds": 0.2}, "seconds")]
)
def test_a_spent_budget_ends_a_call(server, budget, why):
    options = {**ALL_KEPT, "step": {**ALL_KEPT["step"], **budget}}
    for _ in range(5):  # the engine goes on while the server does not come to look: once more
        before = server.step_metrics()["step_over_budget_total"]
        response = chat(server, max_tokens=1400, extra_body=options)
        step, tokens = response.step, response.usage.completion_tokens
        assert (step["ended"], step["why"]) == ("over_budget", why)
        ended = step["traces"]["over_budget"]
        assert ended == 12
        server.completion(None, max_tokens=2)  # counts travel with the steps
        total = before + ended
        assert wait_until(lambda sum=total: server.step_metrics()["step_over_budget_total"] == sum)
        assert response.choices[0].finish_reason == "length"
        assert why == "seconds" or tokens >= 100
        if why == "seconds" or tokens < 400:
            return
    pytest.fail(f"{tokens} tokens were made of a budget of 100")


def test_votes_by_number_weigh_one_each(server):
    response = chat(server, {"vote": "uniform", "stop_rule": "never"})
    assert all(group["weight"] == group["traces"] for group in response.step["answers"])


def test_a_stream_tells_its_progress_and_then_the_answer(server):
    options = {"include_usage": True}
    body = {"max_tokens": 900, "seed": 3, "stream_options": options, "step": {"traces": 4}}
    *events, done = raw_events(server, body)
    assert done == "data: [DONE]"
    comments = [event for event in events if event.startswith(":")]
    assert comments[0] == ": 0 of 4 traces"
    assert events[: len(comments)] == comments, "the answer comes after all progress"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[len(comments) :]]
    *deltas, last, usage = chunks
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert deltas[0]["choices"][0]["delta"]["role"] == "assistant"
    parts = [chunk["choices"][0]["delta"] for chunk in deltas]
    said = "".join(part.get("content") or "" for part in parts)
    assert extract_boxed(said) == last["step"]["answer"] is not None
    assert "S1" in "".join(part.get("reasoning_content") or "" for part in parts)
    assert last["choices"][0]["finish_reason"] in ("stop", "length")
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("ask", [chat, text])
def test_the_client_reads_a_stream_as_any_other(server, ask):
    chunks = list(ask(server, {"traces": 1}, seed=7, stream=True))
    parts = [chunk.choices[0] for chunk in chunks]
    whole = ask(server, {"traces": 1}, seed=7)
    if ask is text:
        assert "".join(part.text for part in parts) == whole.choices[0].text
    else:
        message = whole.choices[0].message
        assert "".join(part.delta.content or "" for part in parts) == message.content
    assert [part.finish_reason for part in parts if part.finish_reason] == ["stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].step["traces"]["all"] == 1


def test_progress_can_come_as_reasoning(server):
    chunks = list(chat(server, {"progress": "reasoning", "traces": 4}, stream=True))
    thoughts = [chunk.choices[0].delta.to_dict().get("reasoning_content") for chunk in chunks]
    assert thoughts[0] == "0 of 4 traces\n"
    assert len({chunk.id for chunk in chunks}) == 1


def all_calls(server: Server) -> float:
    lines = server.step_metrics().items()
    return sum(value for name, value in lines if name.startswith("step_voted_calls_total{"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_all_its_traces(server, stream):
    before, address = calls(server, "cut_off"), server.url.removeprefix("http://")
    body = {"model": NAME, "messages": MESSAGES, "stream": stream, "temperature": 1.0}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    for _ in range(5):  # a call may have ended before anybody looked
        ended = all_calls(server)
        with contextlib.closing(http.client.HTTPConnection(address)) as connection:
            text = json.dumps(body | {"max_tokens": 1400} | ALL_KEPT)
            connection.request("POST", "/v1/chat/completions", text, headers)
            assert wait_until(
                lambda seen=ended: requests_in(server) > 0 or all_calls(server) > seen
            )
        assert wait_until(lambda seen=ended: all_calls(server) > seen)
        assert wait_until(lambda: requests_in(server) == 0)
        if calls(server, "cut_off") > before:
            break
    assert calls(server, "cut_off") == before + 1
    assert text_of(chat(server, {"traces": 1}))


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"traces": 13}, "Expected at most 12 traces, found 13."),
        ({"traces": 0}, "option traces as a whole number >= 1, found 0."),
        ({"traces": True}, "option traces as a whole number >= 1, found True."),
        ({"seconds": 101}, "Expected at most 100 seconds, found 101."),
        ({"seconds": -1}, "option seconds as a number above 0, found -1."),
        ({"tokens": 1.5}, "option tokens as a whole number >= 1, found 1.5."),
        ({"vote": "loud"}, "option vote as one of score, uniform, found 'loud'."),
        ({"stop_rule": []}, r"option stop_rule as one of unbeatable, likely, never, found \[\]."),
        ({"stop_rule": "likely"}, "Expected a threshold for the stop rule likely"),
        ({"min_keep": 0}, "option min_keep as a whole number >= 1, found 0."),
        ({"answers": "chess"}, "Expected an answer kind out of math, .*, found 'chess'."),
        ({"answers": "os.system"}, "Expected an answer kind out of math, .*, found 'os.system'."),
        ({"answers": ["math"]}, r"Expected an answer kind as a text, .*found \['math'\]."),
        ({"answers": {"kind": "regex"}}, "Expected an answer pattern"),
        ({"answers": {"kind": "regex", "pattern": "("}}, "in the syntax of RE2"),
        ({"answers": {"kind": "number", "tolerance": -1}}, "tolerance as a number from 0 on"),
        ({"answers": {"tolerance": 1}}, "Expected an answer kind number beside a tolerance"),
        ({"branch": {"max_children": 3}}, r"at most 2 children of a trace .*, found 3\. Hint"),
        ({"branch": 1}, "option branch as true, or an object with max_children or min_tokens"),
        ({"branch": {"min_tokens": 0}}, "branching with min_tokens of at least 1, found 0."),
        ({"group": "mine"}, "Expected step options out of .*, found 'group'."),
        ("q1", "Expected an object under 'step', found 'q1'."),
    ],
)
def test_options_beyond_bounds_are_refused_in_one_line(server, step, words):
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        chat(server, extra_body={"step": step})
    assert "\n" not in refused.value.body["message"]


@pytest.mark.parametrize(
    "options",
    [
        {"n": 1, "stream": False, "user": "me", "metadata": {"a": "b"}, "store": False},
        {"logprobs": False, "top_logprobs": 0, "response_format": {"type": "text"}},
        {"service_tier": "auto", "safety_identifier": "me", "prompt_cache_key": "k"},
        {"tool_choice": "none", "parallel_tool_calls": False, "modalities": ["text"]},
        {"tools": [TOOL], "tool_choice": "none", "functions": [], "function_call": "none"},
        {"stop": [], "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0, "top_p": 1},
        {"n": None, "stream": None, "seed": None, "stop": None, "logprobs": None, "tools": None},
        {"user": None, "metadata": None, "web_search_options": None, "step": None},
        {"step": {"min_keep": 10**19, "tokens": 10**19, "answers": {"kind": None}}},
        {"stream": True, "stream_options": {"include_usage": False}},
        {"stream": True, "stream_options": None, "include_reasoning": True, "vllm_xargs": {}},
    ],
)
def test_what_front_ends_always_send_is_taken(server, options):
    body = {"model": NAME, "messages": MESSAGES, "max_tokens": 900, **options}
    response = post(server, body)
    assert response.status_code == 200, response.text
    if options.get("stream"):
        *_, last, done = [event for event in response.text.split("\n\n") if event]
        assert done == "data: [DONE]"
        step = json.loads(last.removeprefix("data: "))["step"]
    else:
        step = response.json()["step"]
    assert step["traces"]["all"] == TRACES


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 2}, "Expected no n for the voted model, found 2."),
        ({"logprobs": True}, "Expected no logprobs for the voted model, found True."),
        ({"tools": [TOOL]}, "Expected no tools for the voted model"),
        (
            {"response_format": {"type": "json_object"}},
            "Expected no response_format for the voted model",
        ),
        ({"extra_body": {"prompt_logprobs": 1}}, "Expected no prompt_logprobs"),
        ({"extra_body": {"structured_outputs": {"regex": "a"}}}, "Expected no structured_outputs"),
        ({"extra_body": {"use_beam_search": True}}, "Expected no use_beam_search"),
        ({"extra_body": {"vllm_xargs": {"step": "q1"}}}, "Expected no vllm_xargs"),
        ({"extra_body": {"steps": {}}}, "Expected fields that this server knows .*'steps'"),
        ({"temperature": 0}, "Expected a temperature above 0 for a vote, found 0"),
        (
            {"stream": True, "extra_body": {"return_token_ids": True}},
            "Expected no return_token_ids for the voted model in a stream",
        ),
        ({"messages": []}, "."),
        ({"max_tokens": 5000}, "."),
    ],
)
def test_what_no_vote_can_do_is_refused_in_one_line(server, options, words):
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        chat(server, **options)
    assert "\n" not in refused.value.body["message"]
    assert wait_until(lambda: requests_in(server) == 0)


def test_a_text_completion_has_one_prompt(server):
    prompt = PROMPT.format(QUESTION)
    for prompts in ([], [prompt, prompt]):
        with pytest.raises(openai.BadRequestError, match="Expected one prompt for the voted model"):
            server.client.completions.create(model=NAME, prompt=prompts, max_tokens=5)
    one = server.client.completions.create(model=NAME, prompt=[prompt], max_tokens=5)
    assert one.step["traces"]["all"] == TRACES


def test_the_responses_route_refuses_the_name(server):
    with pytest.raises(openai.BadRequestError, match="POST to /v1/chat/completions"):
        server.client.responses.create(model=NAME, input=QUESTION)


def test_calls_to_the_other_name_pass_untouched(server):
    response = server.chat("{}", n=2)
    assert len(response.choices) == 2
    assert response.kv_transfer_params["step"]["choices"]
    assert not hasattr(response, "step")
    assert server.completion(None, max_tokens=5).usage.completion_tokens == 5
    assert server.client.responses.create(model="demo", input=QUESTION, max_output_tokens=5)
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        server.client.chat.completions.create(model="demo-vote", messages=MESSAGES)


def test_the_voted_model_asks_for_the_api_key_too(server):
    with pytest.raises(openai.AuthenticationError):
        chat(server.caller("yours"))


def test_two_calls_at_once_are_two_groups(server):
    async def both() -> list[Any]:
        client = openai.AsyncOpenAI(**server.client_options(KEY))
        async with client:
            return await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=NAME,
                        messages=MESSAGES,
                        max_tokens=900,
                        seed=seed,
                        extra_body={"step": {"stop_rule": "never"}},
                    )
                    for seed in (1, 2)
                )
            )

    known = {event["group"] for event in server.settled_events()}
    first, second = asyncio.run(both())
    for response in (first, second):
        counts = response.step["traces"]
        assert counts["finished"] >= 1
        assert counts["finished"] + counts["pruned"] == TRACES
    events = [event for event in server.settled_events() if event["group"] not in known]
    groups = {event["group"] for event in events}
    assert len(groups) == 2
    assert sorted(sum(e["group"] == group for e in events) for group in groups) == [TRACES, TRACES]


def test_calls_that_are_cut_off_leave_the_others_alone(server):
    """Nine calls at once, more than the KV cache holds, of which a third go away."""

    async def ask(client: Any, number: int) -> Any:
        goes_away = number % 3 == 0
        step = {"traces": 4, "stop_rule": "never"}
        if goes_away:  # more than the cache holds at once: it has not ended when its client goes
            step |= {"traces": MOST_TRACES, "min_keep": MOST_TRACES, "progress": "reasoning"}
        answer = await client.chat.completions.create(
            model=NAME,
            messages=MESSAGES,
            max_tokens=1400 if goes_away else 200,
            seed=number,
            stream=goes_away,
            extra_body={"ignore_eos": True, "step": step},
        )
        if not goes_away:
            return answer
        async with answer:
            return await anext(aiter(answer))

    async def all_of_them() -> list[Any]:
        client = openai.AsyncOpenAI(**server.client_options(KEY))
        async with client:
            return await asyncio.gather(*(ask(client, number) for number in range(9)))

    before = calls(server, "cut_off")
    answers = asyncio.run(all_of_them())
    for number, response in enumerate(answers):
        if number % 3:
            counts = response.step["traces"]
            assert counts["finished"] >= 1
            assert counts["finished"] + counts["pruned"] == 4
            assert text_of(response)
    assert wait_until(lambda: calls(server, "cut_off") == before + 3)
    assert wait_until(lambda: requests_in(server) == 0)


def test_a_call_that_branches_fills_the_places_of_stopped_traces(server):
    """Others take memory for a while: traces are stopped, and later there is room again."""
    options = {"traces": MOST_TRACES, "stop_rule": "never", "branch": {"min_tokens": 32}}
    messages = [{"role": "user", "content": LONG_QUESTION}]
    before, known = server.step_metrics(), len(server.settled_events())
    others, response = server.answers_at_once(
        partial(server.completion, None, n=12, max_tokens=300, extra_body={"ignore_eos": True}),
        partial(chat, server, options, messages=messages),
        requests=12 + MOST_TRACES,
    )
    assert len(others.choices) == 12
    step, after = response.step, server.step_metrics()
    counts, branched = step["traces"], step["branched"]
    children = branched["traces"]
    assert 0 < children <= counts["pruned"]
    assert counts["all"] == MOST_TRACES + children == counts["finished"] + counts["pruned"]
    # Each child's line names its parent's; what it inherited counts once.
    events = server.settled_events()[known:]
    assert len(events) == counts["all"]
    by_name = {event["request"]: event for event in events}
    born = [event for event in events if "parent" in event]
    assert len(born) == children
    assert all(by_name[event["parent"]]["group"] == event["group"] for event in born)
    assert all(event["tokens"] >= event["inherited"] > 0 for event in born)
    of_each = [event["parent"] for event in born]
    assert max(of_each.count(name) for name in of_each) <= 2
    assert branched["inherited_tokens"] == sum(event["inherited"] for event in born)
    whole, usage = sum(event["tokens"] for event in events), response.usage
    own = whole - branched["inherited_tokens"]
    # Of a pruned trace the engine may have had a token or two that came to nobody.
    assert own - 3 * counts["all"] <= usage.completion_tokens <= own
    assert 0.5 * branched["prefix_tokens"] < branched["cached_tokens"] < branched["prefix_tokens"]
    assert branched["shared_answer"] in {group["answer"] for group in step["answers"]}
    label = f'model_name="{NAME}"'
    for series, grown in (
        (f"step_voted_branches_total{{{label}}}", children),
        (f'step_voted_prefix_tokens_total{{found="cached",{label}}}', branched["cached_tokens"]),
        ("step_voted_prefix_tokens_total", branched["prefix_tokens"]),
    ):
        assert after[series] - before[series] == grown


def test_voted_calls_are_counted(server):
    before = server.step_metrics()
    chat(server, {"traces": 2, "stop_rule": "never"})
    after = server.step_metrics()
    label = f'model_name="{NAME}"'

    def grown(series: str) -> float:
        return after[series] - before[series]

    assert grown(f'step_voted_calls_total{{ended="finished",{label}}}') == 1
    assert grown(f"step_voted_seconds_count{{{label}}}") == 1
    assert grown(f"step_voted_share_count{{{label}}}") == 1
    assert grown("step_voted_traces_total") == 2
