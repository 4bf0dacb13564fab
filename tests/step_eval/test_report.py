"""The report is one page that needs nothing else, whatever the run holds."""

import dataclasses
import io
import re
from html.parser import HTMLParser

import pytest
from fake_engine import FakeEngine, made_up_model, made_up_scorer, write_questions
from rich.console import Console

from step_eval import measure
from step_eval.config import EvalConfig
from step_eval.report.figures import fitting_columns
from step_eval.report.html import render_report
from step_eval.report.table import print_results
from step_eval.report.words import unfinished
from step_eval.results import build_results, read_run
from step_eval.run import evaluate

VOID = {"meta", "br", "img", "link", "input", "hr"}


@pytest.fixture(scope="module", autouse=True)
def _a_reading_at_every_step():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SAMPLE_S", 1e-9)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return manifest and records of a small run."""
    folder = tmp_path_factory.mktemp("report")
    model = made_up_model(folder)
    config = EvalConfig(
        model,
        write_questions(folder / "q.jsonl", 6),
        str(folder / "out"),
        scorer=made_up_scorer(folder / "scorer" / "scorer.safetensors", model),
        num_traces=10,
        kv_budget_tokens=2500,
        repeats=2,
    )
    evaluate(config, FakeEngine, Console(quiet=True))
    return read_run(config.out)


def render(manifest, records, **options):
    results = build_results(manifest, records, draws=200, **options)
    return render_report(results, records)


@pytest.fixture(scope="module")
def page(run):
    return render(*run)


class Nesting(HTMLParser):
    """Checks that every element is closed by its own end tag."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.faults = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append((tag, self.getpos()))


def test_the_page_needs_nothing_from_outside(page):
    assert "http" not in page
    assert "//" not in re.sub(r"<dd>.*?</dd>|<td>.*?</td>", "", page, flags=re.DOTALL)
    assert not re.search(r"<(script|link|img|iframe|object|embed)\b", page)
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page


def test_the_page_is_well_formed(page):
    parser = Nesting()
    parser.feed(page)
    assert (parser.open, parser.faults) == ([], [])


def test_every_reference_inside_a_picture_finds_its_target(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    targets = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert targets <= set(ids)
    assert len(ids) == len(set(ids))


def test_no_colour_is_left_that_ignores_the_dark_page(page):
    body = page[page.index("<main>") :]
    assert not re.findall(r"#[0-9a-f]{6}\b", body)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_the_page_says_what_was_found(page):
    for words in (
        "STEP against SC",
        "What STEP made worse",
        "KV cache over time",
        "pruned: ",
        "preempted: ",
        "Step scores of right and wrong traces",
        "within question",
        "Scorer card",
        "training.questions",
        "2,500 tokens",
        "6 questions, 2 times each",
    ):
        assert words in page, words
    # Two against cost; one of waiting; three of what was stopped; six over time; two of the scorer.
    assert page.count("<svg") == 2 + 1 + 3 + 6 + 2


def test_every_picture_has_words_for_those_who_cannot_see_it(page):
    labels = re.findall(r'<svg [^>]*aria-label="([^"]+)"', page)
    assert len(labels) == page.count("<svg")
    assert "Accuracy of each method against seconds per question" in labels


def test_the_page_says_what_stopping_saved_and_where_right_traces_were_lost(run, page):
    manifest, records = run
    results = build_results(manifest, records, draws=50)
    stopped = results["stops"]["step"]
    lengths = {(r.key, t.trace_id): t.tokens for r in records["sc"] for t in r.traces}
    saved = sum(
        lengths[r.key, t.trace_id] - t.tokens for r in records["step"] for t in r.traces if t.pruned
    )
    assert stopped["tokens_saved"] == saved > 0
    assert f"together {saved:,}: " in page
    assert f"{stopped['would_be_right']} of {stopped['known']} stopped traces" in page
    assert "Questions with stopped traces that would be right" in page
    assert "Under SC a trace decodes for" in page


def test_without_the_baseline_the_page_says_that_the_saving_is_an_estimate(run):
    manifest, records = run
    page = render(manifest, {"step": records["step"]})
    assert "have no twin, so what they would have come to is not known" in page
    assert "(an estimate)" in page
    assert "What each stop saved" not in page


def test_a_cut_run_is_compared_on_the_questions_that_both_have(run):
    manifest, records = run
    cut = {"sc": records["sc"], "step": records["step"][:3]}
    results = build_results(manifest, cut, draws=50)
    assert results["shared"]["pairs"] == results["comparisons"]["step"]["pairs"] == 3
    assert not results["shared"]["complete"]
    seconds = [
        record.seconds for record in records["sc"] if record.key in {r.key for r in cut["step"]}
    ]
    assert results["shared"]["methods"]["sc"]["seconds"]["value"] == pytest.approx(
        sum(seconds) / 3, abs=1e-9
    )
    page = render_report(results, cut)
    assert "On the 3 questions that all methods have answered." in page
    assert "STEP against SC<span>on 3 questions</span>" in page
    console = Console(width=100, record=True, file=io.StringIO())
    print_results(results, console)
    text = console.export_text()
    assert "on 3 questions" in text
    assert "STEP: 3 of 12 questions answered so far." in text
    assert unfinished(results) == ["STEP: 3 of 12 questions"]
    results["latency"]["sc"] = results["latency"]["step"]
    assert unfinished(results) == ["Each method: 3 of 12 questions"]
    results["questions"] |= {"asked": 3, "repeats": 1}
    assert unfinished(results) == []
    apart = {"sc": records["sc"][:2], "step": records["step"][3:5]}
    assert "these pictures do not compare them" in render(manifest, apart)


def test_many_methods_have_a_row_each_and_a_narrow_terminal_is_not_overrun(run):
    manifest, records = run
    many = {**records}
    for name in ("deepconf-low", "deepconf-high", "slim-sc"):
        many[name] = [dataclasses.replace(r, method=name) for r in records["step"]]
    results = build_results(manifest, many, draws=50)
    page = render_report(results, many)
    assert page.count("against SC<span>on 6 questions</span>") == 4
    console = Console(width=80, record=True, file=io.StringIO())
    print_results(results, console)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "Differences to SC" in text


def test_an_interval_around_zero_is_called_no_difference(run):
    manifest, records = run
    twins = [type(r)(**{**vars(r), "method": "step"}) for r in records["sc"]]
    page = render(manifest, {"sc": records["sc"], "step": twins})
    assert page.count("no difference shown") >= 3
    assert "No figure is shown to be worse" in page


def test_one_question_has_figures_without_intervals(run):
    manifest, records = run
    first = {name: [r for r in group if r.question_id == "q001"] for name, group in records.items()}
    page = render(manifest, first)
    assert not re.search(r"95 % interval [\d+-]", page)
    assert page.count("no interval") > 16
    console = Console(width=120, record=True, file=io.StringIO())
    print_results(build_results(manifest, first), console)
    assert "no interval" in console.export_text()


def test_questions_that_were_lost_are_listed_and_names_are_escaped(run):
    manifest, records = run
    lost = []
    for record in records["step"]:
        answers = [type(a)("<b>9</b>", False) for a in record.answers]
        lost.append(type(record)(**{**vars(record), "answers": answers}))
    page = render(manifest, {**records, "step": lost})
    assert "Questions lost" in page
    assert "&lt;b&gt;9&lt;/b&gt;" in page
    assert "<b>9</b>" not in page
    assert '<span class="bad">worse</span>' in page


def test_one_method_without_scores_or_series_makes_a_page(run):
    manifest, records = run
    plain = [type(r)(**{**vars(r), "series": None}) for r in records["sc"]]
    page = render({**manifest, "card": None, "scorer": None}, {"sc": plain})
    assert "STEP" not in page[page.index("<h1>") : page.index("The run")]
    assert page.count("<svg") == 3
    assert "KV cache over time" not in page


def test_scores_without_any_right_trace_make_a_page(run):
    manifest, records = run
    wrong = []
    for record in records["step"]:
        traces = [type(t)(**{**vars(t), "correct": False}) for t in record.traces]
        answers = [type(a)(a.answer, False) for a in record.answers]
        wrong.append(type(record)(**{**vars(record), "traces": traces, "answers": answers}))
    page = render(manifest, {"step": wrong})
    assert "none" in page
    assert "right, " not in page


def test_the_vote_can_be_chosen_afterwards(run):
    manifest, records = run
    results = build_results(manifest, records, vote="best", draws=50)
    assert results["methods"]["step"]["vote"] == "best"
    by_vote = results["methods"]["step"]["accuracy_by_vote"]
    assert results["methods"]["step"]["metrics"]["accuracy"]["value"] == by_vote["best"]


def test_a_legend_has_only_the_columns_that_fit_beside_each_other():
    short = ["decoding", "waiting for memory"]
    assert fitting_columns(short, 3) == 2
    assert fitting_columns(["would be right: 208", "would be wrong: 1,348"], 2) == 2
    assert fitting_columns(["would be right: 3,207", "would be wrong: 7,163"], 2) == 1
    assert fitting_columns(["SC", "STEP", "single trace"], 3) == 3
    names = ["SC", "STEP", "DeepConf-low", "DeepConf-high", "Slim-SC", "random victim"]
    assert fitting_columns([*names, "longest victim", "least confident victim"], 3) == 2
    assert fitting_columns(["x" * 200], 3) == 1
