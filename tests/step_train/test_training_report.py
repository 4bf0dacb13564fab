"""The report of a training run: complete, self-contained, and honest about what is missing."""

import re

import pytest
from places import CHECKPOINT
from synthetic_traces import write_traces

from step_train.fit.config import FitConfig
from step_train.fit.run import fit


def report(path, write=None, **options):
    write_traces(path / "traces", "label", **({"questions": 40} | (write or {})))
    defaults = {"max_epochs": 2, "learning_rate": 1e-3, "progress": False, "width": 16}
    result = fit(FitConfig(path / "traces", path / "run", **(defaults | options)))
    return result, (result.run / "report.html").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return report(tmp_path_factory.mktemp("report"), baselines="cheap")


def test_the_page_needs_nothing_beside_it(made):
    _, page = made
    assert not re.findall(r"(?:src|href)=\"(?!#)", page)
    assert not re.search(r"@import|url\((?!#)", page)
    assert page.count("<svg") >= 7
    ids = re.findall(r'id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'href="#([^"]*)"', page) + re.findall(r"url\(#([^)]*)\)", page):
        assert used in ids


def test_the_page_says_what_was_measured(made):
    result, page = made
    half = result.metrics["trace_score"][result.aggregator]["50%"]["within_question"]
    assert f"<b>{half['value']:.3f}</b>" in page
    assert "above chance" in page
    for words in ("trace length so far", "logistic regression", "By step number", "validation"):
        assert words in page
    counts = result.data["splits"]["test"]
    assert f"{counts['questions']} held-out questions" in page
    assert f"{result.calibration['temperature']:.2f}" in page
    assert result.data["traces_fingerprint"] in page


def test_the_page_says_what_is_not_computed_and_why(made):
    _, page = made
    assert "question only: left out by --baselines cheap" in page
    assert "Text of the sample traces: model some/model is not on this machine" in page
    assert "Fewer than 30 questions" in page


def test_the_page_says_that_checksums_were_not_compared(tmp_path):
    options = {"baselines": "none", "verify_checksums": False, "max_epochs": 1}
    _, page = report(tmp_path, {"questions": 6}, **options)
    assert "Checksums of the traces directory: not compared (--verify-checksums false)" in page


def test_no_baselines_and_one_test_question_still_make_a_page(tmp_path):
    _, page = report(tmp_path, {"questions": 6, "traces": 3}, baselines="none", test_fraction=0.1)
    assert "Baselines: left out by --baselines none" in page
    assert "Votes: no test question has 4 traces" in page
    assert "Checksums of the traces directory" not in page
    assert "Intervals within question: fewer than two test questions" in page
    assert "no interval" in page


def test_hostile_names_are_escaped(tmp_path):
    changes = {n: {"extracted_answer": "<script>alert(1)</script>"} for n in range(160)}
    _, page = report(tmp_path, {"questions": 20, "changes": changes}, baselines="none")
    assert "<script" not in page


def test_steps_are_shown_with_their_text_and_score(tmp_path):
    from step_infer.storage.run_directory import read_manifest, write_manifest
    from step_train.data.trace_table import read_traces
    from step_train.evaluation.report import sample_traces

    directory = write_traces(tmp_path / "traces", "label", questions=5)
    write_manifest(directory.path, read_manifest(directory.path) | {"model": str(CHECKPOINT)})
    table, _ = read_traces(directory)
    score_S = table.label_S * 0.8 + 0.1
    samples, reason = sample_traces(directory, table, score_S, str(CHECKPOINT), 0)
    assert reason == ""
    assert len({sample["question"] for sample in samples}) == 1
    for sample in samples:
        assert {step["colour"] for step in sample["steps"]} == {
            "right" if sample["right"] else "wrong"
        }
        assert len(sample["steps"]) == len(sample["scores"])
        assert all(step["text"] for step in sample["steps"])
    again, _ = sample_traces(directory, table, score_S, str(CHECKPOINT), 0)
    assert again == samples
