"""The traces directory: table parts, feature shards, and the manifest that lists them."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from data_gen.traces.directory import TraceDirectory
from data_gen.traces.features import FeatureShard, feature_bytes, write_shard
from data_gen.traces.table import TRACE_SCHEMA, read_part, write_part
from data_gen.traces.writer import TraceWriter
from step_infer.errors import InputError
from step_infer.storage.run_directory import run_manifest, write_manifest

H = 8
SETTINGS = {"seed": 0, "sampling.top_p": 0.95}


def row(trace_id: int, positions: list[int], **more: Any) -> dict[str, Any]:
    return {
        "question_id": "q",
        "trace_id": trace_id,
        "seed": 2**40 + trace_id,
        "question": "1+1",
        "ground_truth": "2",
        "prompt_token_ids": [1, 2, 3],
        "token_ids": list(range(50)),
        "text": "…",
        "finish_reason": "stop",
        "extracted_answer": "2",
        "is_correct": True,
        "answer_group": 0,
        "boundary_positions": positions,
        **more,
    }


def states(*counts: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(counts))
    return [torch.randn(count, H, generator=generator).bfloat16() for count in counts]


def write_two_parts(path: Path) -> list[torch.Tensor]:
    hidden = states(2, 0, 3)
    with TraceWriter(path, SETTINGS, model="m") as out:
        out.add_part([row(0, [4, 9]), row(1, [])], hidden[:2])
        out.add_part([row(2, [1, 2, 30], is_correct=None)], hidden[2:], complete=True)
    return hidden


def test_parts_and_shards_are_read_back_as_written(tmp_path: Path) -> None:
    hidden = write_two_parts(tmp_path)
    found = TraceDirectory(tmp_path)
    assert (found.num_parts, found.num_traces, found.num_steps) == (2, 3, 5)
    assert found.complete
    assert found.manifest["model"] == "m"
    assert list(found.keys()) == [("q", 0), ("q", 1), ("q", 2)]
    table = found.table(["shard", "row_start", "num_steps", "is_correct", "step_scores"])
    assert table.to_pydict() == {
        "shard": [0, 0, 1],
        "row_start": [0, 2, 0],
        "num_steps": [2, 0, 3],
        "is_correct": [True, True, None],
        "step_scores": [None, None, None],
    }
    first, second = found.shards()
    assert torch.equal(first.hidden(), hidden[0])
    assert first.trace_index().tolist() == [0, 0]
    assert torch.equal(second.hidden(1, 3), hidden[2][1:3])
    assert second.position().tolist() == [1, 2, 30]
    assert second.dtype == torch.bfloat16
    found.verify()


def test_the_table_opens_as_one_data_set(tmp_path: Path) -> None:
    write_two_parts(tmp_path / "out")
    data = TraceDirectory(tmp_path / "out").dataset(cache_dir=tmp_path / "cache")
    assert data.column_names == TRACE_SCHEMA.names
    assert data[2]["boundary_positions"] == [1, 2, 30]
    assert data.cache_files  # memory-mapped, not in memory


def test_a_part_that_is_not_listed_does_not_exist(tmp_path: Path) -> None:
    write_two_parts(tmp_path)
    write_part(tmp_path / "traces/part-00002.parquet", [row(9, [], num_steps=0)])
    write_shard(tmp_path / "features/shard-00002.safetensors", states(0), [[]])
    (tmp_path / "traces/.part-00003.parquet.abc.tmp").touch()
    (tmp_path / "traces/notes.txt").touch()
    assert TraceDirectory(tmp_path).num_traces == 3
    with TraceWriter(tmp_path, SETTINGS):
        pass
    assert sorted(p.name for p in (tmp_path / "traces").iterdir()) == [
        "notes.txt",
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert len(list((tmp_path / "features").iterdir())) == 2


def test_going_on_needs_the_same_settings(tmp_path: Path) -> None:
    write_two_parts(tmp_path)
    with pytest.raises(InputError, match=r"Expected sampling\.top_p 0\.95 .*found 0\.9\. Hint"):
        TraceWriter(tmp_path, SETTINGS | {"sampling.top_p": 0.9})
    with TraceWriter(tmp_path, SETTINGS) as out:  # the refused one has given its lock back
        out.add_part([row(3, [7])], states(1))
    assert TraceDirectory(tmp_path).num_traces == 4


def test_with_nothing_written_other_settings_will_do(tmp_path: Path) -> None:
    with TraceWriter(tmp_path, SETTINGS):
        pass
    with TraceWriter(tmp_path, {"seed": 1}) as out:
        assert out.manifest["settings"] == {"seed": 1}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys; from data_gen.traces.writer import TraceWriter\n"
        "try: TraceWriter(sys.argv[1], {})\n"
        "except ValueError as error: print(error)"
    )
    with TraceWriter(tmp_path, {}):
        other = [sys.executable, "-c", code, str(tmp_path)]
        result = subprocess.run(other, capture_output=True, text=True, check=True)
    assert "Expected no other process writing" in result.stdout


def test_a_strangers_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"found thesis\.tex and no manifest\.json"):
        TraceWriter(tmp_path, {})
    write_manifest(tmp_path, run_manifest(kind="scorer training"))
    with pytest.raises(InputError, match="kind 'scorer training'. Hint: choose another"):
        TraceWriter(tmp_path, {})


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Expected a writable output directory"):
        TraceWriter(tmp_path / "file" / "out", {})


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    write_two_parts(tmp_path)
    path = tmp_path / "features/shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"shard-00001\.safetensors, found other content"):
        TraceDirectory(tmp_path).verify()
    path.unlink()
    with pytest.raises(InputError, match=r"Expected a feature shard at .*shard-00001"):
        TraceDirectory(tmp_path).shard(1)


def test_without_features_there_are_no_shards(tmp_path: Path) -> None:
    with TraceWriter(tmp_path, {}) as out:
        out.add_part([row(0, [4, 9])], None)
    found = TraceDirectory(tmp_path)
    assert found.part(0, ["shard", "row_start", "num_steps"]).to_pylist() == [
        {"shard": None, "row_start": None, "num_steps": 2}
    ]
    with pytest.raises(InputError, match="Expected features .* step-train extract"):
        found.shard(0)


def test_an_empty_directory_has_no_table(tmp_path: Path) -> None:
    with TraceWriter(tmp_path, {}) as out:
        with pytest.raises(InputError, match="Expected traces"):
            out.read().table(["seed"])
        assert list(out.read().keys()) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(0, []) | {"colour": "red"}], "found .*colour"),
        ([row(0, [], num_steps="many")], "Expected rows of the traces table"),
        ([row(0, [], num_steps=0, text=None)], "Expected a value in every row of column 'text'"),
        ([row(0, [])], "Expected a value in every row of column 'num_steps'"),
    ],
)
def test_rows_that_do_not_fit_the_table(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_part(tmp_path / "part.parquet", rows)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_lacks_a_column_or_is_none(tmp_path: Path) -> None:
    write_part(tmp_path / "part.parquet", [row(0, [], num_steps=0)])
    with pytest.raises(InputError, match="Expected column 'colour'"):
        read_part(tmp_path / "part.parquet", ["colour"])
    (tmp_path / "bad.parquet").write_bytes(b"PAR")
    with pytest.raises(InputError, match="Expected a Parquet file"):
        read_part(tmp_path / "bad.parquet")


def test_shards_travel_to_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "shard.safetensors"
    (hidden,) = states(4)
    write_shard(path, [hidden], [[0, 1, 2, 3]])
    shard = FeatureShard(path)
    assert torch.equal(shard.hidden(), hidden)
    copy = pickle.loads(pickle.dumps(shard))
    assert torch.equal(copy.hidden(1, 2), hidden[1:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_states_keep_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    write_shard(tmp_path / "shard", [torch.ones(2, H, dtype=dtype)], [[1, 2]])
    assert FeatureShard(tmp_path / "shard").dtype == dtype


@pytest.mark.parametrize(
    ("hidden", "positions", "message"),
    [
        ([], [], "at least one"),
        (states(2), [[1]], r"Expected states \[1, 8\]"),
        ([torch.ones(1, H), torch.ones(1, H + 1)], [[1], [2]], r"found \[1, 9\]"),
        ([torch.ones(1, H), torch.ones(1, H).half()], [[1], [2]], r"torch\.float16"),
        ([torch.full((1, H), torch.inf)], [[1]], "Expected finite states of trace 0"),
        ([torch.ones(1, H, dtype=torch.float64)], [[1]], "found torch.float64"),
    ],
)
def test_states_are_checked_before_they_are_written(
    tmp_path: Path, hidden: list[torch.Tensor], positions: list[list[int]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_shard(tmp_path / "shard", hidden, positions)
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_no_shards(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("no")
    for name in ("other.safetensors", "text", "none"):
        with pytest.raises(InputError, match=name):
            FeatureShard(tmp_path / name)


def test_size_estimate() -> None:
    # 4,096 wide: about 8 KB a step; 64 traces of 300 steps are 157 MB.
    assert feature_bytes(64 * 300, 4096, torch.bfloat16) == pytest.approx(157.4e6, rel=0.01)
