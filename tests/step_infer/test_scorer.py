"""The step scorer, its file, its card, and which model it belongs to."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from safetensors.torch import save_file

from step_infer.errors import InputError
from step_infer.scorer.aggregate import AGGREGATORS
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.card import CARD_KEY, ScorerCard
from step_infer.scorer.identity import ModelIdentity, config_hash, identify
from step_infer.scorer.network import StepScorer, load_scorer, read_card, save_scorer

H = 16
MODEL = ModelIdentity("some/model", "c" * 64, "t" * 64, H)


def card(**changes: Any) -> ScorerCard:
    fields: dict[str, Any] = {
        "base_model": "some/model",
        "model_config_hash": MODEL.config_hash,
        "tokenizer_hash": MODEL.tokenizer_hash,
        "hidden_size": H,
        "width": 32,
        "boundary": BoundaryRule("blank_line", frozenset({3, 1}), 4, r"\n\n").to_dict(),
        "aggregator": "last",
        "metrics": {"auroc": 0.7},
    }
    return ScorerCard(**(fields | changes))


def write(path: Path, **changes: Any) -> StepScorer:
    torch.manual_seed(0)
    scorer = StepScorer(H, 32)
    save_scorer(path, scorer, card(**changes))
    return scorer


def test_round_trip_keeps_weights_and_card(tmp_path: Path) -> None:
    path = tmp_path / "scorer.safetensors"
    scorer = write(path)
    loaded, loaded_card = load_scorer(path, MODEL)
    hidden_SH = torch.randn(5, H).bfloat16()
    assert torch.equal(loaded(hidden_SH), scorer(hidden_SH))
    assert loaded_card == card() == read_card(path)
    assert loaded_card.boundary_rule.token_ids == {1, 3}
    assert not loaded.training


LONG = "x\nERROR forged \x1b[31m" * 10_000


@pytest.mark.parametrize(
    "refused",
    [
        lambda: card(base_model=LONG).check_model(ModelIdentity("m", "c", "t", H + 1)),
        lambda: card(base_model=LONG, tokenizer_hash=LONG).check_model(MODEL),
        lambda: card(layer=LONG).check_layers(),
        lambda: card().check_shapes({f"net.0{LONG}": (1,)}, "file"),
        lambda: ScorerCard.from_json(json.dumps({"schema_version": LONG}), "file"),
        lambda: ScorerCard.from_json(json.dumps({"schema_version": 1, LONG: 1}), "file"),
        lambda: ScorerCard.from_json(card(aggregator=LONG).to_json(), "file"),
    ],
)
def test_texts_of_a_card_are_cut_and_stay_in_their_line(refused: Any) -> None:
    with pytest.raises(InputError, match="^Expected") as caught:
        refused()
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()


def test_one_float32_logit_a_step() -> None:
    logits = StepScorer(H, 4)(torch.zeros(3, H, dtype=torch.float16))
    assert (logits.shape, logits.dtype) == ((3,), torch.float32)


def test_weights_are_stored_as_float32(tmp_path: Path) -> None:
    save_scorer(tmp_path / "s", StepScorer(H, 32).bfloat16(), card())
    assert load_scorer(tmp_path / "s")[0].net[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 2 * H}, "Expected hidden_size 16 .* found 32"),
        ({"config_hash": "d" * 64}, "Expected model_config_hash cccc.* found dddd.*--allow-mismat"),
        ({"tokenizer_hash": "u" * 64}, "Expected tokenizer_hash tttt.* found uuuu"),
    ],
)
def test_another_model_is_refused_by_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write(tmp_path / "s")
    with pytest.raises(InputError, match=message):
        load_scorer(tmp_path / "s", dataclasses.replace(MODEL, **change))


def test_a_mismatch_can_be_allowed_but_not_the_hidden_size(tmp_path: Path) -> None:
    write(tmp_path / "s")
    other = dataclasses.replace(MODEL, config_hash="d" * 64)
    load_scorer(tmp_path / "s", other, ["model_config_hash"])
    wider = dataclasses.replace(MODEL, hidden_size=2 * H)
    with pytest.raises(InputError, match="Expected --allow-mismatch out of"):
        load_scorer(tmp_path / "s", wider, ["hidden_size"])


def test_files_that_are_no_scorers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected a scorer file at"):
        load_scorer(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="Expected a safetensors file"):
        load_scorer(tmp_path / "text")
    save_file({"a": torch.ones(1)}, tmp_path / "bare")
    with pytest.raises(InputError, match="Expected a scorer card"):
        load_scorer(tmp_path / "bare")


def test_tensors_must_be_those_of_the_card(tmp_path: Path) -> None:
    tensors = {name: t.clone() for name, t in StepScorer(H, 8).state_dict().items()}
    save_file(tensors, tmp_path / "s", metadata={CARD_KEY: card().to_json()})
    with pytest.raises(InputError, match=r"Expected tensor net\.0\.bias of shape \(32,\)"):
        load_scorer(tmp_path / "s")
    with pytest.raises(InputError, match=r"Expected tensor net\.0\.bias"):
        save_scorer(tmp_path / "new", StepScorer(H, 8), card())
    assert not (tmp_path / "new").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    scorer = StepScorer(H, 32)
    torch.nn.init.constant_(scorer.net[2].bias, torch.nan)
    save_scorer(tmp_path / "s", scorer, card())
    with pytest.raises(InputError, match=r"Expected finite weights .* in net\.2\.bias"):
        load_scorer(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "Expected scorer card schema_version 1 .* found 9"),
        ({"aggregator": "median"}, "Expected aggregator out of mean"),
        ({"boundary": {"kind": "x"}}, "Expected a boundary rule"),
        ({"colour": "red"}, "Expected a scorer card in F"),
        ({"hidden_size": "x"}, "a scorer card in F, found: hidden_size 'x', .* no int. Hint"),
        ({"hidden_size": 16.0}, "found: hidden_size 16.0, which is no int"),
        ({"hidden_size": True}, "found: hidden_size True, which is no int"),
        ({"width": None}, "found: width None, which is no int"),
        ({"width": 0}, "found: width 0, which is below 1"),
        ({"depth": "1"}, "found: depth '1', which is no int"),
        ({"depth": -1}, "found: depth -1, which is below 0"),
        ({"layer": 3}, "found: layer 3, which is no str"),
        ({"aggregator": []}, r"found: aggregator \[\], which is no str"),
        ({"metrics": None}, "found: metrics None, which is no dict"),
        ({"boundary": 3}, "found: boundary 3, which is no dict"),
        ({"confidence": {"weight": 1.0}}, "Expected finite numbers for weight and mean"),
    ],
)
def test_a_damaged_card_is_refused(change: dict[str, Any], message: str) -> None:
    text = json.dumps(json.loads(card().to_json()) | change)
    with pytest.raises(InputError, match=message):
        ScorerCard.from_json(text, "F")


def test_a_card_nested_too_deep_is_refused() -> None:
    with pytest.raises(InputError, match="Expected a scorer card in F, found: .*recursion"):
        ScorerCard.from_json("[" * 99999, "F")


@pytest.mark.parametrize(
    ("name", "value"), [("mean", 0.5), ("last", 0.2), ("min", 0.1), ("ema", 0.69)]
)
def test_aggregators(name: str, value: float) -> None:
    expected = 0.8 * (0.8 * 0.9 + 0.2 * 0.1) + 0.2 * 0.2 if name == "ema" else value
    scores = [0.9, 0.1, 0.2] if name != "mean" else [0.9, 0.1, 0.5]
    assert AGGREGATORS[name](scores) == pytest.approx(expected)


def write_model(folder: Path, **config: Any) -> str:
    from data_gen.ledger.tokenizer import build_tokenizer

    build_tokenizer(128).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_identity_is_of_what_the_model_computes(tmp_path: Path) -> None:
    first = identify(write_model(tmp_path / "a", hidden_size=H, rope_theta=1e4, dtype="bfloat16"))
    same = identify(write_model(tmp_path / "b", rope_theta=1e4, hidden_size=H, dtype="float32"))
    other = identify(write_model(tmp_path / "c", hidden_size=H, rope_theta=1e6))
    assert first.hidden_size == H
    assert first.config_hash == same.config_hash != other.config_hash
    assert first.tokenizer_hash == other.tokenizer_hash


def test_copies_of_one_model_are_one_model(tmp_path: Path) -> None:
    shape = {"model_type": "qwen2", "hidden_size": H, "num_hidden_layers": 28, "vocab_size": 640}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    hub = shape | {"rope_theta": 1e6, "rms_norm_eps": 1e-06, "tie_word_embeddings": True}
    hub |= {"sliding_window": 32768, "max_window_layers": 21, "torch_dtype": "bfloat16"}
    gguf = shape | {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}}
    gguf |= {"rms_norm_eps": 9.999999974752427e-07, "tie_word_embeddings": False}
    gguf |= {"layer_types": ["full_attention"] * 28, "sliding_window": None, "pad_token_id": 0}
    first = identify(write_model(tmp_path / "hub", **hub))
    second = identify(write_model(tmp_path / "gguf", **gguf))
    path = tmp_path / "gguf" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    size = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"] |= {f"[PAD{row}]": row for row in range(size, size + 5)}
    path.write_text(json.dumps(tokenizer))
    third = identify(str(tmp_path / "gguf"))
    for copy in (second, third):
        assert (copy.config_hash, copy.tokenizer_hash) == (first.config_hash, first.tokenizer_hash)
    tokenizer["model"]["vocab"][f"[PAD{size}]"] = size + 9  # a token that only looks like one
    path.write_text(json.dumps(tokenizer))
    assert identify(str(tmp_path / "gguf")).tokenizer_hash != first.tokenizer_hash


def test_the_scorer_that_comes_for_qwen_coder_fits_the_hubs_model_and_one_from_gguf() -> None:
    path = ROOT / "checkpoints/qwen2.5-coder-1.5b-instruct/scorer/scorer.safetensors"
    scorer, its_card = load_scorer(path)
    shape = {"model_type": "qwen2", "hidden_size": 1536, "num_hidden_layers": 28}
    shape |= {"num_attention_heads": 12, "num_key_value_heads": 2, "intermediate_size": 8960}
    hub = shape | {"rope_theta": 1000000.0, "tie_word_embeddings": True, "sliding_window": 32768}
    gguf = shape | {"rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}}
    for config in (hub, gguf | {"tie_word_embeddings": False, "sliding_window": None}):
        assert config_hash(config) == its_card.model_config_hash
    assert its_card.base_model == "Qwen/Qwen2.5-Coder-1.5B-Instruct"
    assert its_card.confidence_term is not None
    assert scorer(torch.randn(3, its_card.hidden_size)).isfinite().all()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"num_key_value_heads": 4}),
        ({}, {"head_dim": 8}),
        ({"rope_theta": 10000}, {}),
        ({"rope_theta": 1e6}, {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}),
    ],
)
def test_defaults_may_be_written_out(first: dict[str, Any], second: dict[str, Any]) -> None:
    shape = {"model_type": "m", "hidden_size": 32, "num_attention_heads": 4}
    assert config_hash(shape | first) == config_hash(shape | second)
    assert config_hash(shape | first) == config_hash({"text_config": shape | second})


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "n"},
        {"num_hidden_layers": 3},
        {"num_key_value_heads": 2},
        {"head_dim": 16},
        {"intermediate_size": 9},
        {"num_experts": 8},
        {"rope_theta": 1e6},
    ],
)
def test_other_networks_are_other_models(change: dict[str, Any]) -> None:
    shape = {"model_type": "m", "hidden_size": 32, "num_attention_heads": 4, "head_dim": 8}
    assert config_hash(shape) != config_hash(shape | change)


def test_models_that_cannot_be_identified(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no folder at '/no/such'"):
        identify("/no/such")
    with pytest.raises(InputError, match=r"Expected config\.json in the model folder"):
        identify(str(tmp_path))
    with pytest.raises(InputError, match="Expected hidden_size"):
        identify(write_model(tmp_path / "a", layers=2))
    (tmp_path / "a" / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"Expected an object in the config\.json"):
        identify(str(tmp_path / "a"))
    (tmp_path / "a" / "config.json").write_text('{"hidden_size": 4}')
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"Expected a tokenizer\.json"):
        identify(str(tmp_path / "a"))


def test_a_scorer_is_never_written_into_a_model_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="outside model folders"):
        save_scorer(tmp_path / "scorer.safetensors", StepScorer(H, 8), card())
    assert not (tmp_path / "scorer.safetensors").exists()


def test_a_hub_id_that_cannot_be_reached_is_refused_at_once() -> None:
    # Nothing listens there; the hub's own client tries for half a minute, with longer and longer
    # pauses, which are counted here and not made.
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    code = """
import time
from step_infer.errors import InputError
from step_infer.scorer.identity import identify
pauses = []
time.sleep = pauses.append
try:
    identify("nobody/nothing")
except InputError as error:
    print(sum(pauses), error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("0 Expected a model folder or a reachable hub id, found"), done
    assert "ConnectError" in done.stdout or "ConnectionError" in done.stdout
