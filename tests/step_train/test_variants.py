"""Variants of the training recipe: each does what it says, is repeatable and can be exported."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file
from synthetic_traces import write_traces
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from step_infer.errors import InputError
from step_infer.scorer.network import StepScorer, load_scorer
from step_train.data.feature_blocks import EvaluationBatches
from step_train.data.normaliser import Normaliser
from step_train.data.trace_table import TraceTable
from step_train.data.training_data import read_training_data
from step_train.export.run import export
from step_train.fit.config import FitConfig
from step_train.fit.loss import StepLoss, ranking_loss, step_weights
from step_train.fit.module import ScorerModule
from step_train.fit.run import fit

pytestmark = pytest.mark.slow


def table(correct=(True, False, False), steps=(1, 2, 3), question=(0, 0, 1)):
    """Return three traces: right of one step, wrong of two and of three."""
    counts = np.array(steps)
    return TraceTable(
        ("a", "b"),
        np.array(question),
        np.array(correct),
        np.zeros(len(counts), dtype=np.int64),
        np.cumsum(counts) - counts,
        counts,
    )


LOGITS = torch.tensor([0.3, -0.2, 0.8, 1.5, -1.0, 0.1])
EVERY = torch.arange(6)


def config(traces, out, **options):
    defaults = {"max_epochs": 4, "learning_rate": 3e-3, "progress": False, "width": 32}
    defaults["baselines"] = "none"
    return FitConfig(traces, out, **(defaults | options))


def data_of(settings):
    return read_training_data(
        settings.traces,
        val_fraction=settings.val_fraction,
        test_fraction=settings.test_fraction,
        max_traces_per_class=None,
        seed=settings.seed,
    )


def weights(result, name="best.ckpt"):
    return torch.load(result.run / name, weights_only=True)["state_dict"]


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_default_loss_is_the_papers():
    loss = StepLoss(table())
    assert loss.pos_weight == 5
    expected = binary_cross_entropy_with_logits(
        LOGITS, torch.tensor([1.0, 0, 0, 0, 0, 0]), pos_weight=torch.tensor(5.0), reduction="sum"
    )
    torch.testing.assert_close(loss(LOGITS, EVERY), expected)
    # Rows are looked up by their number, in any order.
    some = torch.tensor([4, 0])
    torch.testing.assert_close(
        loss(LOGITS[some], some), 5 * softplus(-LOGITS[0]) + softplus(LOGITS[4])
    )


def test_trace_weighting_gives_every_trace_the_same_weight():
    weight_S = step_weights(table(), "trace", 0.0)
    np.testing.assert_allclose(weight_S, [2, 1, 1, 2 / 3, 2 / 3, 2 / 3])
    loss = StepLoss(table(), trace_weighting="trace")
    assert loss.pos_weight == pytest.approx(2)
    wrong = softplus(LOGITS[1:]) * torch.tensor(weight_S[1:])
    expected = 2 * 2 * softplus(-LOGITS[0]) + wrong.sum()
    torch.testing.assert_close(loss(LOGITS, EVERY), expected.float())


def test_early_steps_weigh_less_by_their_progress():
    weight_S = step_weights(table(), "none", 0.6)
    raw = np.array([1, 0.7, 1, 0.6, 0.8, 1])
    np.testing.assert_allclose(weight_S, raw / raw.mean())
    both = step_weights(table(), "trace", 0.6)
    np.testing.assert_allclose(np.bincount([0, 1, 1, 2, 2, 2], weights=both), [2, 2, 2])
    assert both[1] / both[2] == pytest.approx(0.7)


def test_label_smoothing_moves_both_labels():
    loss = StepLoss(table(), label_smoothing=0.2)
    logits = LOGITS.clone().requires_grad_()
    loss(logits, EVERY).backward()
    # A wrong step of target 0.1 and positive weight 5: 0.9 sigmoid(z) - 0.1 * 5 sigmoid(-z).
    expected = 0.9 * torch.sigmoid(LOGITS[1]) - 0.5 * torch.sigmoid(-LOGITS[1])
    torch.testing.assert_close(logits.grad[1], expected)


def test_the_ranking_loss_compares_steps_of_one_question_only():
    right = torch.tensor([True, False, False, True, False])
    question = torch.tensor([0, 0, 0, 1, 2])
    logits = torch.tensor([0.5, 0.1, 2.0, 9.0, -9.0], requires_grad=True)
    loss = ranking_loss(logits, right, question)
    expected = (softplus(torch.tensor(-0.4)) + softplus(torch.tensor(1.5))) / 2
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad[3:].tolist() == [0, 0]
    assert logits.grad[0] < 0 < logits.grad[2]
    alone = torch.tensor([1.0], requires_grad=True)
    ranking_loss(alone, torch.tensor([True]), torch.tensor([0])).backward()
    assert alone.grad.item() == 0
    whole = StepLoss(table(question=(0, 0, 0)), ranking_weight=2.0)
    plain = StepLoss(table(question=(0, 0, 0)))
    pairs = softplus(LOGITS[1:] - LOGITS[0]).mean()
    torch.testing.assert_close(whole(LOGITS, EVERY), plain(LOGITS, EVERY) + 2 * 6 * pairs)


def test_the_ranking_loss_ranks_within_question_where_difficulty_drowns_it(tmp_path):
    """States show the question's share of right traces loudly, and the trace's label faintly."""
    path = tmp_path / "traces"
    write_traces(path, "both", questions=60, traces=12, strength=1.0, part_traces=10**6)
    options = {"max_epochs": 6, "val_fraction": 0.2, "test_fraction": 0.4, "batch_size": 512}
    plain = fit(config(path, tmp_path / "plain", **options)).metrics["steps"]
    ranked = fit(config(path, tmp_path / "ranked", **options, ranking_weight=5.0))
    steps = ranked.metrics["steps"]
    assert plain["auroc"]["value"] > plain["within_question"]["value"] + 0.05
    assert steps["within_question"]["value"] > plain["within_question"]["value"] + 0.02
    assert steps["auroc"]["value"] < plain["auroc"]["value"]


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    path = tmp_path_factory.mktemp("variants") / "traces"
    write_traces(path, "label", questions=40, strength=1.5)
    return path


VARIANTS = {
    "trace": {"trace_weighting": "trace"},
    "early": {"early_discount": 0.5},
    "smooth": {"label_smoothing": 0.1},
    "ranking": {"ranking_weight": 1.0},
    "deep": {"depth": 3},
    "linear": {"depth": 0},
    "normalise": {"normalise": "standard", "baselines": "all", "shuffles": 1},
    "dropout": {"dropout": 0.3},
    "confidence": {"confidence": True},
    "select": {"select": "within_question"},
}


class Interrupt(Callback):
    """Fails in the middle of the third epoch."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 2 and trainer.global_step % 3 == 2:
            raise RuntimeError("interrupted")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_repeatable_and_goes_on_and_travels(traces, tmp_path, name):
    whole = fit(config(traces, tmp_path / "whole", **VARIANTS[name]))
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(config(traces, tmp_path / "run", **VARIANTS[name]), [Interrupt()])
    again = fit(config(traces, tmp_path / "run", **VARIANTS[name]))
    assert same(weights(whole, "last.ckpt"), weights(again, "last.ckpt"))
    assert whole.metrics == again.metrics
    assert whole.metrics["steps"]["within_question"]["value"] > 0.7
    card = export(whole.run, tmp_path / "scorer.safetensors")
    scorer, loaded = load_scorer(tmp_path / "scorer.safetensors")
    assert loaded == card
    assert card.depth == VARIANTS[name].get("depth", 1)
    assert len(scorer.net) == 2 * card.depth + 1


def test_normalised_states_have_mean_0_and_deviation_1_of_the_training_steps(traces, tmp_path):
    data = data_of(config(traces, tmp_path))
    normaliser = Normaliser(16)
    normaliser.measure(data.rows, data.splits["train"])
    batches = EvaluationBatches(data.rows, data.splits["train"])
    hidden = torch.cat([batch for batch, _ in batches])
    normal = normaliser(hidden)
    assert normal.mean(0).abs().max() < 1e-5
    assert (normal.std(0, correction=0) - 1).abs().max() < 1e-4


def test_folded_weights_give_the_scores_of_normalised_states():
    torch.manual_seed(0)
    normaliser = Normaliser(16)
    normaliser.mean_H.copy_(torch.randn(16) * 30)
    normaliser.std_H.copy_(torch.rand(16) * 5 + 0.01)
    scorer = StepScorer(16, 8)
    hidden = (torch.randn(50, 16) * normaliser.std_H + normaliser.mean_H).float()
    before = scorer(normaliser(hidden))
    normaliser.fold(scorer)
    torch.testing.assert_close(scorer(hidden), before, atol=2e-4, rtol=1e-4)


def test_an_entry_that_never_changes_is_not_divided_by_zero(tmp_path):
    directory = write_traces(tmp_path / "traces", "label", questions=10)
    for shard in directory.shards():
        tensors = load_file(shard.path)
        tensors["hidden"][:, 5] = 7.0
        save_file(tensors, shard.path)
    data = data_of(config(tmp_path / "traces", tmp_path, val_fraction=0.3, test_fraction=0.3))
    normaliser = Normaliser(16)
    normaliser.measure(data.rows, data.splits["train"])
    assert (normaliser.mean_H[5], normaliser.std_H[5]) == (7, 1)


def test_dropout_leaves_out_hidden_units_in_training_only():
    module = ScorerModule(
        StepScorer(4, 2000),
        StepLoss(table()),
        learning_rate=1,
        weight_decay=0,
        record={},
        dropout=0.4,
    )
    hidden = torch.randn(3, 4)
    module.eval()
    assert torch.equal(module(hidden), module.scorer(hidden))
    torch.manual_seed(0)
    module.train()
    drawn = torch.stack([module(hidden) for _ in range(300)])
    assert drawn.std(0).min() > 0
    torch.testing.assert_close(drawn.mean(0), module.scorer(hidden), atol=0.1, rtol=0)


def test_the_epoch_can_be_chosen_within_question(traces, tmp_path):
    result = fit(config(traces, tmp_path / "run", select="within_question"))
    values = [row["val_within_question"] for row in result.history]
    assert result.best_epoch == 1 + int(np.argmax(values))
    assert [row["val_score"] for row in result.history] == values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": -1}, "--depth of at least 0"),
        ({"dropout": 1.0}, "--dropout from 0"),
        ({"early_discount": 1.5}, "--early-discount from 0 to 1"),
        ({"label_smoothing": -0.1}, "--label-smoothing from 0"),
        ({"ranking_weight": -1.0}, "--ranking-weight of at least 0"),
        ({"ranking_weight": 1.0, "devices": 2}, "--devices 1 with --ranking-weight"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        config("traces", "run", **options)


def test_the_loss_keeps_four_bytes_a_step_and_eight_with_weights():
    for options, most in ({}, 4), ({"trace_weighting": "trace", "early_discount": 0.5}, 8):
        split = table(steps=(10_000, 20_000, 30_000))
        loss = StepLoss(split, ranking_weight=1.0, **options)
        assert loss.nbytes <= most * split.num_steps + 100
        # No array of all steps is left behind with the table either.
        assert all(np.asarray(value).size <= 3 for value in vars(split).values())
