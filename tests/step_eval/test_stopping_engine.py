"""DeepConf and Slim-SC, which stop traces themselves, on the demo model in one real engine."""

import contextlib

import numpy as np
import pytest
from places import CHECKPOINT

from data_gen.ledger.__main__ import LedgerConfig, write_questions
from data_gen.ledger.questions import iter_questions
from step_eval.comparison import voted_group
from step_eval.config import EvalConfig
from step_eval.methods.deepconf import DeepConf
from step_eval.methods.slim_sc import SlimSC
from step_eval.records import RecordStore
from step_eval.run import evaluate
from step_infer.client.llm import StepLLM
from step_infer.client.trace import Sampling
from step_infer.errors import InputError

pytestmark = pytest.mark.engine

SAMPLING = Sampling(1.0, 1.0, 0)
MAX_MODEL_LEN = 2048


@pytest.fixture(scope="module")
def llm():
    with StepLLM(str(CHECKPOINT), confidence=True, max_model_len=MAX_MODEL_LEN) as llm:
        yield llm


@pytest.fixture(scope="module")
def records(llm, tmp_path_factory):
    """Return the records of an evaluation of both kinds of DeepConf."""
    folder = tmp_path_factory.mktemp("deepconf")
    questions = folder / "questions.jsonl"
    write_questions(LedgerConfig(questions, "test", count=2, seed=5))
    config = EvalConfig(
        model=str(CHECKPOINT),
        methods="deepconf-low,deepconf-high",
        questions=str(questions),
        out=str(folder / "out"),
        num_traces=12,
        warmup=6,
        window=64,
        engine={"max_model_len": MAX_MODEL_LEN},
        sampling=SAMPLING,
        system="",
    )

    def start(model, *, confidence, max_model_len, kv_budget_tokens, **_):
        """Return the engine that runs: it must be as the method asks."""
        assert (model, max_model_len) == (llm.model, llm.max_model_len)
        assert (confidence, kv_budget_tokens) == (llm.confidence, None)
        return contextlib.nullcontext(llm)

    evaluate(config, start)
    return RecordStore(folder / "out").read()


@pytest.mark.parametrize(("method", "percentile"), [("deepconf-low", 90), ("deepconf-high", 10)])
def test_unsure_traces_are_stopped_and_neither_they_nor_an_unsure_warm_up_vote(
    records, method, percentile
):
    assert len(records[method]) == 2
    for record in records[method]:
        warm_up, others = record.traces[:6], record.traces[6:]
        assert all(trace.finish_reason in ("stop", "length") for trace in warm_up)
        bar = np.percentile([trace.lowest_confidence for trace in warm_up], percentile)
        assert {t.finish_reason for t in others} <= {"stop", "length", "confidence"}
        kept = [t for t in others if t.finish_reason != "confidence"]
        assert kept, "the last trace of the group was stopped"
        for trace in others:
            if trace.pruned:
                assert trace.lowest_confidence < bar
                assert trace.tokens >= 64
                assert trace.answer is None
        for trace in record.traces:
            votes = trace.answer is not None and trace.lowest_confidence > bar - 1e-4
            assert (trace.group is not None) == votes
        weights = {}
        for trace in record.traces:
            if trace.group is not None:
                weights[trace.group] = weights.get(trace.group, 0) + trace.lowest_confidence
        winner = max(weights, key=weights.get, default=None)
        assert voted_group(record, "lowest-confidence") == winner


def test_low_stops_more_than_high_and_saves_tokens(records):
    stopped = {m: sum(t.pruned for r in group for t in r.traces) for m, group in records.items()}
    tokens = {m: sum(t.tokens for r in group for t in r.traces) for m, group in records.items()}
    assert stopped["deepconf-low"] > stopped["deepconf-high"]
    assert tokens["deepconf-low"] < tokens["deepconf-high"]


@pytest.fixture(scope="module")
def plans(llm):
    question = next(iter_questions("test", 5)).text
    return llm.plan("q", question, 12, SAMPLING, 0, "")


def ordered(traces):
    return sorted(traces, key=lambda trace: trace.trace_id)


def test_watched_traces_are_the_same_as_others_where_none_is_stopped(llm, plans):
    watched = ordered(SlimSC(min_thoughts=10_000).stream(llm, plans[:6]))
    others = ordered(llm.stream(plans[:6]))
    assert [trace.token_ids for trace in watched] == [trace.token_ids for trace in others]
    assert [trace.text for trace in watched] == [trace.text for trace in others]
    assert [trace.answer for trace in watched] == [trace.answer for trace in others]
    assert any(trace.answer is not None for trace in watched)


@pytest.mark.parametrize("choice", ["random", "diversity"])
def test_a_real_engine_stops_traces_that_are_alike_and_forgets_them(llm, plans, choice):
    steps = []
    settings = SlimSC(threshold=0.7, choice=choice)
    traces = list(settings.stream(llm, plans, lambda: steps.append(llm.stats().running)))
    assert sorted(trace.trace_id for trace in traces) == list(range(12))
    stopped = [trace for trace in traces if trace.finish_reason == "similar"]
    assert 0 < len(stopped) < 12
    for trace in stopped:
        assert trace.token_ids
        assert trace.answer is None
        assert trace.stopped
    for trace in traces:
        if trace not in stopped:
            assert trace.finish_reason in ("stop", "length")
    assert max(steps) > 0
    (one,) = llm.stream(plans[:1])  # the engine goes on
    assert one.finish_reason in ("stop", "length")
    assert not llm._engine.has_unfinished_requests()


def test_generate_votes_without_the_traces_that_were_stopped(llm):
    question = next(iter_questions("test", 5)).text
    sampler = SlimSC(threshold=0.7).stream
    (result,) = llm.generate([question], 8, SAMPLING, 0, "", False, sampler)
    voters = {index for _, _, indices in result.vote.groups for index in indices}
    assert voters == {i for i, trace in enumerate(result.traces) if trace.answer is not None}
    assert any(trace.finish_reason == "similar" for trace in result.traces)


def test_deepconf_on_an_engine_without_confidences_is_refused(llm, plans, monkeypatch):
    monkeypatch.setattr(llm, "confidence", False)
    with pytest.raises(InputError, match="Expected an engine with confidence=True for windows"):
        list(DeepConf().stream(llm, plans))
