"""The sweep: variants against the paper's recipe, paired, resumable, chosen on validation only."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from command_harness import run_command
from synthetic_traces import write_traces

from step_infer.errors import InputError
from step_train.commands import main
from step_train.data.trace_table import read_traces
from step_train.fit.run import train
from step_train.fit.sweep import question_ranking, sweep
from step_train.fit.sweep_compare import compare, gain
from step_train.fit.sweep_config import (
    COMBINED,
    PAPER,
    VARIANTS,
    SweepConfig,
    combine,
    read_variants,
)

pytestmark = pytest.mark.slow

FILE = """
paper: {max_epochs: 2, width: 16, batch_size: 256}
fast: {learning_rate: 0.01}
often: {batch_size: 32}
same: {patience: 7}
slow: {learning_rate: 1e-7}
"""


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "traces"
    write_traces(path, "label", questions=40, strength=1.0)
    return path


@pytest.fixture(scope="module")
def done(traces, tmp_path_factory):
    out = tmp_path_factory.mktemp("swept")
    (out / "variants.yaml").write_text(FILE)
    config = SweepConfig(
        traces, out / "sweep", out / "variants.yaml", seeds=2, test_fraction=0.3, progress=False
    )
    return config, sweep(config)


def rows(result):
    return {row["name"]: row for row in result["variants"]}


def test_a_variant_that_learns_beats_one_that_does_not(done):
    config, result = done
    found = rows(result)
    assert found["fast"]["test_difference"]["low"] > 0
    assert found["fast"]["test_difference"]["includes_zero"] is False
    assert result["winner"] in ("fast", COMBINED)
    assert found[PAPER]["test_difference"]["value"] is None
    expected = found["fast"]["test"]["value"] - found[PAPER]["test"]["value"]
    assert found["fast"]["test_difference"]["value"] == pytest.approx(expected)
    assert set(found["fast"]["test_at"]) == {"25%", "50%", "75%"}
    assert json.loads((config.out / "sweep.json").read_text())["winner"] == result["winner"]
    with (config.out / "sweep.csv").open() as file:
        written = {row["name"]: row for row in csv.DictReader(file)}
    assert float(written["fast"]["test_value"]) == found["fast"]["test"]["value"]


def test_what_helped_is_tried_together_the_better_of_two_values(done):
    _, result = done
    combined = rows(result)[COMBINED]["settings"]
    assert combined == {"max_epochs": 2, "width": 16, "batch_size": 32, "learning_rate": 0.01}
    variants = {
        PAPER: {"width": 8},
        "a": {"width": 8, "depth": 2},
        "b": {"width": 8, "depth": 3},
        "c": {"width": 8, "dropout": 0.1},
        "d": {"width": 8, "learning_rate": 1.0},
    }
    gains = {"a": 0.01, "b": 0.02, "c": 0.005, "d": -0.01}
    assert combine(variants, gains) == {"width": 8, "depth": 3, "dropout": 0.1}
    assert combine(variants, {"a": 0.1, "b": 0.2, "c": 0.0, "d": -1.0}) == {}


def test_all_fits_share_the_test_questions_and_only_those(done):
    config, _ = done
    splits = [
        json.loads((config.out / "fits" / name / f"seed-{seed}" / "split.json").read_text())
        for name in ("paper", "fast")
        for seed in (0, 1)
    ]
    assert all(split["test"] == splits[0]["test"] for split in splits)
    assert splits[0] == splits[2]
    assert splits[0]["val"] != splits[1]["val"]
    assert not {q for s in splits for q in s["val"] + s["train"]} & set(splits[0]["test"])


def test_finished_fits_are_only_read(done, monkeypatch):
    config, result = done
    monkeypatch.setattr("step_train.fit.sweep.train", None)
    assert sweep(config) == result


def test_an_interrupted_sweep_goes_on_to_the_same_result(done, tmp_path, monkeypatch):
    config, result = done
    config = dataclasses.replace(config, out=tmp_path / "sweep")
    calls = []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise RuntimeError("killed")
        return train(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("step_train.fit.sweep.train", dies)
        with pytest.raises(RuntimeError, match="killed"):
            sweep(config)
    assert len(list(config.out.glob("fits/*/*/metrics.json"))) == 3
    assert sweep(config)["variants"] == result["variants"]


def test_several_jobs_give_what_one_gives(done, tmp_path):
    config, result = done
    left = shutil.ignore_patterns("fast", "often")  # these are to be made, the others are there
    shutil.copytree(config.out / "fits", tmp_path / "sweep" / "fits", ignore=left)
    other = SweepConfig(
        config.traces,
        tmp_path / "sweep",
        config.variants,
        seeds=2,
        test_fraction=0.3,
        jobs=2,
        progress=False,
    )
    again = sweep(other)
    assert (other.out / "fits" / "fast" / "seed-1" / "metrics.json").exists()
    assert again["variants"] == result["variants"]


def outcome(seed, offset, questions):
    generator = np.random.default_rng(seed)
    values = {f"q{i}": [float(generator.uniform(0.4, 0.9)) + offset] * 3 for i in questions}
    return {"seed": seed, "val": values, "test": values, "epochs": 1, "aggregator": "mean"}


def test_differences_are_paired_by_question_and_seed():
    """Questions differ by far more than the variants; the pairs do not."""
    found = {
        name: [outcome(seed, offset, range(seed, 20 + seed)) for seed in range(3)]
        for name, offset in ((PAPER, 0.0), ("better", 0.01), ("same", 0.0))
    }
    result = compare(found, {name: {} for name in found})
    by_name = rows(result)
    assert by_name["better"]["test_difference"]["low"] == pytest.approx(0.01)
    assert by_name["better"]["test_difference"]["includes_zero"] is False
    assert by_name["same"]["test_difference"]["includes_zero"] is True
    assert by_name["better"]["test"]["high"] - by_name["better"]["test"]["low"] > 0.05
    assert gain(found, "better", "val") == pytest.approx(0.01)
    assert result["winner"] == "better"
    found["better"][0]["val"].pop("q3")
    with pytest.raises(InputError, match="Expected the val questions of variant 'paper'"):
        compare(found, {name: {} for name in found})


def test_the_winner_is_chosen_without_the_test_questions():
    found = {
        name: [outcome(0, offset, range(9)) | {"test": outcome(0, -offset, range(9))["test"]}]
        for name, offset in ((PAPER, 0.0), ("val", 0.02), ("test", -0.02))
    }
    result = compare(found, {name: {} for name in found})
    assert result["winner"] == "val"
    assert rows(result)["test"]["test"]["value"] > rows(result)["val"]["test"]["value"]


def test_a_question_ranks_by_its_own_traces_at_parts_of_their_steps(tmp_path):
    table, _ = read_traces(write_traces(tmp_path / "traces", "label", questions=3))
    late = table.step_S + 1 > np.ceil(0.5 * table.steps_N[table.trace_S])
    score_S = np.where(late, table.label_S, 0.5).astype(float)
    found = question_ranking(table, score_S, "last")
    assert set(found) == set(table.questions)
    for at_25, at_50, at_75 in found.values():
        assert (at_25, at_50) == (0.5, 0.5)
        assert at_75 == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deep: {dept: 2}", "variant 'deep', found 'dept'"),
        ("deep: {depth: -2}", "in variant 'deep', found: Expected --depth"),
        ("deep: {trace_weighting: both}", "in variant 'deep', found: .*trace_weighting"),
        ("deep: {seed: 3}", "found 'seed'"),
        ("combined: {depth: 2}", "names of variants other than 'combined'"),
        ("[1, 2]", "Expected names of variants"),
        ("a: {b: c: d}", "Expected a YAML file"),
    ],
)
def test_bad_variants_are_refused_by_name(tmp_path, text, message):
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_variants(SweepConfig(tmp_path, tmp_path / "out", tmp_path / "v.yaml"))


def test_the_built_in_variants_change_one_thing_each(tmp_path):
    found = read_variants(SweepConfig(tmp_path, tmp_path / "out"))
    assert next(iter(found)) == PAPER
    assert found[PAPER] == {}
    keys = [tuple(changes) for name, changes in found.items() if name != PAPER]
    assert all(len(key) == 1 or "batch_size" in key for key in keys)
    assert set(found) == set(VARIANTS)


def test_the_command_prints_a_table_and_the_winner(done):
    config, result = done
    options = ["--traces", config.traces, "--out", config.out, "--variants", config.variants]
    run = run_command(main, "sweep", *options, "--seeds", "2", "--test-fraction", "0.3")
    assert run.returncode == 0, run.stderr
    assert f"Winner, chosen on validation questions alone: {result['winner']}" in run.stdout
    assert "includes zero" in run.stdout
    assert "sweep.csv" in run.stdout


def test_a_variant_may_have_other_traces_of_the_same_questions(traces, tmp_path):
    other = tmp_path / "other"
    write_traces(other, "label", questions=40, strength=4.0)
    file = tmp_path / "variants.yaml"
    file.write_text(
        f"paper: {{max_epochs: 2, width: 8, learning_rate: 0.01}}\nother: {{traces: {other}}}\n"
    )
    config = SweepConfig(traces, tmp_path / "out", file, seeds=1, combine=False, progress=False)
    result = sweep(config)
    found = rows(result)
    assert found["other"]["settings"]["traces"] == str(other)
    assert found["other"]["test"]["value"] > found[PAPER]["test"]["value"]
    assert result["winner"] == "other"
    assert rows(json.loads((config.out / "sweep.json").read_text())) == found
