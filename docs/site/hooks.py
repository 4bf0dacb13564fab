"""MkDocs hooks: pages that live outside docs/, the generated reference, and links between them."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import reference  # noqa: E402 (beside this file, which is no package)

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "checkpoints/README.md": "reference/files.md",
    "checkpoints/ledger-5m/README.md": "results/demo_model.md",
    "checkpoints/qwen2.5-coder-1.5b-instruct/README.md": "results/qwen_scorer.md",
}
"""Documents of the repository, and where they stand in the site."""
SOURCES = {page: source for source, page in PAGES.items()}

_FENCE = re.compile(r"(^```.*?^```$)", flags=re.DOTALL | re.MULTILINE)
# What stands in code is no link, but a link's words may have code in them.
_CODE_OR_LINK = re.compile(r"(`[^`\n]+`)|(!?)\[([^\]]*)\]\(([^)#\s]+)?(#[^)\s]+)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the documents from outside docs/ and the generated pages."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text()
        text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # a model card's own header
        if page == "reference/files.md":
            text = text.replace("# Checkpoints", "# Files and reports", 1)
            text += "\n" + reference.contracts()
        files.append(File.generated(config, page, content=text))
    for page, text in reference.pages().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")
    parts = _FENCE.split(markdown)
    parts[::2] = [_relinked(part, source, here, files) for part in parts[::2]]
    return "".join(parts)


def _relinked(text: str, source: str, here: str, files: Files) -> str:
    def target(found: re.Match[str]) -> str:
        code, mark, words, path, anchor = found.groups()
        if code is not None or path is None or "://" in path or path.startswith("mailto:"):
            return found[0]
        wanted = os.path.normpath(os.path.join(os.path.dirname(source), path))
        page = PAGES.get(wanted, wanted.removeprefix("docs/"))
        if files.get_file_from_path(page) is None:
            if (ROOT / wanted).exists():  # a file of the repository that is no page
                return words
            return found[0]  # lost: strict mode says so
        return f"{mark}[{words}]({os.path.relpath(page, os.path.dirname(here))}{anchor or ''})"

    return _CODE_OR_LINK.sub(target, text)
