"""Ending a question's traces in a real engine: when its vote is decided, and over its budget."""

import dataclasses
import itertools
import signal
from collections import Counter

import pytest
from engine_precision import ANY_BATCH
from places import CHECKPOINT, SCORER
from settled_events import mark_by, read_settled_events

from data_gen.ledger.questions import iter_questions
from step_infer.client.deciding import Budget
from step_infer.client.kinds import AnswerOptions
from step_infer.client.llm import StepLLM
from step_infer.client.trace import Sampling
from step_infer.errors import InputError
from step_infer.scorer.network import load_scorer, save_scorer

pytestmark = pytest.mark.engine

SAMPLING = Sampling(1.0, 1.0, 0, 1400)
QUESTIONS = [question.text for question in itertools.islice(iter_questions("test", 0), 1, 3)]
N = 8


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    return tmp_path_factory.mktemp("events") / "events.jsonl"


@pytest.fixture(scope="module")
def llm(events, tmp_path_factory):
    """An engine whose scorer has a threshold for the rule likely."""
    scorer = tmp_path_factory.mktemp("scorer") / "scorer.safetensors"
    network, card = load_scorer(SCORER)
    deciding = {"score": {"threshold": 0.6}}
    save_scorer(scorer, network, dataclasses.replace(card, deciding=deciding))
    options = {"max_model_len": 2048, "event_log": events, **ANY_BATCH}
    with StepLLM(str(CHECKPOINT), scorer, **options) as llm:
        yield llm


def answer(llm, **options):
    return llm.generate(QUESTIONS, N, SAMPLING, system="", progress=False, **options)


@pytest.fixture(scope="module")
def whole(llm):
    """The same questions with all their traces."""
    return answer(llm, stop_rule="never")


def assert_beginnings(results, whole):
    """Every trace that was ended has the first tokens of the one that was not."""
    for result, all_of_it in zip(results, whole, strict=True):
        assert [trace.trace_id for trace in result.traces] == list(range(N))
        for trace, entire in zip(result.traces, all_of_it.traces, strict=True):
            assert trace.token_ids == entire.token_ids[: len(trace.token_ids)]
            if not trace.stopped:
                assert trace.token_ids == entire.token_ids


def test_never_lets_every_trace_run_to_its_end(whole):
    for result in whole:
        assert (result.ended, result.why) == ("finished", None)
        assert not any(trace.stopped for trace in result.traces)


def test_by_default_a_question_ends_when_its_vote_is_decided(llm, whole):
    results = answer(llm)
    assert [result.answer for result in results] == [result.answer for result in whole]
    assert_beginnings(results, whole)
    ended = [result for result in results if result.ended == "decided"]
    assert ended
    for result in ended:
        assert result.why == "unbeatable"
        assert any(trace.finish_reason == "decided" for trace in result.traces)


def test_likely_ends_it_no_later_by_the_scores_of_running_traces(llm, whole):
    def tokens(results):
        return sum(len(trace.token_ids) for result in results for trace in result.traces)

    results = answer(llm, stop_rule="likely")
    assert_beginnings(results, whole)
    assert any(result.why == "likely" for result in results)
    assert tokens(results) <= tokens(answer(llm)) < tokens(whole)


def test_waves_begin_traces_only_while_the_vote_is_open(llm):
    results = answer(llm, wave=2)
    for result in results:
        spans = [(t.submitted_s, t.finished_s) for t in result.traces if t.token_ids]
        for start, _ in spans:
            assert sum(begun <= start < end for begun, end in spans) <= 2
        late = [trace for trace in result.traces if not trace.token_ids]
        assert all(trace.finish_reason == "decided" for trace in late)
    first, second = (min(t.submitted_s for t in r.traces if t.token_ids) for r in results[:2])
    ends = max(trace.finished_s for trace in results[0].traces)
    assert first <= second < ends  # the next question fills the room


def test_an_answer_kind_says_what_answers_are_and_which_are_equal(llm, whole):
    last_digit = AnswerOptions("regex", r"boxed\{\d*(\d)\}")
    results = answer(llm, stop_rule="never", answers=last_digit)
    for result, entire in zip(results, whole, strict=True):
        digits = [t.answer and t.answer[-1] for t in entire.traces]
        assert [t.answer for t in result.traces] == digits
        assert result.vote.groups[0][0] == result.answer
        assert {form for form, _, _ in result.vote.groups} == set(digits) - {None}
    alike = answer(llm, answers=AnswerOptions("number", tolerance=1000))
    for result in alike:
        assert len(result.vote.groups) == 1
        assert result.vote.share == 1.0


def test_a_budget_of_tokens_ends_a_question_within_a_step(llm, whole):
    results = answer(llm, stop_rule="never", budget=Budget(tokens=400))
    assert_beginnings(results, whole)
    for result in results:
        assert (result.ended, result.why) == ("over_budget", "tokens")
        tokens = sum(len(trace.token_ids) for trace in result.traces)
        assert 400 <= tokens < 400 + 2 * N


def test_a_budget_of_seconds_brings_the_best_answer_so_far(llm):
    results = answer(llm, stop_rule="never", budget=Budget(seconds=0.2))
    for result in results:
        assert (result.ended, result.why) == ("over_budget", "seconds")
        votes = [t.answer for t in result.traces if t.answer is not None]
        assert (result.answer is None) == (not votes)


def test_the_event_log_and_the_counters_say_why(llm, events):
    before = Counter(event.get("reason") for event in _read(events, llm))
    results = answer(llm, budget=Budget(tokens=1500))
    after = Counter(event.get("reason") for event in _read(events, llm))
    ended = Counter(
        trace.finish_reason for result in results for trace in result.traces if trace.token_ids
    )
    for reason in ("decided", "over_budget"):
        assert after[reason] - before[reason] == ended[reason]
    assert ended["decided"] + ended["over_budget"] > 0


def _read(events, llm):
    return read_settled_events([events], mark_by(llm))[0]


def test_the_next_question_is_answered_as_if_nothing_had_been_ended(llm, whole):
    answer(llm, budget=Budget(tokens=50))
    again = answer(llm, stop_rule="never")
    for result, entire in zip(again, whole, strict=True):
        assert [t.token_ids for t in result.traces] == [t.token_ids for t in entire.traces]


def test_bad_settings_are_refused_before_anything_is_sampled(llm):
    with pytest.raises(InputError, match="stop rule out of never, unbeatable, likely"):
        answer(llm, stop_rule="soon")
    with pytest.raises(InputError, match="wave of at least 1 trace"):
        answer(llm, wave=0)
    with pytest.raises(InputError, match="more than 0 seconds"):
        Budget(seconds=0)
    with pytest.raises(InputError, match="at least 1 token"):
        Budget(tokens=0)


@pytest.fixture
def interrupts():
    """Take Ctrl-C as Python does, though a shell started the tests in the background without it."""
    theirs = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, theirs)


@pytest.mark.parametrize("place", ["add_request", "execute_model", "abort_request"])
@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_leaves_the_engine_as_it_was(llm, whole, monkeypatch, place):
    engine = llm._engine
    core = engine.engine_core.engine_core
    owner = core.model_executor if place == "execute_model" else engine
    theirs = getattr(owner, place)
    numbers = itertools.count()

    def interrupted(*arguments, **options):
        outcome = theirs(*arguments, **options)
        if next(numbers) == (0 if place == "abort_request" else 5):
            signal.raise_signal(signal.SIGINT)
        return outcome

    monkeypatch.setattr(owner, place, interrupted)

    def read_one(traces):
        next(traces)
        traces.close()

    with pytest.raises(KeyboardInterrupt):
        read_one(llm.stream(llm.plan("q", QUESTIONS[0], N, SAMPLING, system="")))
    monkeypatch.undo()
    assert not core.scheduler.requests
    assert not engine.output_processor.request_states
    assert core.scheduler.kv_cache_manager.usage == 0
    again = answer(llm, stop_rule="never")
    for result, before in zip(again, whole, strict=True):
        assert [t.token_ids for t in result.traces] == [t.token_ids for t in before.traces]
