"""Metrics of a slice of steps: scikit-learn's values, and a plain bootstrap's intervals."""

import numpy as np
import pytest

from step_train.evaluation.metrics import METRICS
from step_train.evaluation.slice_metrics import SLICE_METRICS, slice_metrics


def samples(seed, count=3000, questions=40):
    generator = np.random.default_rng(seed)
    score = generator.random(count)
    return generator.random(count) < score, score, generator.integers(questions, size=count)


@pytest.mark.parametrize("name", SLICE_METRICS)
def test_values_are_those_of_the_plain_metrics(name):
    label, score, question = samples(0)
    found = slice_metrics(label, score, question, draws=10)
    assert found[name]["value"] == pytest.approx(METRICS[name](label, score))
    own = [METRICS[name](label[question == q], score[question == q]) for q in range(40)]
    each = found["within_question"] if name == "auroc" else found["each_question"][name]
    assert each["value"] == pytest.approx(np.mean(own))
    assert each["questions"] == 40


@pytest.mark.parametrize("name", SLICE_METRICS)
def test_intervals_are_those_of_a_plain_bootstrap_over_questions(name):
    label, score, question = samples(1)
    found = slice_metrics(label, score, question)[name]
    generator = np.random.default_rng(2)
    rows = [np.flatnonzero(question == q) for q in range(40)]
    values = []
    for _ in range(500):
        drawn = np.concatenate([rows[q] for q in generator.integers(40, size=40)])
        values.append(METRICS[name](label[drawn], score[drawn]))
    # For 40 questions the quantiles are a little further out than 2.5 and 97.5 %.
    assert (found["low"], found["high"]) == pytest.approx(
        tuple(np.quantile(values, [0.0203, 0.9797])), abs=0.006
    )


def test_perfect_scores_have_an_average_precision_of_one_and_no_more():
    _, score, question = samples(4)
    found = slice_metrics(score > 0.7, score, question)["auprc"]
    assert found["value"] == pytest.approx(1)
    assert 0.999 < found["low"] <= found["high"] <= 1


def test_one_class_leaves_the_metrics_that_need_no_second_one():
    found = slice_metrics(np.ones(4, dtype=bool), np.array([0.9, 0.8, 0.7, 0.2]), np.arange(4) // 2)
    for name in ("auroc", "auprc", "f1"):
        assert found[name] == {"value": None, "low": None, "high": None}, name
    assert found["accuracy"]["value"] == 0.75
    assert found["brier"]["value"] == pytest.approx((0.01 + 0.04 + 0.09 + 0.64) / 4)
    assert found["within_question"]["questions"] == 0
    assert all(each["value"] is None for each in found["each_question"].values())


def test_one_question_has_values_and_no_intervals():
    label, score, _ = samples(2, count=50)
    found = slice_metrics(label, score, np.full(50, 7))
    for name in SLICE_METRICS:
        assert found[name]["value"] == pytest.approx(METRICS[name](label, score))
        assert (found[name]["low"], found[name]["high"]) == (None, None)


def test_no_samples_have_no_figures():
    nothing = np.empty(0)
    found = slice_metrics(nothing.astype(bool), nothing, nothing.astype(np.int64))
    assert found["samples"] == 0
    assert all(found[name]["value"] is None for name in SLICE_METRICS)
