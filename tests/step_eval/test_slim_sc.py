"""Slim-SC: thoughts, their similarity, and which trace is stopped."""

import numpy as np
import pytest
from fake_engine import made_up_model, write_questions
from places import CHECKPOINT

from step_eval.config import EvalConfig
from step_eval.methods.slim_sc import SlimSC, ThoughtMonitor, hashed_ngrams, load_encoder
from step_eval.replay.config import ReplayConfig
from step_infer.client.trace import Sampling, TracePlan
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryRule

END, THINK_END = 0, 1
RULE = BoundaryRule("blank_line", frozenset({END}), THINK_END, r"\n\n")


def monitor(count=3, min_keep=1, seed=0, **settings):
    """Return traces that talk in numbers, compared by hashed n-grams."""
    settings = SlimSC(**{"threshold": 0.9, "min_tokens": 1, "min_thoughts": 1, **settings})
    plans = [TracePlan("q", i, (1,), seed + i, Sampling()) for i in range(count)]

    def decode(token_ids):
        return " ".join(map(str, token_ids))

    return ThoughtMonitor(settings, hashed_ngrams, RULE, decode, plans, min_keep)


def running(*traces):
    return {("q", i): tokens for i, tokens in enumerate(traces) if tokens is not None}


def test_texts_that_are_the_same_have_similarity_1_and_others_less():
    vectors = hashed_ngrams(["add 3 to 4", "add 3 to 4", "add 3 to 5", "so what ?"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert vectors[0] @ vectors[1] == pytest.approx(1)
    assert 0.3 < vectors[0] @ vectors[2] < 0.8
    assert vectors[0] @ vectors[3] == pytest.approx(0, abs=0.05)


def test_one_of_two_traces_with_the_same_latest_thought_is_stopped():
    found = monitor()
    assert found.stop(running([5, 6, END], [7, 8, END], [9, 9, END])) == []
    (stopped,) = found.stop(running([5, 6, END, 4, 3, END], [7, 8, END, 4, 3, END], [9, 9, END]))
    assert stopped in {("q", 0), ("q", 1)}
    left = [5, 6, END, 4, 3, END, 9, 9, END]
    state = running(left, None, [9, 9, END]) if stopped[1] else running(None, left, [9, 9, END])
    assert len(found.stop(state)) == 1


def test_a_thought_that_is_not_complete_is_not_compared():
    assert monitor(2).stop(running([5, 6], [5, 6])) == []


def test_only_the_latest_thoughts_of_running_traces_count():
    found = monitor(2)
    assert found.stop(running([5, 6, END, 7, 8, END], [9, 9])) == []
    assert found.stop(running([5, 6, END, 7, 8, END], [9, 9, END, 5, 6, END])) == []
    assert found.stop(running(None, [9, 9, END, 5, 6, END, 7, 8, END])) == []


def test_diversity_stops_the_trace_that_repeats_itself():
    for order in (1, -1):
        found = monitor(2, choice="diversity", threshold=0.99)
        dull, lively = [5, 5, END, 5, 5, 6, END], [7, 8, END, 2, 9, END]
        assert found.stop(running(*[dull, lively][::order])) == []
        both = [[*dull, 3, 3, END], [*lively, 3, 3, END]][::order]
        assert found.stop(running(*both)) == [("q", 0 if order == 1 else 1)]


def test_random_takes_either_trace_and_the_same_for_the_same_seeds():
    same = running([5, 6, END], [5, 6, END])
    chosen = [monitor(2, seed=seed, choice="random").stop(same) for seed in range(30)]
    assert {key for (key,) in chosen} == {("q", 0), ("q", 1)}
    assert chosen == [monitor(2, seed=seed, choice="random").stop(same) for seed in range(30)]


@pytest.mark.parametrize("min_keep", [1, 3])
def test_min_keep_traces_stay_though_all_are_alike(min_keep):
    found = monitor(5, min_keep)
    stopped = found.stop(running(*[[5, 6, END]] * 5))
    assert len(set(stopped)) == len(stopped) == 5 - min_keep


def test_short_steps_are_joined_and_first_thoughts_are_not_compared():
    found = monitor(2, min_tokens=5, min_thoughts=2)
    first = [5, END, 6, END, 7, END]  # one thought of six tokens
    assert found.stop(running(first, first)) == []
    second = [*first, 8, 8, 8, 8, END]
    assert len(found.stop(running(second, second))) == 1


def test_nothing_is_compared_after_the_end_of_thinking():
    found = monitor(2)
    assert found.stop(running([5, THINK_END, 4, 4, END], [6, THINK_END, 4, 4, END])) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": 0.0}, r"--slim.threshold in \(0, 1\], found 0.0"),
        ({"choice": "worst"}, "--slim.choice out of random, diversity, found 'worst'"),
        ({"min_tokens": 0}, "--slim.min-tokens of at least 1, found 0"),
        ({"encoder": "/nowhere"}, "Expected the folder of an embedding model .*'/nowhere'"),
    ],
)
def test_bad_settings_are_one_line(options, match):
    with pytest.raises(InputError, match=match) as error:
        SlimSC(**options)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_embedding_model_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(
        InputError, match=rf"an embedding model at {tmp_path}, found: [A-Z].* Hint: without --slim"
    ) as error:
        load_encoder(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_replay_has_no_text_to_compare(tmp_path):
    with pytest.raises(InputError, match="can be replayed under, found 'slim-sc': it looks"):
        ReplayConfig(traces="x", out=str(tmp_path), methods="sc,slim-sc")


def test_its_settings_decide_what_a_record_holds(tmp_path):
    config = EvalConfig(
        model=made_up_model(tmp_path),
        questions=write_questions(tmp_path / "questions.jsonl", 1),
        out=str(tmp_path / "out"),
        methods="slim-sc",
        slim=SlimSC(threshold=0.8),
    )
    assert config.result_settings()["slim.threshold"] == 0.8


def test_an_embedding_model_by_path_gives_the_mean_over_a_texts_own_tokens(tmp_path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    texts = ["1 2 3", "4 5 6 7 8 9 10 11 12"]
    found = load_encoder(str(CHECKPOINT))(texts)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = AutoModel.from_pretrained(CHECKPOINT).eval()
    for text, vector in zip(texts, found, strict=True):  # without padding
        with torch.inference_mode():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state.float().mean(1)
        direct = torch.nn.functional.normalize(mean, dim=-1)[0].numpy()
        assert float(direct @ vector) > 0.999
