"""Features larger than memory: a fit stays within its budget, and reads what it needs alone."""

import json
import os
import subprocess
import sys

import pytest
import torch
from peak_memory import PeakMemory, anonymous_mib
from places import ROOT
from safetensors.torch import save_file
from synthetic_traces import write_traces

from step_infer.errors import InputError
from step_train.data.feature_blocks import FeatureRows, TrainingBatches
from step_train.data.trace_table import balance, read_traces
from step_train.fit.config import FitConfig
from step_train.fit.run import fit

pytestmark = pytest.mark.slow

HIDDEN = 2560
ROW_BYTES = 2 * HIDDEN
BUDGET_MIB = 64
# What a fit takes that does not grow with the features: evaluation chunks of 32 MiB in their stored
# format and in float32, their hidden units, weights, optimiser, libraries loaded on the way.
FIXED_MIB = 384

FIT = """
import json, sys
import sklearn.metrics, torch, matplotlib.pyplot, lightning.pytorch.loggers
from step_train.fit.run import fit
from step_train.fit.config import FitConfig
from peak_memory import PeakMemory, anonymous_mib
torch.set_num_threads(1)
before = anonymous_mib()
with PeakMemory() as memory:
    fit(FitConfig(*sys.argv[1:3], memory_mib=int(sys.argv[3]), max_epochs=1, batch_size=512,
                  width=16, accelerator="cpu", normalise="standard", baselines="none",
                  components=int(sys.argv[4]), verify_checksums=False, progress=False))
print(json.dumps(memory.peak_mib - before))
"""


def enlarge(directory, factor):
    """Make every shard's file list `factor` times as many rows, with a hole for the states."""
    manifest = json.loads((directory.path / "manifest.json").read_text())
    for part in manifest["parts"]:
        path = directory.path / part["features"]["file"]
        rows = part["features"]["rows"] * factor
        tensors = {
            "hidden": {"dtype": "BF16", "shape": [rows, HIDDEN]},
            "trace_index": {"dtype": "I32", "shape": [rows]},
            "position": {"dtype": "I32", "shape": [rows]},
        }
        end = 0
        for entry, size in zip(
            tensors.values(), (rows * ROW_BYTES, 4 * rows, 4 * rows), strict=True
        ):
            entry["data_offsets"] = [end, end + size]
            end += size
        header = json.dumps(tensors).encode()
        header += b" " * (-len(header) % 8)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + end)
        part["features"] |= {"rows": rows, "bytes": path.stat().st_size}
    (directory.path / "manifest.json").write_text(json.dumps(manifest))


def lengthen(directory, factor):
    """Give every trace `factor` times its steps in the table, so that they fill the shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in directory.part_paths():
        table = pq.read_table(path)
        for name in ("row_start", "num_steps"):
            column = [value * factor for value in table[name].to_pylist()]
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, pa.array(column, table.schema.field(name).type))
        pq.write_table(table, path)


@pytest.mark.parametrize("components", [0, 32])
def test_a_fit_on_gigabytes_of_features_stays_within_its_memory_budget(tmp_path, components):
    directory = write_traces(tmp_path / "t", "noise", questions=12, hidden_size=HIDDEN)
    enlarge(directory, 250)
    lengthen(directory, 250)
    logical = sum(path.stat().st_size for path in (tmp_path / "t").rglob("*.safetensors"))
    on_disk = sum(512 * path.stat().st_blocks for path in (tmp_path / "t").rglob("*"))
    assert logical > 16 * 2**20 * BUDGET_MIB
    assert on_disk < 2**28
    done = subprocess.run(
        [
            *(sys.executable, "-c", FIT, tmp_path / "t", tmp_path / "run"),
            *(str(BUDGET_MIB), str(components)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'tests' / 'harness'}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout.splitlines()[-1])
    assert BUDGET_MIB / 2 < taken < BUDGET_MIB + FIXED_MIB


def test_peak_memory_sees_own_pages_and_not_those_of_files(tmp_path):
    import mmap

    path = tmp_path / "file"
    path.write_bytes(os.urandom(2**20) * 64)
    before = anonymous_mib()
    with PeakMemory(0.01) as memory, path.open("rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert sum(mapped[:: mmap.PAGESIZE]) > 0
        assert anonymous_mib() < before + 32
        block = bytearray(os.urandom(2**20) * 128)  # still there at the last look
    assert before + 100 < memory.peak_mib < before + 512
    assert len(block) == 2**27


def test_features_of_traces_that_are_not_chosen_are_never_read(tmp_path, monkeypatch):
    directory = write_traces(tmp_path / "t", "noise", questions=20)
    table, _ = read_traces(directory)
    chosen = balance(table, 10, seed=0)
    rows = FeatureRows(directory.shards())
    first_row_N = rows.of_traces(chosen)
    asked = []
    gather = FeatureRows.gather
    monkeypatch.setattr(
        FeatureRows, "gather", lambda self, some, out: (asked.extend(some), gather(self, some, out))
    )
    list(TrainingBatches(rows, chosen, 32, 2**20, 0, lambda: 0))
    wanted = [
        row
        for start, steps in zip(first_row_N, chosen.steps_N, strict=True)
        for row in range(start, start + steps)
    ]
    assert sorted(asked) == sorted(wanted)
    assert len(wanted) < table.num_steps / 2


def config(traces, out, **options):
    return FitConfig(
        traces, out, max_epochs=1, progress=False, accelerator="cpu", baselines="none", **options
    )


def test_a_shard_that_was_cut_off_is_named(tmp_path):
    directory = write_traces(tmp_path / "t", "noise", questions=10)
    path = directory.shards()[1].path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="Expected .*bytes .*shard-00001"):
        fit(config(tmp_path / "t", tmp_path / "run"))


def test_other_content_of_the_same_size_is_found(tmp_path):
    directory = write_traces(tmp_path / "t", "noise", questions=10)
    path = directory.shards()[1].path
    content = bytearray(path.read_bytes())
    content[-3000] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="checksum .*shard-00001"):
        fit(config(tmp_path / "t", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_mixed_hidden_sizes_are_refused_by_fit(tmp_path):
    directory = write_traces(tmp_path / "t", "noise", questions=10)
    shard = directory.shards()[1]
    tensors = {
        "hidden": shard.hidden()[:, :8].contiguous(),
        "trace_index": shard.trace_index().clone(),
        "position": shard.position().clone(),
    }
    save_file(tensors, shard.path)
    manifest = json.loads((directory.path / "manifest.json").read_text())
    manifest["parts"][1]["features"]["bytes"] = shard.path.stat().st_size
    (directory.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="Expected hidden size 16 .* found 8 .*one model"):
        fit(config(tmp_path / "t", tmp_path / "run", verify_checksums=False))


@pytest.mark.parametrize(
    ("questions", "changes", "message"),
    [
        (1, {}, "at least 3 questions, one a split, found 1"),
        (10, {i: {"is_correct": True} for i in range(80)}, "found .* right and 0 wrong"),
        (10, {i: {"is_correct": False} for i in range(80)}, "found 0 right and .* wrong"),
        (3, {i: {"boundary_positions": []} for i in range(24)}, "found none .24 no boundary."),
    ],
    ids=["one question", "all right", "all wrong", "no boundaries"],
)
def test_fit_refuses_traces_that_teach_nothing(tmp_path, questions, changes, message):
    write_traces(tmp_path / "t", "noise", questions=questions, changes=changes)
    with pytest.raises(InputError, match=message):
        fit(config(tmp_path / "t", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_trace_without_boundaries_is_counted_and_the_rest_is_trained_on(tmp_path):
    changes = {3: {"boundary_positions": []}, 11: {"boundary_positions": []}}
    write_traces(tmp_path / "t", "label", questions=15, changes=changes)
    result = fit(config(tmp_path / "t", tmp_path / "run"))
    assert result.data["skipped_traces"]["no boundary"] == 2
    assert sum(split["traces"] for split in result.data["splits"].values()) == 15 * 8 - 2


def test_bfloat16_training_learns_the_same_and_is_judged_in_float32(tmp_path):
    write_traces(tmp_path / "t", "label", questions=30)
    options = {"learning_rate": 5e-3, "width": 32}
    fine = fit(config(tmp_path / "t", tmp_path / "fine", **options))
    coarse = fit(config(tmp_path / "t", tmp_path / "coarse", precision="bfloat16", **options))
    first, second = (result.metrics["steps"]["auroc"]["value"] for result in (fine, coarse))
    assert first != second
    assert second == pytest.approx(first, abs=0.01)
    saved = torch.load(coarse.checkpoint, weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
