"""Metrics of step scores: against scikit-learn, against known answers, and their intervals."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from step_eval import comparison
from step_eval.statistics import auroc_by_question
from step_infer.scorer.aggregate import AGGREGATORS
from step_train.data.trace_table import TraceTable
from step_train.evaluation import metrics, slice_metrics
from step_train.evaluation.held_out import choose_aggregator, evaluate, trace_scores
from step_train.evaluation.metrics import (
    METRICS,
    auprc_by_question,
    ece,
    pair_ranking,
    pooled_auroc,
    reliability,
    selection_score,
    within_question,
)


def samples(seed, count=400, groups=7, values=20):
    generator = np.random.default_rng(seed)
    # Few distinct scores, so that there are many ties.
    score = generator.integers(values, size=count) / values
    return generator.random(count) < score, score, generator.integers(groups, size=count)


def table(correct, questions, steps):
    steps = np.array(steps)
    return TraceTable(
        tuple(f"q{i}" for i in range(max(questions) + 1)),
        np.array(questions),
        np.array(correct, dtype=bool),
        np.zeros(len(steps), dtype=np.int64),
        np.cumsum(steps) - steps,
        steps,
    )


@pytest.mark.parametrize("seed", range(5))
def test_grouped_auroc_is_scikit_learns_on_each_group(seed):
    label, score, group = samples(seed)
    values, pairs = auroc_by_question(label, score, group, 7)
    for g in range(7):
        mask = group == g
        assert values[g] == pytest.approx(roc_auc_score(label[mask], score[mask]))
        assert pairs[g] == label[mask].sum() * (~label[mask]).sum()


@pytest.mark.parametrize("seed", range(5))
def test_grouped_average_precision_is_scikit_learns_on_each_group(seed):
    label, score, group = samples(seed)
    values = auprc_by_question(label, score, group, 8)
    for g in range(7):
        mask = group == g
        assert values[g] == pytest.approx(average_precision_score(label[mask], score[mask]))
    assert np.isnan(values[7])


def test_calibration_error_is_the_gap_between_scores_and_outcomes():
    score = np.repeat([0.0, 0.3, 1.0], 10)
    label = np.repeat([0, 1, 0, 1], [10, 3, 7, 10]).astype(bool)
    assert ece(label, score) == pytest.approx(0.0)
    # Sure of the wrong thing for 20 of 30.
    assert ece(~label, score) == pytest.approx((20 + 10 * 0.4) / 30)
    curve = reliability(label, score)
    assert [(row["samples"], row["score"], row["right"]) for row in curve] == [
        (10, 0.0, 0.0),
        (10, pytest.approx(0.3), pytest.approx(0.3)),
        (10, 1.0, 1.0),
    ]
    assert [row["to"] - row["from"] for row in curve] == pytest.approx([1 / 15] * 3)


def test_pair_ranking_counts_each_pair_once():
    # Question 0: four pairs, all wrong way round. Question 1: one pair, the right way round.
    label = np.array([1, 1, 0, 0, 1, 0], dtype=bool)
    score = np.array([0.1, 0.2, 0.8, 0.9, 0.6, 0.5])
    found = pair_ranking(label, score, np.array([0, 0, 0, 0, 1, 1]))
    assert (found["value"], found["pairs"]) == (0.2, 5)
    assert (found["low"], found["high"]) == (0.0, 1.0)
    assert pair_ranking(label[:2], score[:2], np.array([0, 1]))["value"] is None


def test_a_group_with_one_label_has_no_auroc():
    label = np.array([True, True, False, True])
    values, pairs = auroc_by_question(label, np.arange(4.0), np.array([0, 0, 2, 2]), 3)
    assert np.isnan(values[:2]).all()
    assert values[2] == 1.0
    assert pairs.tolist() == [0, 0, 1]


def test_within_question_counts_each_question_once():
    # Question 0: four pairs, all wrong way round. Question 1: one pair, the right way round.
    label = np.array([1, 1, 0, 0, 1, 0], dtype=bool)
    score = np.array([0.1, 0.2, 0.8, 0.9, 0.6, 0.5])
    found = within_question(label, score, np.array([0, 0, 0, 0, 1, 1]))
    assert found["value"] == 0.5
    assert found["questions"] == 2
    assert found["low"] <= 0.5 <= found["high"]


def test_a_score_that_names_the_question_only_is_blind_within_question():
    generator = np.random.default_rng(0)
    question = np.repeat(np.arange(60), 20)
    share = np.repeat(generator.uniform(0.05, 0.95, 60), 20)
    label = generator.random(1200) < share
    assert pooled_auroc(label, share, question)["low"] > 0.7
    found = within_question(label, share, question)
    assert found["value"] == 0.5
    assert found["low"] == found["high"] == 0.5


@given(st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=1, max_size=40))
def test_training_and_evaluation_reports_have_the_same_interval(values):
    records = [SimpleNamespace(question_id=f"q{i:02}", it=value) for i, value in enumerate(values)]
    evaluation = asdict(comparison.mean_of_records(records, lambda record: record.it))
    training = metrics.mean_figure(np.array(values))
    assert training == pytest.approx(evaluation | {"questions": len(values)}, abs=1e-9)
    assert comparison.interval is metrics.interval is slice_metrics.interval


def test_without_a_question_of_both_labels_there_is_no_value():
    label = np.array([True, False])
    found = within_question(label, np.array([0.9, 0.1]), np.array([0, 1]))
    assert found == {"value": None, "low": None, "high": None, "questions": 0}
    assert pooled_auroc(label[:1], np.array([0.9]), np.array([0]))["value"] is None


def test_one_question_gives_a_value_but_no_interval():
    label = np.array([True, False])
    for metric in (within_question, pooled_auroc):
        found = metric(label, np.array([0.9, 0.1]), np.array([0, 0]))
        assert (found["value"], found["low"], found["high"]) == (1.0, None, None)


@pytest.mark.parametrize("questions", [6, 30])
def test_intervals_hold_the_truth_about_as_often_as_they_say(questions):
    hits = np.zeros(2)
    for seed in range(100):
        generator = np.random.default_rng(seed)
        label = generator.random((questions, 10)) < 0.5
        label[:, 0], label[:, 1] = True, False
        # Eight steps a trace, all alike: the interval must not take them for eight samples.
        score = np.repeat(generator.normal(size=(questions, 10)), 8)
        label, question = np.repeat(label, 8), np.repeat(np.arange(questions), 80)
        for i, metric in enumerate((within_question, pooled_auroc)):
            found = metric(label, score, question, draws=300)
            hits[i] += found["low"] <= 0.5 <= found["high"]
    assert (hits >= 88).all()


def test_the_pooled_interval_is_that_of_a_plain_bootstrap():
    label, score, question = samples(3, count=3000, groups=40, values=10**6)
    found = pooled_auroc(label, score, question)
    assert found["value"] == pytest.approx(roc_auc_score(label, score))
    generator = np.random.default_rng(1)
    rows = [np.flatnonzero(question == q) for q in range(40)]
    values = []
    for _ in range(600):
        drawn = np.concatenate([rows[q] for q in generator.integers(40, size=40)])
        values.append(roc_auc_score(label[drawn], score[drawn]))
    assert (found["low"], found["high"]) == pytest.approx(
        tuple(np.quantile(values, [0.0203, 0.9797])), abs=0.004
    )


@pytest.mark.parametrize("name", METRICS)
def test_metrics_refuse_one_class_and_broken_scores(name):
    both, one = np.array([True, False]), np.array([True, True])
    assert isinstance(METRICS[name](both, np.array([0.7, 0.2])), float)
    with pytest.raises(ValueError, match="one class"):
        METRICS[name](one, np.array([0.7, 0.2]))
    with pytest.raises(ValueError, match="finite"):
        METRICS[name](both, np.array([0.7, np.nan]))


def test_early_stopping_looks_at_the_papers_mixture():
    label, score, _ = samples(0)
    expected = 0.75 * METRICS["auroc"](label, score) + 0.25 * METRICS["f1"](label, score)
    assert selection_score(label, score) == expected


def test_progress_is_cut_into_tenths_of_a_traces_own_steps():
    traces = table([True, False, True], [0, 0, 0], [10, 1, 25])
    tenth = np.split(traces.tenth_S, [10, 11])
    assert tenth[0].tolist() == list(range(10))
    assert tenth[1].tolist() == [9]
    assert np.bincount(tenth[2]).tolist() == [2, 3, 2, 3, 2, 3, 2, 3, 2, 3]


def test_trace_scores_see_the_first_part_of_each_trace_only():
    traces = table([True, False], [0, 0], [4, 3])
    score = np.array([0.4, 0.2, 0.6, 1.0, 0.9, 0.5, 0.1])
    quarter, half, _, whole = trace_scores(traces, score, "mean")
    assert quarter.tolist() == pytest.approx([0.4, 0.9])
    assert half.tolist() == pytest.approx([0.3, 0.7])
    assert whole.tolist() == pytest.approx([0.55, 0.5])
    assert trace_scores(traces, score, "min", [0.5])[0].tolist() == [0.2, 0.5]


def test_the_aggregator_is_the_one_that_ranks_best_on_the_way():
    # Half-way and later, but not at the end, the last score alone tells right from wrong.
    traces = table([True, False], [0, 0], [4, 4])
    score = np.array([0.1, 0.6, 0.7, 0.0, 0.9, 0.5, 0.6, 1.0])
    chosen, values = choose_aggregator(traces, score)
    assert chosen == "last"
    assert values == pytest.approx({"mean": 0.0, "last": 2 / 3, "min": 0.0, "ema": 0.0})
    assert choose_aggregator(table([True, False], [0, 1], [4, 4]), score)[0] == "mean"


def test_a_report_has_every_tenth_and_every_aggregator():
    generator = np.random.default_rng(0)
    correct = np.tile([True, False, True, False], 10)
    steps = generator.integers(1, 30, size=40)
    traces = table(correct, np.repeat(np.arange(10), 4).tolist(), steps)
    score = np.clip(0.3 * traces.label_S + generator.uniform(0, 0.7, traces.num_steps), 0, 1)
    report = evaluate(traces, score)
    assert report["data"]["traces"] == 40
    assert [part["from"] for part in report["by_progress"]] == [i / 10 for i in range(10)]
    assert sum(part["samples"] for part in report["by_progress"]) == traces.num_steps
    ranges = [(part["first"], part["last"]) for part in report["by_step"]]
    assert ranges == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, int(steps.max()))]
    assert sum(part["samples"] for part in report["by_step"]) == traces.num_steps
    assert set(report["trace_score"]) == set(AGGREGATORS)
    assert set(report["trace_score"]["mean"]) == {"25%", "50%", "75%", "100%"}
    assert report["steps"]["within_question"]["low"] > 0.5
    # The score of a whole trace tells more than that of one step.
    whole = report["trace_score"]["mean"]["100%"]["auroc"]["value"]
    assert whole > report["steps"]["auroc"]["value"]
