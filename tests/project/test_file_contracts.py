"""checkpoints/README.md names everything that the files hold."""

import re
from pathlib import Path

import pyarrow.parquet as pq
from places import ROOT
from safetensors import safe_open
from synthetic_traces import write_traces

from step_eval.recorded.files import record
from step_infer.scorer.card import CARD_KEY, ScorerCard

CHECKPOINTS = ROOT / "checkpoints"


def part(start: str) -> set[str]:
    """Return the names in backquotes of the part that begins with this text in bold."""
    text = (CHECKPOINTS / "README.md").read_text()
    found = text[text.index(f"**{start}**") :].split("\n**")[0]
    return set(re.findall(r"`([^`]+)`", found))


def test_the_contract_names_every_field_of_a_scorers_card_and_its_tensors() -> None:
    with safe_open(str(CHECKPOINTS / "ledger-5m/scorer/scorer.safetensors"), "pt") as file:
        tensors, metadata = set(file.keys()), file.metadata()
    named = part("Scorer")
    card = ScorerCard.from_json(metadata[CARD_KEY], "the demo scorer")
    assert {*vars(card), *card.boundary, CARD_KEY} <= named
    assert {"width", "depth"} <= named
    assert tensors <= named


def test_the_contract_names_every_column_of_traces_and_recorded_traces(tmp_path: Path) -> None:
    traces = write_traces(tmp_path / "traces", "label", questions=2)
    columns = set(traces.part(0).column_names)
    assert columns <= part("Traces directory")
    with safe_open(str(traces.shard(0).path), "pt") as file:
        assert set(file.keys()) <= part("Traces directory")
    record(traces.path, tmp_path / "recorded.parquet")
    assert set(pq.read_schema(tmp_path / "recorded.parquet").names) <= part("Recorded traces")
