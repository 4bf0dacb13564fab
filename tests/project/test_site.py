"""The documentation site: pages have their places, links lead on, nothing comes from afar."""

import functools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from chromium import chromium, page
from places import ROOT

from step_infer.server.voted_settings import VotedOptions, VotedSettings
from step_infer.settings import RequestOptions, StepSettings
from step_infer.wire import Report

DOCS = ROOT / "docs"
OUTSIDE = (
    "README.md",
    "CONTRIBUTING.md",
    "checkpoints/README.md",
    "checkpoints/ledger-5m/README.md",
    "checkpoints/qwen2.5-coder-1.5b-instruct/README.md",
)
GENERATED = {f"reference/{name}.md" for name in ("commands", "settings", "python", "metrics")}


def sources() -> list[Path]:
    """Return the documents that people read, in the repository and in the site."""
    return [*DOCS.rglob("*.md"), *(ROOT / name for name in OUTSIDE)]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "`code`", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as the site and GitHub make them."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    kept = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"\s+", "-", heading) for heading in kept}


@pytest.mark.parametrize("source", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(source: Path) -> None:
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(source.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = Path(os.path.normpath(source.parent / name)) if name else source
        if path.is_relative_to(DOCS) and str(path.relative_to(DOCS)) in GENERATED:
            continue  # the strict build looks at these
        if path == DOCS / "reference/files.md":
            path = ROOT / "checkpoints/README.md"
            anchor = ""
        if not path.exists() or (anchor and anchor not in anchors(path)):
            lost.append(target)
    assert lost == []


def nav_pages(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for below in entry.values() if isinstance(entry, dict) else entry:
            yield from nav_pages(below)


def test_every_page_stands_in_the_navigation_once() -> None:
    found = list(nav_pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(found) == len(set(found))
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert written - set(found) == set()


@functools.cache
def reference() -> ModuleType:
    spec = spec_from_file_location("site_reference", DOCS / "site/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(text: str, heading: str) -> set[str]:
    """Return the first cells of the table under a heading."""
    part = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)`", part, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("page_text", "heading", "owner"),
    [
        ("settings", "Settings of the engine", StepSettings),
        ("settings", "Request options", RequestOptions),
        ("settings", "Settings of a voted model", VotedSettings),
        ("settings", "Options of a voted call", VotedOptions),
        ("contracts", "Report", Report),
    ],
)
def test_the_reference_has_every_field(page_text: str, heading: str, owner: type) -> None:
    text = getattr(reference(), page_text)()
    assert names(text, heading) == set(owner.__annotations__)


@pytest.mark.parametrize("made", ["settings", "python", "contracts"])
def test_the_reference_shows_the_values_of_defaults_and_not_their_names(made: str) -> None:
    cells = re.findall(
        r"^\|[^|]*\|[^|]*\| `([^`]*)` \|", getattr(reference(), made)(), re.MULTILINE
    )
    assert len(cells) > 10
    assert [cell for cell in cells if re.fullmatch(r"[A-Z_]+", cell)] == []


def options_of_commands() -> dict[str, set[str]]:
    """Return the options of each command and subcommand, as its own --help has them."""
    parts = re.split(r"^#{2,3} (.*)$", reference().commands(), flags=re.MULTILINE)[1:]
    options = zip(parts[::2], parts[1::2], strict=True)
    return {
        name: set(re.findall(r"^\| `(--[\w.-]+)`", text, re.MULTILINE)) for name, text in options
    }


def test_every_option_that_a_document_gives_a_command_is_one_of_its() -> None:
    options = options_of_commands()
    options["step-train fit"] = options["step-train"]
    # vLLM's own flags, or NAME VALUE pairs of a dictionary.
    free = re.compile(r"--(engine|chat-template-kwargs)\.|--(data-parallel-size|max-model-len)$")
    unknown, seen = [], 0
    for source in [*sources(), *(ROOT / "examples").glob("*.sh")]:
        text = re.sub(r"\\\n\s*", " ", source.read_text())
        for words in re.findall(r"(?:step-\w+|scorer-export) [^\n`#;|]*", text):
            first, second = words.split()[0], " ".join(words.split()[:2])
            command = second if second in options else first
            for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", words):
                if command in options and not free.match(option):
                    seen += 1
                    known = {name.replace("_", "-") for name in options[command]}
                    if option.replace("_", "-") not in known:
                        unknown.append((source.name, command, option))
    assert seen > 100
    assert unknown == []


def test_the_reference_has_the_metrics_that_are_written_about() -> None:
    pytest.importorskip("step_infer.stat_logger")
    made = names(reference().metrics(), "Engine") | names(reference().metrics(), "Voted calls")
    text = (DOCS / "guides/observability.md").read_text()
    text += (DOCS / "guides/voted_answers.md").read_text()
    assert set(re.findall(r"^\| `(step_\w+)`", text, flags=re.MULTILINE)) == made


# --- Built ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does."""
    pytest.importorskip("mkdocs", reason="make docs installs it")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.nightly
def test_the_built_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for path in pages:
        loaded = re.findall(
            r"<(?:script|img|link)[^>]*(?:src|href)=\"?(https?:[^\" >]*)", path.read_text()
        )
        assert loaded == [], path


@pytest.mark.nightly
def test_the_reference_has_every_command(site: Path) -> None:
    text = (site / "reference/commands.html").read_text()
    for command in ("step-collect merge", "step-train sweep", "step-eval replay", "step-serve"):
        assert f'id="{command.replace(" ", "-")}"' in text
    for option in ("--kv-budget", "--voted-model-name", "--memory-mib"):
        assert option in text


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.nightly
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_pages_without_a_sideways_scroll(
    address: str, width: int, scheme: str
) -> None:
    shape = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with chromium() as browser:
        for name in ("index", "guides/voted_answers", "reference/commands", "results/demo_world"):
            with page(browser, f"{address}/{name}.html", **shape) as (opened, complaints):
                wide = opened.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, name
                assert complaints == [], name
