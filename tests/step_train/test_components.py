"""Training in few coordinates of the states: what is found, read, kept, and exported."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from places import ROOT
from prepared_process import killed
from safetensors.torch import load_file, save_file
from synthetic_traces import write_traces

from step_infer.errors import InputError
from step_infer.scorer.network import StepScorer, load_scorer
from step_train.commands import main
from step_train.data.feature_blocks import EvaluationBatches, FeatureRows
from step_train.data.projection import Projection
from step_train.data.subspace import Subspace, contrasts, fit_subspace
from step_train.data.trace_table import TraceTable
from step_train.data.training_data import read_training_data
from step_train.export.run import export
from step_train.fit.config import FitConfig
from step_train.fit.run import fit

pytestmark = pytest.mark.slow

HIDDEN = 64


def config(traces, out, **options):
    defaults = {"max_epochs": 6, "learning_rate": 1e-3, "progress": False, "width": 64}
    defaults |= {"baselines": "none", "components": 16, "accelerator": "cpu"}
    defaults["verify_checksums"] = False  # tests put other states into shards
    return FitConfig(traces, out, **(defaults | options))


def data_of(settings):
    return read_training_data(
        settings.traces,
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        max_traces_per_class=settings.max_traces_per_class,
        seed=settings.seed,
    )


def weights(run, name="last.ckpt"):
    return torch.load(run / name, weights_only=True)["state_dict"]


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def states(rows, table):
    return torch.cat([hidden.float() for hidden, _ in EvaluationBatches(rows, table)])


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    path = tmp_path_factory.mktemp("components") / "traces"
    write_traces(path, "label", questions=40, hidden_size=HIDDEN)
    return path


@pytest.fixture(scope="module")
def trained(traces, tmp_path_factory):
    return fit(config(traces, tmp_path_factory.mktemp("trained") / "run"))


def test_states_that_tell_right_from_wrong_are_learned_in_few_coordinates(trained):
    assert weights(trained.run)["scorer.net.0.weight"].shape == (64, 16)
    assert trained.metrics["steps"]["within_question"]["low"] > 0.9
    assert trained.metrics["steps"]["auroc"]["value"] > 0.95


def test_the_exported_scorer_reads_whole_states_and_gives_the_same_scores(
    traces, trained, tmp_path
):
    export(trained.run, tmp_path / "scorer.safetensors")
    scorer, card = load_scorer(tmp_path / "scorer.safetensors")
    assert (card.hidden_size, card.training["settings"]["components"]) == (HIDDEN, 16)
    assert scorer.net[0].weight.shape == (64, HIDDEN)
    saved = torch.load(trained.checkpoint, weights_only=True)
    small = StepScorer(16, 64)
    small.load_state_dict(
        {name.removeprefix("scorer."): tensor for name, tensor in saved["state_dict"].items()}
    )
    data = data_of(config(traces, tmp_path))
    hidden = states(data.rows, data.splits["test"])
    coordinates = Subspace(**saved["step_scorer_subspace"]).project(hidden)
    expected = small(coordinates) / trained.calibration["temperature"]
    torch.testing.assert_close(scorer(hidden), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_unfolding_is_exact_to_rounding_at_any_depth(depth):
    torch.manual_seed(0)
    subspace = Subspace(torch.randn(40) * 30, torch.randn(40, 9))
    small = StepScorer(9, 8, depth)
    hidden = torch.randn(50, 40) * 3 + subspace.mean_H
    whole = subspace.unfold(small, 8, depth)
    assert whole.net[0].in_features == 40
    torch.testing.assert_close(whole(hidden), small(subspace.project(hidden)), atol=1e-3, rtol=1e-4)


def test_coordinates_have_mean_0_and_deviation_1_over_the_training_steps(traces, tmp_path):
    data = data_of(config(traces, tmp_path))
    train = data.splits["train"]
    subspace = fit_subspace(data.rows, train, 16, memory_mib=64, seed=0)
    coordinates = subspace.project(states(data.rows, train))
    assert coordinates.mean(0).abs().max() < 1e-4
    assert (coordinates.std(0, correction=0) - 1).abs().max() < 1e-3
    assert torch.linalg.matrix_rank(subspace.weight_HK) == 16


def hidden_direction(path, kind):
    """Make wide states whose common variance is large, and tell nothing but in one small entry."""
    directory = write_traces(path, "noise", questions=40, hidden_size=HIDDEN)
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(HIDDEN // 2, HIDDEN, generator=generator)
    correct = {}
    for part, shard in zip(range(directory.num_parts), directory.shards(), strict=True):
        table = directory.part(part, ("is_correct", "row_start", "num_steps"))
        right = np.repeat(table["is_correct"].to_numpy(), table["num_steps"].to_numpy())
        tensors = load_file(shard.path)
        rows = len(right)
        hidden = 3 * torch.randn(rows, HIDDEN // 2, generator=generator) @ mixing
        hidden[:, :2] = 0.02 * torch.randn(rows, 2, generator=generator)
        sign = torch.from_numpy(2.0 * right - 1)
        if kind == "mean":
            hidden[:, 0] += 0.03 * sign
        else:  # no mean tells anything: two entries agree in sign, or do not
            hidden[:, 1] = hidden[:, 1].abs() * hidden[:, 0].sign() * sign
        tensors["hidden"] = hidden.to(torch.bfloat16)
        save_file(tensors, shard.path)
        correct[part] = right
    return directory


@pytest.mark.parametrize("kind", ["mean", "interaction"])
def test_what_tells_right_from_wrong_is_found_where_hardly_any_variance_lies(tmp_path, kind):
    hidden_direction(tmp_path / "traces", kind)
    settings = config(tmp_path / "traces", tmp_path / "run", max_epochs=12, test_fraction=0.3)
    data = data_of(settings)
    found = fit_subspace(data.rows, data.splits["train"], 16, memory_mib=64, seed=0)
    basis = torch.linalg.qr(found.weight_HK)[0]
    result = fit(dataclasses.replace(settings, learning_rate=3e-3))
    assert result.metrics["steps"]["within_question"]["low"] > 0.75, basis[:2].norm(dim=1)


def test_an_interaction_is_found_beside_more_large_directions_than_are_kept(tmp_path):
    path, size, large = tmp_path / "traces", 256, 24
    directory = write_traces(path, "noise", questions=160, hidden_size=size)
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(large, size, generator=generator)
    mixing[:, :2] = 0
    for part, shard in zip(range(directory.num_parts), directory.shards(), strict=True):
        table = directory.part(part, ("is_correct", "num_steps"))
        right = np.repeat(table["is_correct"].to_numpy(), table["num_steps"].to_numpy())
        hidden = torch.randn(len(right), size, generator=generator)
        hidden[:, 1] = hidden[:, 1].abs() * hidden[:, 0].sign() * torch.from_numpy(2.0 * right - 1)
        hidden += torch.randn(len(right), large, generator=generator) @ mixing
        tensors = load_file(shard.path) | {"hidden": hidden.to(torch.bfloat16)}
        save_file(tensors, shard.path)
    data = data_of(config(path, tmp_path))
    found = fit_subspace(data.rows, data.splits["train"], 16, memory_mib=64, seed=0)
    deviation = states(data.rows, data.splits["train"]).std(0)
    basis = torch.linalg.qr(found.weight_HK * deviation.unsqueeze(1))[0]
    assert basis[:2].norm(dim=1).min() > 0.7


def test_pure_noise_gives_half_within_its_interval(tmp_path):
    write_traces(tmp_path / "traces", "noise", questions=100, hidden_size=HIDDEN)
    result = fit(config(tmp_path / "traces", tmp_path / "run", test_fraction=0.4))
    for metric in ("auroc", "within_question"):
        found = result.metrics["steps"][metric]
        assert found["low"] <= 0.5 <= found["high"], metric
        assert found["value"] == pytest.approx(0.5, abs=0.06)


def test_states_that_name_the_question_only_are_half_within_question(tmp_path):
    write = {"questions": 100, "traces": 10, "hidden_size": HIDDEN}
    within = []
    for seed in range(3):
        path, run = tmp_path / f"traces-{seed}", tmp_path / f"run-{seed}"
        write_traces(path, "question", seed=seed, **write)
        steps = fit(config(path, run, test_fraction=0.4, seed=seed)).metrics["steps"]
        assert steps["auroc"]["low"] > 0.55
        within.append(steps["within_question"])
    # An interval misses 0.5 once in twenty times.
    assert sum(found["low"] <= 0.5 <= found["high"] for found in within) >= 2
    assert np.mean([found["value"] for found in within]) == pytest.approx(0.5, abs=0.02)


def test_contrasts_within_question_ignore_how_hard_questions_are():
    table = TraceTable(
        ("easy", "hard", "only right"),
        np.array([0, 0, 1, 1, 2]),
        np.array([True, False, True, False, True]),
        np.zeros(5, dtype=np.int64),
        np.arange(5),
        np.array([3, 1, 1, 3, 2]),
    )
    within_N, overall_N = contrasts(table).T
    np.testing.assert_allclose(within_N, [0.25, -0.75, 0.75, -0.25, 0.0])
    np.testing.assert_allclose(overall_N, [0.4, -0.6, 0.4, -0.6, 0.4])


def test_training_steps_are_read_twice_and_others_once_whatever_the_epochs(
    traces, tmp_path, monkeypatch
):
    settings = config(traces, tmp_path / "run", max_epochs=5, max_traces_per_class=60)
    read = np.zeros(10_000, dtype=int)
    gather = FeatureRows.gather

    def counted(self, rows, out):
        if self.hidden_size == HIDDEN:
            np.add.at(read, rows, 1)
        gather(self, rows, out)

    monkeypatch.setattr(FeatureRows, "gather", counted)
    fit(settings)
    data = data_of(settings)
    expected = np.zeros_like(read)
    for name, times in {"train": 2, "val": 1, "test": 1}.items():
        table = data.splits[name]
        first_N = data.rows.of_traces(table)
        for first, steps in zip(first_N, table.steps_N, strict=True):
            expected[first : first + steps] += times
    np.testing.assert_array_equal(read, expected)


def test_the_subspace_is_found_without_validation_and_test_questions(traces, tmp_path):
    settings = config(traces, tmp_path / "run")
    data = data_of(settings)
    before = fit_subspace(data.rows, data.splits["train"], 16, memory_mib=64, seed=0)
    write_traces(tmp_path / "other", "label", questions=40, hidden_size=HIDDEN)
    other = data_of(config(tmp_path / "other", tmp_path / "run"))
    for name in ("val", "test"):
        table = other.splits[name]
        for shard in np.unique(table.shard_N):
            path = other.rows._shards[shard].path
            tensors = load_file(path)
            here = table.shard_N == shard
            for start, steps in zip(table.row_start_N[here], table.steps_N[here], strict=True):
                tensors["hidden"][start : start + steps] = 1000.0
            save_file(tensors, path)
    other = data_of(config(tmp_path / "other", tmp_path / "run"))
    after = fit_subspace(other.rows, other.splits["train"], 16, memory_mib=64, seed=0)
    assert same(vars(before), vars(after))


def test_the_same_seed_gives_the_same_weights(traces, trained, tmp_path):
    again = fit(config(traces, tmp_path / "run"))
    assert same(weights(trained.run), weights(again.run))
    other = fit(config(traces, tmp_path / "other", seed=1))
    assert not same(weights(trained.run), weights(other.run))


def test_projected_features_are_those_of_the_same_steps_and_go_when_the_run_ends(
    traces, trained, tmp_path, monkeypatch
):
    assert not (trained.run / "projected").exists()
    monkeypatch.setattr("step_train.data.projection._SHARD_BYTES", 16 * 4 * 200)
    data = data_of(config(traces, tmp_path, max_traces_per_class=70))
    projection = Projection(tmp_path / "projected", data, 16, 64, seed=0)
    projection.write()
    subspace, rows, splits = projection.open()
    assert len(list((tmp_path / "projected").glob("shard-*"))) > 5
    for name, table in data.splits.items():
        np.testing.assert_array_equal(splits[name].correct_N, table.correct_N)
        torch.testing.assert_close(
            states(rows, splits[name]), subspace.project(states(data.rows, table))
        )


FIT = """
import step_train.data.projection
step_train.data.projection._SHARD_BYTES = 16 * 4 * 500
from step_train.fit.run import fit
from step_train.fit.config import FitConfig
fit(FitConfig(Path(sys.argv[4]), Path(sys.argv[5]), max_epochs=6, learning_rate=1e-3,
              progress=False, width=64, baselines="none", components=16, accelerator="cpu"))
"""


@pytest.mark.parametrize(
    ("count", "name"),
    [(1, "subspace.safetensors"), (3, "shard-*.safetensors"), (1, "metrics.json")],
    ids=["subspace", "third shard", "result"],
)
def test_a_run_that_was_killed_goes_on_to_the_same_result(
    traces, trained, tmp_path, monkeypatch, count, name
):
    killed(FIT, count, name, "before", traces, tmp_path / "run")
    monkeypatch.setattr("step_train.data.projection._SHARD_BYTES", 16 * 4 * 500)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("projected/shard-*")}
    assert len(kept) == {"shard-*.safetensors": 2, "subspace.safetensors": 0}.get(name, len(kept))
    written = []
    write = Projection._write_shard
    monkeypatch.setattr(
        Projection, "_write_shard", lambda *args: (written.append(args[1]), write(*args))
    )
    result = fit(config(traces, tmp_path / "run"))
    assert not {f"shard-{number:05d}.safetensors" for number in written} & {p.name for p in kept}
    assert result.metrics == trained.metrics
    assert same(weights(result.run), weights(trained.run))


def test_a_damaged_projected_file_is_made_again(traces, trained, tmp_path):
    data = data_of(config(traces, tmp_path))
    projection = Projection(tmp_path / "run" / "projected", data, 16, 1024, seed=0)
    projection.write()
    [shard] = (tmp_path / "run" / "projected").glob("shard-*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    projection.write()
    assert shard.read_bytes() == whole
    (tmp_path / "run" / "projected" / "subspace.safetensors").write_bytes(b"damaged")
    projection.write()
    assert same(vars(projection.open()[0]), torch.load(trained.checkpoint)["step_scorer_subspace"])


def test_two_processes_give_what_one_gives(traces, trained, tmp_path):
    options = ["--traces", traces, "--out", tmp_path / "run", "--devices", "2", "--width", "64"]
    options += ["--accelerator", "cpu", "--max-epochs", "6", "--learning-rate", "1e-3"]
    # With baselines that train in the first process alone, after both have trained.
    options += ["--components", "16", "--shuffles", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "step_train.commands", *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for name, value in trained.metrics["steps"]["auroc"].items():
        assert outcome["metrics"]["steps"]["auroc"][name] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_states_that_are_not_finite_are_named(tmp_path, split):
    write_traces(tmp_path / "traces", "label", questions=20, hidden_size=HIDDEN)
    settings = config(tmp_path / "traces", tmp_path / "run")
    data = data_of(settings)
    shard, row = data.splits[split].shard_N[-1], data.splits[split].row_start_N[-1]
    path = data.rows._shards[shard].path
    tensors = load_file(path)
    tensors["hidden"][row, 3] = torch.inf
    save_file(tensors, path)
    message = f"finite hidden states, found NaN or infinity in .*shard-0000{shard}.*, row {row}\\."
    with pytest.raises(InputError, match=message):
        fit(settings)


def test_entries_that_never_change_and_questions_of_one_class_do_no_harm(tmp_path):
    directory = write_traces(tmp_path / "traces", "label", questions=30, hidden_size=HIDDEN)
    for shard in directory.shards():
        tensors = load_file(shard.path)
        tensors["hidden"][:, 5] = 7.0
        tensors["hidden"][:, 6] = 0.0
        save_file(tensors, shard.path)
    result = fit(config(tmp_path / "traces", tmp_path / "run"))
    assert result.metrics["steps"]["within_question"]["value"] > 0.9
    export(result.run, tmp_path / "scorer.safetensors")


def test_a_checkpoint_without_its_subspace_is_refused(trained, tmp_path):
    saved = torch.load(trained.checkpoint, weights_only=True)
    del saved["step_scorer_subspace"]
    torch.save(saved, tmp_path / "best.ckpt")
    with pytest.raises(
        InputError, match="Expected the subspace of states of size 64 in .*, found none or"
    ):
        export(tmp_path / "best.ckpt", tmp_path / "scorer.safetensors", force=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--components", "3"], "--components of at least 8, or 0 for none, found 3"),
        (["--components", "-1"], "--components of at least 8, or 0 for none, found -1"),
        (["--components", "64"], "--components below the states' size 64, found 64"),
        (["--components", "many"], "components"),
    ],
)
def test_wrong_values_are_refused_in_one_line(
    traces, tmp_path, options, message, monkeypatch, capsys
):
    arguments = ["fit", "--traces", str(traces), "--out", str(tmp_path / "run"), *options]
    monkeypatch.setattr(sys, "argv", ["step-train", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "run").exists()


def test_a_memory_that_holds_too_few_states_is_refused(tmp_path):
    write_traces(tmp_path / "traces", "label", questions=5, hidden_size=2560)
    with pytest.raises(
        InputError, match=r"--memory-mib of at least 10 for --components 128, found 4"
    ):
        fit(config(tmp_path / "traces", tmp_path / "run", components=128, memory_mib=4))
