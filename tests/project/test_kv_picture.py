"""README's picture is one small file that is drawn from the records beside the other figures."""

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from places import ROOT

from step_eval.records import QuestionRecord

RECORDS = ROOT / "benchmarks/results/kv_math500_h100.jsonl"


def words(path: Path) -> list[str]:
    """Return the texts of an SVG, in their order."""
    found = ElementTree.parse(path).getroot().iter()
    return [text for node in found if node.tag.endswith("text") and (text := node.text)]


def test_the_picture_shows_what_the_records_say(tmp_path: Path) -> None:
    out = tmp_path / "picture.svg"
    script = [sys.executable, "benchmarks/kv_picture.py", str(RECORDS), "--out", str(out)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    sc, step = map(QuestionRecord.from_json, RECORDS.read_text().splitlines())
    pruned = sum(trace.pruned for trace in step.traces)
    assert f"SC: {sc.seconds:.1f} s, {sc.preemptions} preemptions" in words(out)
    assert f"STEP: {step.seconds:.1f} s, {pruned} traces pruned" in words(out)
    committed = ROOT / "docs/assets/kv_use.svg"
    assert words(committed) == words(out)
    assert committed.stat().st_size < 50_000
    text = committed.read_text()
    assert re.findall(r"(?:href|src)=\"(?!#)[^\"]*", text) == []
    assert "prefers-color-scheme: dark" in text
