"""Temperature calibration: fitted on validation questions, and part of the weights at export."""

import numpy as np
import pytest
import torch
from synthetic_traces import write_traces

from data_gen.traces.directory import TraceDirectory
from step_infer.scorer.network import load_scorer
from step_train.data.training_data import read_training_data
from step_train.evaluation.calibration import calibrate, fit_temperature
from step_train.evaluation.metrics import ece
from step_train.export.run import export
from step_train.fit.config import FitConfig
from step_train.fit.run import fit


def sample(temperature, count=20000):
    """Return labels that follow the logits divided by a temperature, and the logits."""
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=3.0, size=count)
    right = generator.random(count) < 1 / (1 + np.exp(-logits / temperature))
    return right, torch.from_numpy(logits).float()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_temperature_of_the_labels_is_found(temperature):
    label_S, logits_S = sample(temperature)
    assert fit_temperature(label_S, logits_S) == pytest.approx(temperature, rel=0.06)


def test_scores_become_probabilities():
    found = calibrate(*sample(4.0))
    assert found["ece_before"] > 0.15
    assert found["ece_after"] < 0.015
    assert found["on"] == "validation questions"


def test_logits_that_tell_nothing_or_the_opposite_get_the_largest_temperature():
    label_S, logits_S = sample(1.0)
    assert fit_temperature(label_S, -logits_S) == 100
    assert fit_temperature(label_S, torch.zeros_like(logits_S)) == pytest.approx(1)


@pytest.mark.parametrize("normalise", ["none", "standard"])
def test_the_exported_scorer_gives_the_calibrated_scores(tmp_path, normalise):
    write_traces(tmp_path / "traces", "label", questions=40, strength=1.5)
    config = FitConfig(
        tmp_path / "traces",
        tmp_path / "run",
        max_epochs=4,
        learning_rate=3e-3,
        width=32,
        normalise=normalise,
        progress=False,
    )
    result = fit(config)
    card = export(result.run, tmp_path / "scorer.safetensors")
    assert card.calibration == result.calibration
    assert card.calibration["temperature"] != pytest.approx(1, abs=0.01)
    scorer, _ = load_scorer(tmp_path / "scorer.safetensors")
    data = read_training_data(
        config.traces, val_fraction=0.15, test_fraction=0.15, max_traces_per_class=None, seed=0
    )
    scored = {}
    for name in ("val", "test"):
        table = data.splits[name]
        shards = TraceDirectory(config.traces).shards()
        hidden = [
            shards[shard].hidden(start, start + steps)
            for shard, start, steps in zip(
                table.shard_N, table.row_start_N, table.steps_N, strict=True
            )
        ]
        with torch.no_grad():
            score_S = torch.sigmoid(scorer(torch.cat(hidden)).double()).numpy()
        scored[name] = ece(table.label_S, score_S)
    assert scored["val"] == pytest.approx(result.calibration["ece_after"], abs=1e-4)
    ours = result.metrics["steps"]["ece"]
    assert scored["test"] == pytest.approx(
        ours if isinstance(ours, float) else ours["value"], abs=1e-4
    )
