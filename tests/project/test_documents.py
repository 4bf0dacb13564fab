"""The documents name what the commands show: columns, methods, votes, metrics, tests."""

import re
from typing import Any

import pytest
import yaml
from places import ROOT

from step_eval.methods.registry import METHODS
from step_eval.report.words import HEADINGS
from step_eval.votes import SHOWN_VOTES
from step_infer import __version__
from step_infer.client.kinds import KINDS

TEXTS = {".md", ".py", ".sh", ".ipynb"}


def rows(page: str, heading: str) -> set[str]:
    """Return the first cells of the table under a heading of a page."""
    text = (ROOT / "docs" / page).read_text()
    part = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return {line.split("|")[1].strip() for line in part.splitlines() if line.startswith("| ")}


def test_every_column_of_the_results_is_explained() -> None:
    assert set(HEADINGS.values()) | {"column"} == rows("guides/evaluation.md", "The columns")


def test_every_method_and_vote_is_explained() -> None:
    text = (ROOT / "docs/concepts/methods.md").read_text()
    methods, votes = text.partition("## Other victims")[0], text.partition("## Votes")[2]
    assert set(METHODS) <= set(re.findall(r"`([^`]+)`", methods))
    named = set(re.findall(r"`([^`]+)`", votes.partition("\n## ")[0]))
    shown = {re.sub(r"\^\d", "^POWER", re.sub(r"-\d", "-K", vote)) for vote in SHOWN_VOTES}
    assert shown <= named


def test_every_metric_is_explained_and_no_other() -> None:
    loggers = pytest.importorskip("step_infer.stat_logger")
    shown = {
        name if name in ("score", "disabled") else f"{name}_total" for name in loggers._metrics()
    }
    assert {f"`step_{name}`" for name in shown} | {"metric"} == rows(
        "guides/observability.md", "Metrics"
    )


def test_the_tests_that_the_documents_name_are_there() -> None:
    named = set()
    for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"]:
        named |= set(re.findall(r"\btest_[a-z_0-9]+\.py\b", page.read_text()))
    assert len(named) > 5
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert named - there == set()


def test_nothing_installs_this_package_from_an_index_that_has_none() -> None:
    folders = ("docs", "step_infer", "data_gen", "step_eval", "step_train", "examples")
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    texts += [p for name in folders for p in (ROOT / name).rglob("*.*") if p.suffix in TEXTS]
    assert len(texts) > 100
    wrong = re.compile(r"install [^\n]*step-scorer(?!-)|step-scorer\[")
    assert [path for path in texts if wrong.search(path.read_text())] == []


def test_every_answer_kind_is_explained() -> None:
    text = (ROOT / "docs/guides/answers.md").read_text()
    first = {row.split("|")[1].strip() for row in text.splitlines() if row.startswith("| `")}
    assert first == {f"`{kind}`" for kind in KINDS} - {"`math`"} | {
        "`math` (default)",
        "`my_module.MyAnswers`",
    }


def test_the_example_of_an_answer_kind_of_ones_own_works() -> None:
    text = (ROOT / "docs/guides/answers.md").read_text()
    (example,) = [
        part for part in re.findall(r"```python\n(.*?)```", text, re.S) if "class" in part
    ]
    names: dict[str, Any] = {}
    exec(example, names)
    route = names["Route"]()
    assert route.extract("So\nRoute: A-B-C\n") == "A-B-C"
    assert route.extract("no way") is None
    assert route.equal("A-B", "B-A")
    assert not route.equal("A-B", "A-C")


def test_the_readme_is_short_and_its_results_are_those_of_their_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    section = text.partition("\n## Results\n")[2].partition("\n## ")[0]
    shown = re.findall(r"\b\d[\d,.]*\d\b", "".join(re.findall(r"^\| \w.*$", section, re.MULTILINE)))
    assert len(shown) == 9
    page = (ROOT / "docs/results/real_model.md").read_text()
    assert [figure for figure in shown if figure not in page] == []


def test_the_citation_and_the_changelog_fit_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    newest = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    headings = re.findall(r"^### (\w+)$", newest, re.MULTILINE)
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    assert headings == [heading for heading in order if heading in headings]
