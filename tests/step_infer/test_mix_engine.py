"""Twenty questions at once in a real engine that is short of memory; then its scoring fails."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from direct_engine import direct_engine
from places import SCORER
from server_harness import PROMPT
from settled_events import read_settled_events

from step_eval.recorded.events import read_events

pytestmark = pytest.mark.engine

QUESTIONS, TRACES, MIN_KEEP = 20, 4, 2


def prompts():
    random_ = random.Random(0)
    for _ in range(QUESTIONS):
        numbers = (str(random_.randint(100, 999)) for _ in range(13))
        yield PROMPT.format("+".join(numbers) + " mod 1000 = ?")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """An engine with a log of its events and of its preemptions."""
    log = tmp_path_factory.mktemp("mix") / "events.jsonl"
    with direct_engine(
        scheduler_cls="watched_scheduler.WatchedScheduler",
        additional_config={"step": {"scorer": str(SCORER), "event_log": str(log)}},
        num_gpu_blocks_override=49,  # 1,536 tokens
        max_model_len=512,
        max_num_batched_tokens=512,
        dtype="float32",
    ) as llm:
        yield llm, log


def ask(llm, questions, max_tokens=300):
    """Sample traces of questions, all at once; return the requests, question by question."""
    from vllm import SamplingParams

    texts, params = [], []
    for number, prompt in questions:
        options = {"step": {"group": f"q{number}", "min_keep": MIN_KEEP}}
        texts += [prompt] * TRACES
        params += [
            SamplingParams(temperature=1.0, max_tokens=max_tokens, extra_args=options)
        ] * TRACES
    return llm.generate(texts, params, use_tqdm=False)


def settled_events(llm, log):
    events, _ = read_settled_events([log], lambda name, _: ask(llm, [(name, "?")], 2))
    return events


def watched(log):
    return [json.loads(line) for line in Path(f"{log}.watched").read_text().splitlines()]


def test_each_question_keeps_its_traces_and_nothing_that_could_be_pruned_is_preempted(engine):
    llm, log = engine
    requests = ask(llm, list(enumerate(prompts())))
    marks = [request.kv_transfer_params["step"]["pruned"] for request in requests]
    assert sum(marks) > QUESTIONS, "memory was not short: the test shows nothing"
    for number in range(QUESTIONS):
        assert sum(marks[number * TRACES : (number + 1) * TRACES]) <= TRACES - MIN_KEEP
    preempted = [line for line in watched(log) if "preempted" in line]
    assert [line for line in preempted if line["instead_of"] is not None] == []
    events = settled_events(llm, log)
    kept = Counter(event["group"] for event in events if event["event"] == "finish")
    assert min(kept.values()) >= MIN_KEEP
    assert sum(kept.values()) == len(marks) - sum(marks)


def test_no_question_ends_later_than_one_by_one_in_engine_steps(engine):
    llm, log = engine
    ends, some = [], list(enumerate(prompts()))[: QUESTIONS // 2]
    for rounds in ([some], [[pair] for pair in some]):
        before = [line["step"] for line in watched(log) if "ended" in line]
        for questions in rounds:
            ask(llm, questions, 150)
        steps = [line["step"] for line in watched(log) if "ended" in line][len(before) :]
        assert len(steps) == len(some) * TRACES
        # The last of a question's traces is the last of four, one by one; at once it is not later.
        ends.append([step - max(before, default=0) for step in steps[TRACES - 1 :: TRACES]])
    assert all(at_once <= one_by_one for at_once, one_by_one in zip(*ends, strict=True))
    assert ends[0][-1] < ends[1][-1] / 2


def broken(worker):
    def fail(hidden):
        raise RuntimeError("broken on purpose")

    worker.row_scorer._scorer = fail


def test_scoring_that_fails_in_the_worker_stops_pruning_and_nothing_else(engine):
    llm, log = engine
    questions = list(enumerate(prompts()))[:3]
    before = settled_events(llm, log)
    assert all(request.kv_transfer_params for request in ask(llm, questions, 60))
    assert len(settled_events(llm, log)) == len(before) + len(questions) * TRACES
    lines = read_events([log])
    llm.collective_rpc(broken)
    for _ in range(2):
        requests = ask(llm, questions, 150)
        assert {request.outputs[0].finish_reason for request in requests} <= {"length", "stop"}
        for request in requests:
            assert "failed" in request.kv_transfer_params["step"]["error"]
    assert read_events([log]) == lines
