"""step-eval replay without an engine: recorded tables, shapes, signals, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT, SCORER
from synthetic_traces import write_traces

from step_eval.command import command
from step_eval.methods.registry import METHODS
from step_eval.ranks import Ranks
from step_eval.recorded.files import read_pool, read_table, record, write_table
from step_eval.recorded.traces import (
    PoolQuestion,
    PoolTrace,
    TracePool,
    shared_beginnings,
    texts_that_share,
)
from step_eval.replay.config import ReplayConfig
from step_eval.replay.engine import chosen_traces
from step_eval.replay.run import prepare, read_traces
from step_eval.replay.shapes import (
    kv_bytes_per_token,
    read_shape,
    shape_names,
    write_model,
    write_scorer,
)
from step_eval.replay.signals import signals
from step_eval.simulation.traces import block_contents
from step_infer.client.answers import vote
from step_infer.client.grading import Grader
from step_infer.client.kinds import AnswerOptions
from step_infer.client.prompt import load_tokenizer
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.identity import identify
from step_infer.scorer.network import load_scorer

RECORDED = ROOT / "benchmarks" / "recorded" / "ledger.parquet"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Keep the shapes' folders out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def config(out, **changes):
    return ReplayConfig(**{"traces": str(RECORDED), "out": str(out), **changes})


def test_the_shapes_have_the_sizes_of_the_models_they_are_named_for():
    from transformers import AutoConfig

    sizes = {}
    for name in shape_names():
        shape = read_shape(name)
        found = AutoConfig.for_model(**shape)
        heads = getattr(found, "head_dim", found.hidden_size // found.num_attention_heads)
        attention = 2 * found.num_attention_heads + 2 * found.num_key_value_heads
        layer = found.hidden_size * (attention * heads + 3 * found.intermediate_size)
        words = found.vocab_size * found.hidden_size * (1 if found.tie_word_embeddings else 2)
        sizes[name] = round((found.num_hidden_layers * layer + words) / 1e9, 1)
    assert sizes == {"qwen3-4b": 4.0, "qwen3-8b": 8.2, "phi-4-15b": 14.7}


def test_the_memory_of_a_token_follows_from_the_shape():
    found = {name: kv_bytes_per_token(read_shape(name)) for name in shape_names()}
    assert found == {"qwen3-4b": 147_456, "qwen3-8b": 147_456, "phi-4-15b": 204_800}
    assert kv_bytes_per_token({"hidden_size": 64}) is None


def test_a_model_without_weights_can_be_identified_and_has_a_scorer_of_its_width(tmp_path):
    write_model(tmp_path / "model", read_shape("phi-4-15b"))
    assert identify(str(tmp_path / "model")).hidden_size == 5120
    assert load_tokenizer(str(tmp_path / "model")).decode([0, 7]) is not None
    rule = BoundaryRule("stride", frozenset(), None, None, 8)
    path = tmp_path / "scorer.safetensors"
    write_scorer(path, tmp_path / "model", "phi-4-15b", rule, "min")
    net, card = load_scorer(path, identify(str(tmp_path / "model")))
    assert net.net[0].in_features == 5120
    assert (card.aggregator, card.base_model) == ("min", "phi-4-15b")
    write_scorer(path, tmp_path / "model", "phi-4-15b", rule, "min")
    again = load_scorer(path)[0].state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in net.state_dict().items())


def test_a_table_holds_what_was_written(tmp_path):
    traces = (
        PoolTrace(30, (4, 20), "right", True, False, (0.5, None), None, (2.0, 3.5), 4.0),
        PoolTrace(12, (), None, False, True),
    )
    pool = TracePool((PoolQuestion("q", 7, traces, "42"),), "somewhere", "min")
    write_table(tmp_path / "table.parquet", pool)
    found = read_table(tmp_path / "table.parquet")
    assert found.questions == pool.questions
    assert found.aggregator == "min"
    assert "somewhere" in found.source


@given(
    texts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=8),
    prompt_tokens=st.integers(1, 5),
    block_size=st.integers(1, 4),
)
def test_a_table_without_texts_keeps_which_blocks_are_alike(texts, prompt_tokens, block_size):
    pool = [PoolTrace(len(text), (), "1", True, text=np.array(text)) for text in texts]
    shared = shared_beginnings([np.array(text) for text in texts])
    again = texts_that_share([len(text) for text in texts], shared)
    found = [dataclasses.replace(t, text=text) for t, text in zip(pool, again, strict=True)]
    wanted = block_contents(pool, prompt_tokens, block_size)
    assert block_contents(found, prompt_tokens, block_size) == wanted


def test_a_recording_of_collected_traces_has_their_blocks(tmp_path):
    source = write_traces(tmp_path / "traces", "label", questions=3)
    record(source.path, tmp_path / "recorded.parquet")
    collected, recorded = read_pool(source.path), read_table(tmp_path / "recorded.parquet")
    for before, after in zip(collected.questions, recorded.questions, strict=True):
        wanted = block_contents(before.traces, before.prompt_tokens, 4)
        assert wanted is not None
        assert block_contents(after.traces, after.prompt_tokens, 4) == wanted


def test_a_recording_does_not_take_the_place_of_its_source(tmp_path):
    copy = tmp_path / "table.parquet"
    copy.write_bytes(RECORDED.read_bytes())
    with pytest.raises(InputError, match="Expected an output file apart from what is read"):
        command(["record", "--traces", str(copy), "--out", str(copy)])
    assert copy.read_bytes() == RECORDED.read_bytes()


def test_the_recorded_demo_traces_are_complete():
    pool = read_table(RECORDED)
    assert [len(question.traces) for question in pool.questions] == [64] * 8
    assert all(question.truth for question in pool.questions)
    for question in pool.questions:
        for trace in question.traces:
            assert len(trace.scores) == len(trace.positions) == len(trace.confidences) > 0
            assert trace.positions[-1] < trace.tokens - 1


def test_lengths_are_scaled_to_the_mean_asked_for_and_boundaries_with_them(tmp_path):
    plain, one = read_traces(config(tmp_path))
    longer, factor = read_traces(config(tmp_path, mean_tokens=1870))
    assert one == 1
    assert longer.mean_response_tokens == pytest.approx(1870, rel=1e-3)
    assert factor == pytest.approx(1870 / plain.mean_response_tokens)
    before, after = plain.questions[0].traces[0], longer.questions[0].traces[0]
    assert after.scores == before.scores
    assert after.confidences == before.confidences
    for old, new in zip(before.positions, after.positions, strict=True):
        assert (new + 1) / after.tokens == pytest.approx((old + 1) / before.tokens, abs=0.002)


def test_confidences_of_steps_follow_from_running_means():
    trace = PoolTrace(20, (4, 14), "1", True, False, (0.5, 0.6), None, (2.0, 4.0), 3.5)
    found = signals(trace)
    assert found["positions"] == [4, 14]
    assert found["confidences"] == pytest.approx([2.0, (15 * 4 - 5 * 2) / 10])
    assert found["tail_confidence"] == pytest.approx((20 * 3.5 - 15 * 4) / 5)
    assert "confidences" not in signals(dataclasses.replace(trace, confidences=()))


def test_the_inputs_decide_the_engine_and_its_kv_budget(tmp_path):
    inputs, pool = prepare(config(tmp_path, shape="qwen3-8b", limit=2, num_traces=16))
    assert len(inputs.mine) == 2
    longest = max(q.prompt_tokens + t.tokens for q in pool.questions for t in q.traces)
    engine = inputs.config.engine
    assert longest < engine["max_model_len"] <= longest + 16
    assert (engine["max_num_seqs"], engine["load_format"]) == (16, "dummy")
    assert inputs.mean_response_tokens == pool.mean_response_tokens
    assert inputs.card.aggregator == "min", "the aggregator that the scores were recorded for"
    assert inputs.settings()["replay.factor"] == 1


def test_the_recording_tells_the_oracle_which_traces_a_repeat_has(tmp_path):
    settings = {"shape": "qwen3-8b", "num_traces": 32, "repeats": 2, "methods": "all"}
    inputs, pool = prepare(config(tmp_path, **settings))
    assert "slim-sc" not in inputs.config.method_names
    question = pool.questions[0]
    first = inputs.right_traces(0, question.question_id)
    assert first == [trace.right for trace in question.traces[:32]]
    again = inputs.right_traces(1, question.question_id)
    chosen = chosen_traces(question, 32, 1, inputs.config.seed)
    assert again == [trace.right for trace in chosen]
    assert again != first
    ranks = Ranks(inputs).for_question("oracle", 1, inputs.mine[0])
    assert ranks == {number: float(right) for number, right in enumerate(again)}


def test_every_setting_of_a_method_can_be_given():
    ours = {field.name for field in dataclasses.fields(ReplayConfig)}
    able = [method for method in METHODS.values() if method.no_replay is None]
    theirs = {name for method in able for name in method.settings}
    assert {"window", "min_keep"} <= theirs <= ours


def refused(*options):
    with pytest.raises(InputError) as error:
        command(["replay", *(str(option) for option in options)])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_input_is_refused_in_one_line(tmp_path):
    good = ("--traces", RECORDED, "--out", tmp_path / "out")
    assert "required: --traces" in refused("--out", tmp_path / "out")
    assert "none.parquet" in refused(*good[2:], "--traces", tmp_path / "none.parquet")
    assert "Expected a shape out of phi-4-15b, qwen3-4b, qwen3-8b" in refused(
        *good, "--shape", "gpt-9"
    )
    assert "--methods out of" in refused(*good, "--methods", "sc,magic")
    assert "either --length-scale or --mean-tokens" in refused(
        *good, "--length-scale", "2", "--mean-tokens", "100"
    )
    assert "--length-scale above 0" in refused(*good, "--length-scale", "0")
    assert "--kv-budget in (0, 1]" in refused(*good, "--kv-budget", "2")
    assert "at most 40960 tokens" in refused(*good, "--length-scale", "100")
    (tmp_path / "bad.parquet").write_text("no table")
    assert "recorded traces of step-eval record" in refused(
        *good[2:], "--traces", tmp_path / "bad.parquet"
    )


def test_methods_need_the_signals_that_they_go_by(tmp_path):
    pool = read_table(RECORDED)
    bare = tuple(
        dataclasses.replace(
            question, traces=tuple(dataclasses.replace(t, scores=()) for t in question.traces)
        )
        for question in pool.questions
    )
    write_table(tmp_path / "bare.parquet", dataclasses.replace(pool, questions=bare))
    options = ("--traces", tmp_path / "bare.parquet", "--out", tmp_path / "out")
    assert "recorded step scores" in refused(*options, "--methods", "sc,step")
    bare = tuple(
        dataclasses.replace(
            question, traces=tuple(dataclasses.replace(t, confidences=()) for t in question.traces)
        )
        for question in pool.questions
    )
    write_table(tmp_path / "bare.parquet", dataclasses.replace(pool, questions=bare))
    assert "recorded confidences" in refused(*options, "--methods", "deepconf-low")
    unknown = tuple(dataclasses.replace(question, truth=None) for question in pool.questions)
    write_table(tmp_path / "bare.parquet", dataclasses.replace(pool, questions=unknown))
    assert "Expected a ground truth for every question" in refused(*options)


def test_a_scorer_of_another_width_is_refused(tmp_path):
    scorer = SCORER
    options = ("--traces", RECORDED, "--out", tmp_path / "out", "--scorer", scorer)
    assert "width 4096 (qwen3-8b), found 256" in refused(*options)


def test_a_directory_of_another_command_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": 1, "kind": "traces"}))
    options = ("--traces", RECORDED, "--out", tmp_path)
    assert "another command's" in refused(*options)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_answers_are_compared_as_they_were_when_the_traces_were_made(tmp_path):
    # Three right answers, and four wrong ones in two forms of one number.
    forms = ["7"] * 3 + ["3", "3.0"] * 2
    traces = tuple(PoolTrace(9, (3, 6), form, form == "7") for form in forms)
    question = PoolQuestion("q", 5, traces, "7")
    for kind in ("exact", "math"):
        path = tmp_path / f"{kind}.parquet"
        write_table(path, TracePool((question,), "a test", answers=AnswerOptions(kind)))
        inputs, pool = prepare(config(tmp_path / "out", traces=str(path), methods="sc"))
        assert pool.answers == inputs.config.answer_options == AnswerOptions(kind)
        assert inputs.settings()["answers.kind"] == kind
        answers = [trace.answer for trace in pool.questions[0].traces]
        with Grader(answers=inputs.config.answer_options) as grader:
            winner = vote(answers, equal=grader.same(answers)).answer
        assert winner == ("7" if kind == "exact" else "3")


@pytest.mark.parametrize("kind", ["exact", "math"])
def test_equal_wrong_answers_of_collected_traces_have_one_form(tmp_path, kind):
    forms = ["1/2", "3", "3.0", "0.5", "6/2", None, "3", "8"]
    right = {"1/2", "0.5"}
    changes = {
        n: {
            "extracted_answer": form,
            "is_correct": None if form is None else form in right,
            "ground_truth": "1/2",
        }
        for n, form in enumerate(forms)
    }
    options = AnswerOptions(kind)
    made = write_traces(tmp_path / "traces", "label", questions=1, changes=changes, answers=options)
    one = ["right", "3", "3", "right", "3", None, "3", "8"]
    expected = one if kind == "math" else ["right", "3", "3.0", "right", "6/2", None, "3", "8"]
    for path in (made.path, made.part_paths()[0]):
        (question,) = read_pool(path).questions
        assert [trace.answer for trace in question.traces] == expected
    assert read_pool(made.path).answers == options
    record(made.path, tmp_path / "recorded.parquet")
    pool = read_table(tmp_path / "recorded.parquet")
    assert pool.answers == options
    assert [trace.answer for trace in pool.questions[0].traces] == expected
