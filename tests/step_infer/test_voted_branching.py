"""Children of voted calls, whatever comes first: the engine's traces say what a script tells them.

What a real engine does with children is tested in test_voted_server.py.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
from scripted_engine import END, Characters  # noqa: E402
from vllm import SamplingParams  # noqa: E402
from vllm.outputs import CompletionOutput, RequestOutput  # noqa: E402

from step_infer.client.branching import Branching  # noqa: E402
from step_infer.client.kinds import AnswerOptions  # noqa: E402
from step_infer.client.trace import branch_seed, trace_seed  # noqa: E402
from step_infer.errors import InputError  # noqa: E402
from step_infer.scorer.boundary import BoundaryRule  # noqa: E402
from step_infer.server.voted_answer import voted_body  # noqa: E402
from step_infer.server.voted_call import VotedCall, VotedModel  # noqa: E402
from step_infer.server.voted_grading import VotedGrading  # noqa: E402
from step_infer.server.voted_settings import VotedOptions, VotedSettings  # noqa: E402

PROMPT = "What?"
THOUGHT = "so far so good\nand on\n"
"""Ends with a step boundary."""
POINT = len(THOUGHT)
NEWLINES = [i for i, sign in enumerate(THOUGHT) if sign == "\n"]
RULE = BoundaryRule("sentence", frozenset({ord("\n")}), None, think_end=None)
CONTEXT = 200
WAIT_S = 120


class Engine:
    """What of vLLM's `AsyncLLM` voted calls use; each trace does what the script says."""

    errored = False

    def __init__(self, script: Callable[["Engine", int], AsyncIterator[RequestOutput]]) -> None:
        self._script = script
        self.requests: dict[int, SimpleNamespace] = {}
        self.aborted: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.ended: set[int] = set()
        self.output_processor = self.engine_core = self
        self.external_req_ids: dict[str, list[str]] = {}
        self.call: VotedCall | None = None
        """The call that it answers."""
        self.on_its_way: Callable[[], Any] = lambda: False
        """Whether the children that the call has ordered are still to reach the engine."""
        self.asked_to_abort: list[str] = []
        """Requests, whether they had reached it or not."""

    async def generate(
        self, prompt: Any, params: Any, name: str, **options: Any
    ) -> AsyncIterator[RequestOutput]:
        number = int(name.rpartition("-")[2])
        await asyncio.sleep(0.01)  # on its way
        if "inherit" in params.extra_args["step"]:
            await until(lambda: not self.on_its_way())
        self.requests[number] = SimpleNamespace(prompt=prompt, params=params, options=options)
        self.external_req_ids[name] = [f"{name}-inside"]
        parts = self._script(self, number)
        try:
            while True:
                part = asyncio.ensure_future(anext(parts))
                end = asyncio.ensure_future(self.aborted[name].wait())
                await asyncio.wait({part, end}, return_when=asyncio.FIRST_COMPLETED)
                end.cancel()
                if not part.done():
                    part.cancel()
                    yield self.output(number, "", "abort")
                    return
                yield part.result()
                if part.result().finished:
                    return
        finally:
            del self.external_req_ids[name]
            self.ended.add(number)

    def output(
        self, number: int, text: str, end: str | None = None, **report: Any
    ) -> RequestOutput:
        """Return an output: new text, how the trace ends, what the adapter says."""
        made = CompletionOutput(0, text, [ord(sign) for sign in text], None, None)
        made.finish_reason, made.stop_reason = ("abort", end) if end == "pruned" else (end, None)
        tokens = self.requests[number].prompt["prompt_token_ids"]
        output = RequestOutput("", "", tokens, None, [made], end is not None, num_cached_tokens=9)
        output.kv_transfer_params = {"step": report} if report else None
        return output

    async def abort(self, names: list[str]) -> None:
        self.abort_requests(names, internal=False)

    def abort_requests(self, names: list[str], internal: bool) -> list[str]:
        self.asked_to_abort += names
        known = [name for name in names if name in self.external_req_ids]
        for name in known:
            self.aborted[name].set()
        return known

    async def abort_requests_async(self, names: Any) -> None:
        """Do nothing: traces end by `abort_requests`."""


def growing(engine: Engine, number: int, text: str = THOUGHT, **more: Any) -> RequestOutput:
    """Return an output of a trace that has scored all steps of its text."""
    scores = [0.9] * len(NEWLINES)
    report = {"score": 0.9, "positions": NEWLINES, "scores": scores, "spare_tokens": 1000} | more
    return engine.output(number, text, **report)


def ended(engine: Engine, number: int, text: str, score: float, positions: list[int]) -> Any:
    report = {"score": score, "positions": positions, "scores": [score] * len(positions)}
    output = engine.output(number, text, "stop", **report)
    output.outputs[0].token_ids.append(END)
    return output


class Call(VotedCall):
    """Counts how often it has looked whether there is something to do."""

    looks = 0

    async def _look(self) -> str | None:
        self.looks += 1
        return await super()._look()

    async def looks_again(self, ended: int) -> None:
        """Wait until it has begun all that it would once so many traces have ended."""
        await until(lambda: len(self._traces) >= ended)
        # The second one from now begins after whatever the first has led to.
        before = self.looks
        await until(lambda: self.looks >= before + 2)


def call_of(engine: Engine, traces: int = 2, **options: Any) -> Call:
    settings = VotedSettings("voted", max_traces=99, max_children=2)
    model = VotedModel(
        settings,
        engine,
        Characters(),
        RULE,
        VotedGrading(AnswerOptions("auto")),
        scored=True,
        card=SimpleNamespace(aggregator="mean", deciding={}),
        prefix_caching=True,
        max_model_len=CONTEXT,
    )
    asked = {"traces": traces, "branch": {"min_tokens": 4}, "stop_rule": "never"} | options
    engine.call = Call(model, VotedOptions.of(asked, settings))
    return engine.call


def parameters(**options: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 100, "seed": 7, "temperature": 1.0} | options)


async def answer(call: VotedCall, **options: Any) -> RequestOutput:
    prompt = {"type": "token", "prompt_token_ids": list(map(ord, PROMPT)), "cache_salt": "mine"}
    async with asyncio.timeout(WAIT_S):
        async for output in call.generate(prompt, parameters(**options), "cmpl"):
            return output
    raise AssertionError("no answer")


async def until(true: Callable[[], Any]) -> None:
    while not true():
        await asyncio.sleep(0.005)


async def parent_and_pruned(engine: Engine, number: int) -> AsyncIterator[RequestOutput]:
    """Trace 0 thinks on until its child has ended; the others are pruned."""
    if number == 0:
        yield growing(engine, 0)
        yield engine.output(0, "and then")
        await until(lambda: 2 in engine.ended)
        yield ended(engine, 0, r"\boxed{4}", 0.2, NEWLINES)
    elif number < 2:
        yield engine.output(number, "wrong")
        yield engine.output(number, "", "pruned")
    else:
        yield ended(engine, number, "other\n\\boxed{5}", 0.95, [*NEWLINES, POINT + 5])


def test_the_answer_of_a_child_has_what_it_inherited():
    engine = Engine(parent_and_pruned)
    call = call_of(engine)
    output = asyncio.run(answer(call))
    outcome = call.outcome
    best = outcome.best
    assert (best.trace_id, best.parent, best.inherited) == (2, 0, POINT)
    (made,) = output.outputs
    assert made.text == THOUGHT + "other\n\\boxed{5}"
    assert "".join(map(chr, made.token_ids)) == made.text + chr(END)
    assert "".join(map(chr, output.prompt_token_ids)) == PROMPT
    own = "and then" + r"\boxed{4}" + "wrong" + "other\n\\boxed{5}"
    assert outcome.completion_tokens == len(THOUGHT + own) + 2  # and the ends of two turns
    body = voted_body({"choices": []}, outcome)
    assert body["usage"]["completion_tokens"] == outcome.completion_tokens
    assert body["step"]["traces"]["all"] == 3
    assert (body["step"]["trace"], body["step"]["parent"]) == (2, 0)
    assert body["step"]["branched"] == {
        "traces": 1,
        "inherited_tokens": POINT,
        "prefix_tokens": len(PROMPT) + POINT,
        "cached_tokens": 9,
        "shared_answer": "5",
        "shared_share": pytest.approx(0.95 / 1.15),
    }


def test_a_child_is_a_request_that_begins_where_its_parent_was():
    engine = Engine(parent_and_pruned)
    asyncio.run(answer(call_of(engine), min_tokens=POINT + 3))
    parent, child = engine.requests[0], engine.requests[2]
    whole = [ord(sign) for sign in PROMPT + THOUGHT]
    assert child.prompt == {**parent.prompt, "prompt_token_ids": whole}
    assert (child.params.max_tokens, child.params.min_tokens) == (100 - POINT, 3)
    assert parent.params.seed == trace_seed(7, "0", 0)
    assert child.params.seed == branch_seed(parent.params.seed, 0)
    asked, step = parent.params.extra_args["step"], child.params.extra_args["step"]
    history = step.pop("inherit")
    assert step == asked
    assert history.pop("parent").endswith("-0-inside"), "as the engine calls it"
    assert history == {"tokens": POINT, "scores": [0.9, 0.9], "confidences": []}


@pytest.mark.parametrize(("pruned", "most", "children"), [(5, 1, 1), (5, 2, 2), (1, 2, 1)])
def test_children_are_as_few_as_the_call_asks_and_as_the_stopped_traces(pruned, most, children):
    async def script(engine: Engine, number: int) -> AsyncIterator[RequestOutput]:
        if number == 0:
            yield growing(engine, 0)
            await engine.call.looks_again(pruned + children)
            yield ended(engine, 0, r"\boxed{4}", 0.2, NEWLINES)
        elif number <= pruned:
            yield engine.output(number, "wrong", "pruned")
        else:
            yield ended(engine, number, r"\boxed{5}", 0.9, NEWLINES)

    call = call_of(Engine(script), 1 + pruned, branch={"min_tokens": 4, "max_children": most})
    asyncio.run(answer(call))
    assert [trace.parent for trace in call.outcome.children] == [0] * children


@pytest.mark.parametrize(
    "more",
    [
        {"spare_tokens": len(PROMPT) + POINT - 1},
        {"positions": [], "scores": []},
    ],
)
def test_without_memory_or_a_step_there_is_no_child(more):
    async def script(engine: Engine, number: int) -> AsyncIterator[RequestOutput]:
        if number == 0:
            yield growing(engine, 0, **more)
            await engine.call.looks_again(1)
            yield ended(engine, 0, r"\boxed{4}", 0.2, NEWLINES)
        else:
            yield engine.output(number, "wrong", "pruned")

    call = call_of(Engine(script))
    asyncio.run(answer(call))
    assert call.outcome.children == []
    assert voted_body({"choices": []}, call.outcome)["step"]["branched"]["traces"] == 0


def test_what_fills_the_context_has_no_child():
    async def script(engine: Engine, number: int) -> AsyncIterator[RequestOutput]:
        if number == 0:  # ends with a boundary at the context's last token
            text = "x" * (CONTEXT - len(PROMPT) - 1) + "\n"
            place = len(text) - 1
            yield growing(engine, 0, text, positions=[place], scores=[0.9])
            await engine.call.looks_again(1)
            yield ended(engine, 0, "", 0.9, [place])
        else:
            yield engine.output(number, "wrong", "pruned")

    call = call_of(Engine(script))
    asyncio.run(answer(call, max_tokens=10_000))
    assert call.outcome.children == []


def test_a_report_that_a_later_output_took_the_place_of_costs_no_step():
    async def script(engine: Engine, number: int) -> AsyncIterator[RequestOutput]:
        if number == 0:  # its first boundary's report was not taken in time
            yield engine.output(0, THOUGHT[:-2])
            yield growing(engine, 0, THOUGHT[-2:])
            await until(lambda: 2 in engine.ended)
            yield ended(engine, 0, r"\boxed{4}", 0.2, NEWLINES)
        elif number < 2:
            yield engine.output(number, "wrong", "pruned")
        else:
            yield ended(engine, number, r"\boxed{5}", 0.9, NEWLINES)

    engine = Engine(script)
    asyncio.run(answer(call_of(engine)))
    assert engine.requests[2].params.extra_args["step"]["inherit"]["scores"] == [0.9, 0.9]


async def with_children(engine: Engine, number: int) -> AsyncIterator[RequestOutput]:
    if number == 0:
        yield growing(engine, 0)
        await asyncio.Event().wait()
    elif number < 2:
        yield engine.output(number, "wrong", "pruned")
    else:
        yield engine.output(number, "other")
        await asyncio.Event().wait()


@pytest.mark.parametrize("arrives", [False, True])
def test_a_client_that_goes_away_leaves_no_child_behind(arrives):
    engine = Engine(with_children)
    engine.on_its_way = lambda: not arrives
    call = call_of(engine)

    async def goes_away() -> None:
        asking = asyncio.create_task(answer(call))
        await until(lambda: len(call.traces_so_far()) > 2)
        await until(lambda: not arrives or call.traces_so_far()[2].tokens > 0)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        assert set(engine.requests) == engine.ended, "a trace goes on"
        assert engine.external_req_ids == {}

    asyncio.run(goes_away())
    assert not any(call._model.load.values())


def test_a_spent_budget_ends_a_child_that_was_on_its_way():
    async def script(engine: Engine, number: int) -> AsyncIterator[RequestOutput]:
        if number == 0:
            yield growing(engine, 0)
            await until(lambda: len(engine.call.traces_so_far()) > 2)
            yield engine.output(0, "and on" * 50)  # more than the budget
            await asyncio.Event().wait()
        else:
            async for output in with_children(engine, number):
                yield output

    engine = Engine(script)
    call = call_of(engine, tokens=300)
    engine.on_its_way = lambda: not any(name.endswith("-2") for name in engine.asked_to_abort)
    asyncio.run(answer(call, max_tokens=1000))
    outcome = call.outcome
    assert (outcome.ended, outcome.why) == ("over_budget", "tokens")
    assert [trace.parent for trace in outcome.traces] == [None, None, 0]
    assert outcome.traces[2].finish_reason == "over_budget"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"presence_penalty": 0.5}, "Expected no presence_penalty for a call that branches"),
        ({"frequency_penalty": -1}, "Expected no frequency_penalty for a call that branches"),
    ],
)
def test_parameters_that_count_generated_tokens_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        asyncio.run(answer(call_of(Engine(parent_and_pruned)), **options))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, None),
        (False, None),
        (True, Branching()),
        ({}, Branching()),
        ({"min_tokens": 9}, Branching(9)),
        ({"min_tokens": None, "max_children": 1}, Branching(max_children=1)),
    ],
)
def test_a_call_says_how_it_branches(asked, expected):
    settings = VotedSettings("voted", max_children=3)
    assert VotedOptions.of({"branch": asked}, settings).branch == expected
    few = VotedSettings("voted", max_children=1)
    assert VotedOptions.of({"branch": True}, few).branch == Branching(max_children=1)
