"""What a voted answer looks like over HTTP, and what its settings and variables are."""

import json

import pytest

from step_infer.client.answers import vote
from step_infer.client.kinds import AnswerOptions
from step_infer.client.trace import Trace
from step_infer.server.voted_answer import chunks, comment, event, progress_chunk, voted_body
from step_infer.server.voted_call import Outcome
from step_infer.server.voted_flags import variables_of
from step_infer.server.voted_settings import VotedOptions, VotedSettings

TEXT = "".join(f"line {number}\n" for number in range(40))


def trace(number: int, reason: str, answer: str | None, score: float | None, tokens: int) -> Trace:
    made = Trace("0", number, None, [1, 2], list(range(tokens)), "", reason, answer)
    made.trace_score = score
    return made


def outcome() -> Outcome:
    traces = [
        trace(0, "stop", "42", 0.25, 10),
        trace(1, "length", "41", 0.5, 20),
        trace(2, "stop", "42", 0.5, 5),
        trace(3, "pruned", None, 0.1, 3),
        trace(4, "decided", None, None, 1),
        trace(5, "decided", None, None, 0),
    ]
    weights = [0.25, 0.5, 0.5, 0.0, 0.0, 0.0]
    answers = [made.answer for made in traces]
    return Outcome(
        *(vote(answers, weights), traces, traces[2], 1.23456, "decided", "unbeatable", 7, 4),
        *("math", 0),
    )


def response(**message: str | None) -> dict:
    part = {"message": {"role": "assistant", **message}} if message else {"text": TEXT}
    choice = {"index": 0, "finish_reason": "stop", "stop_reason": None, **part}
    return {"id": "x-1", "created": 5, "model": "voted", "choices": [choice], "usage": {}}


def test_the_step_object_tells_of_every_trace_and_answer():
    body = voted_body(response(content=TEXT, reasoning=None), outcome())
    assert body["step"] == {
        "answer": "42",
        "kind": "math",
        "chosen_by": "vote",
        "share": 0.6,
        "answers": [
            {"answer": "42", "weight": 0.75, "share": 0.6, "traces": 2},
            {"answer": "41", "weight": 0.5, "share": 0.4, "traces": 1},
        ],
        "traces": {"all": 6, "finished": 3, "pruned": 1, "decided": 2, "over_budget": 0},
        "uncompared": 0,
        "branched": None,
        "trace": 2,
        "parent": None,
        "score": 0.5,
        "ended": "decided",
        "why": "unbeatable",
        "seconds": 1.235,
    }
    assert "reasoning_content" not in body["choices"][0]["message"]


@pytest.mark.parametrize(("score", "chosen_by"), [(0.5, "score"), (None, "none")])
def test_without_any_answer_it_says_what_chose_the_trace(score, chosen_by):
    best = trace(0, "stop", None, score, 10)
    nobody = Outcome(vote([None]), [best], best, 1.0, "finished", None, 7, 4, "choice", 0)
    step = voted_body(response(), nobody)["step"]
    assert (step["answer"], step["chosen_by"], step["kind"]) == (None, chosen_by, "choice")


def test_usage_is_that_of_all_traces_and_of_one_prompt():
    body = voted_body(response(), outcome())
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 39,
        "total_tokens": 46,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


@pytest.mark.parametrize("message", [{}, {"content": TEXT}, {"content": None, "reasoning": TEXT}])
@pytest.mark.parametrize("usage", [False, True])
def test_the_pieces_of_a_stream_make_the_response(message, usage):
    body = voted_body(response(**message), outcome())
    pieces = list(chunks(body, usage))
    if usage:
        last = pieces.pop()
        assert (last["choices"], last["usage"]) == ([], body["usage"])
        assert all(piece["usage"] is None for piece in pieces)
    else:
        assert not any("usage" in piece for piece in pieces)
    parts = [piece["choices"][0] for piece in pieces]
    if message:
        deltas = [part["delta"] for part in parts]
        assert deltas[0]["role"] == "assistant"
        for name in ("content", "reasoning", "reasoning_content"):
            said = "".join(delta.get(name, "") for delta in deltas)
            assert said == (body["choices"][0]["message"].get(name) or "")
    else:
        assert "".join(part["text"] for part in parts) == TEXT
    assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert [piece.get("step") for piece in pieces] == [None] * (len(parts) - 1) + [body["step"]]
    assert {piece["object"] for piece in pieces} == {
        "chat.completion.chunk" if message else "text_completion"
    }
    assert len(pieces) > 3


def test_an_event_is_one_line_whatever_it_says():
    chunk = progress_chunk("1 of 2 traces, é leads with 50%", "x-1", "voted")
    for text in (event(chunk), comment("1 of 2 traces")):
        assert text.endswith("\n\n")
        assert text.count("\n") == 2
    assert json.loads(event(chunk).removeprefix("data: ")) == chunk
    assert chunk["choices"][0]["delta"]["reasoning_content"] == "1 of 2 traces, é leads with 50%\n"


def test_settings_pass_through_the_environment(monkeypatch):
    answers = AnswerOptions("number", tolerance="1%")
    settings = VotedSettings("a b'c", 8, 16, 2.5, answers, max_children=3)
    monkeypatch.setenv("VLLM_PLUGINS", "mine,other")
    variables = variables_of(settings)
    assert VotedSettings.from_text(variables["STEP_VOTED"]) == settings
    assert variables["VLLM_PLUGINS"] == "mine,other,step"
    monkeypatch.setenv("VLLM_PLUGINS", variables["VLLM_PLUGINS"])
    assert variables_of(settings) == variables


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ('{"name": "a"}', AnswerOptions("auto")),
        ('{"name": "a", "answers": "json.loads"}', AnswerOptions("json.loads")),
        (
            '{"name": "a", "answers": {"kind": "regex", "pattern": "(a)"}}',
            AnswerOptions("regex", "(a)"),
        ),
    ],
)
def test_an_operator_names_any_answer_kind(text, answers):
    assert VotedSettings.from_text(text).answers == answers


def test_naming_one_plug_in_keeps_no_other_out(monkeypatch):
    """The resolvers of LoRA adapters of vLLM are plug-ins that nobody names."""
    pytest.importorskip("vllm")
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    named = variables_of(VotedSettings("voted"))["VLLM_PLUGINS"].split(",")
    assert {"lora_filesystem_resolver", "step"} <= set(named)


def test_a_call_that_says_nothing_takes_the_operators_settings():
    settings = VotedSettings("voted", 8, 16, 30)
    for nothing in (None, {}, {"traces": None, "seconds": None}):
        assert VotedOptions.of(nothing, settings) == VotedOptions(8, 30)
    asked = VotedOptions.of({"traces": 16, "seconds": 30, "vote": "uniform"}, settings)
    assert asked == VotedOptions(16, 30, vote="uniform")


def test_a_call_that_names_no_answer_kind_takes_the_operators():
    own = AnswerOptions("my_module.MyAnswers")
    settings = VotedSettings("voted", answers=own)
    for nothing in ({}, {"answers": None}, {"answers": {}}, {"answers": {"kind": None}}):
        assert VotedOptions.of(nothing, settings).answers == own
    asked = VotedOptions.of({"answers": {"kind": "number", "tolerance": 0.5}}, settings)
    assert asked.answers == AnswerOptions("number", tolerance=0.5)
