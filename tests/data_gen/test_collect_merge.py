"""Questions shared between several collections, and their traces joined again."""

import dataclasses
import io
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from collect_engine import CollectEngine, assert_whole
from command_harness import run_command
from fake_engine import made_up_model
from rich.console import Console

from data_gen.collect import collect
from data_gen.commands import main
from data_gen.config import CollectConfig, CollectMergeConfig
from data_gen.merge import merge
from data_gen.questions.load import Question, shard_questions
from data_gen.traces.directory import TraceDirectory
from data_gen.traces.writer import TraceWriter
from step_eval.budget import mean_response_tokens
from step_infer.client.kinds import AnswerOptions
from step_infer.errors import InputError
from step_train.data.training_data import read_training_data

N, QUESTIONS = 4, 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> CollectConfig:
    """A run of all questions."""
    folder = tmp_path_factory.mktemp("whole")
    lines = [
        json.dumps({"id": f"q{number}", "question": f"{number}-1", "answer": "0"}) + "\n"
        for number in range(QUESTIONS)
    ]
    (folder / "questions.jsonl").write_text("".join(lines))
    config = CollectConfig(
        str(made_up_model(folder, hidden_size=CollectEngine.H)),
        str(folder / "questions.jsonl"),
        str(folder / "out"),
        num_traces=N,
        part_traces=5,
        system="",
    )
    run(config)
    return config


def run(config: CollectConfig, **changes: Any) -> str:
    config = dataclasses.replace(config, **changes)
    collect(config, CollectEngine(), Console(file=io.StringIO()))
    return config.out


def join(shards: list[str], out: Path) -> dict[str, Any]:
    return merge(CollectMergeConfig(str(out), shards), Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def shards(whole: CollectConfig, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same run as three shards."""
    folder = tmp_path_factory.mktemp("shards")
    return [run(whole, shard=f"{i}/3", out=str(folder / str(i))) for i in range(3)]


def traces(path: Path | str) -> dict[tuple[str, int], tuple[dict[str, Any], list[list[float]]]]:
    """Every trace's columns, but where its states are, and these states.

    For the number of its group stands which traces are in it: numbers follow the order of the ends.
    """
    found = TraceDirectory(path)
    read = {}
    for index in range(found.num_parts):
        shard = found.shard(index)
        for row in found.part(index).to_pylist():
            start = row.pop("row_start")
            assert row.pop("shard") == index
            states_SH = shard.hidden(start, start + row["num_steps"])
            read[row["question_id"], row["trace_id"]] = row, states_SH.tolist()
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    for question_id, trace_id in sorted(read):
        groups[question_id, read[question_id, trace_id][0]["answer_group"]].append(trace_id)
    for row, _ in read.values():
        row["answer_group"] = groups[row["question_id"], row["answer_group"]]
    return read


def test_a_shard_takes_every_kth_question(shards: list[str]) -> None:
    for index, shard in enumerate(shards):
        asked = {question for question, _ in TraceDirectory(shard).keys()}  # noqa: SIM118
        assert asked == {f"q{number}" for number in range(index, QUESTIONS, 3)}


def test_shards_joined_are_the_whole_run(
    whole: CollectConfig, shards: list[str], tmp_path: Path
) -> None:
    summary = join(shards, tmp_path)
    assert_whole(dataclasses.replace(whole, out=str(tmp_path)), QUESTIONS)
    assert traces(tmp_path) == traces(whole.out)
    joined, alone = TraceDirectory(tmp_path), TraceDirectory(whole.out)
    assert joined.complete
    times = {"seconds", "tokens_per_second"}
    expected = alone.manifest["summary"].items()
    assert {k: v for k, v in summary.items() if k not in times} == {
        k: v for k, v in expected if k not in times
    }
    engines = [TraceDirectory(shard).manifest["seconds"] for shard in shards]
    assert summary["seconds"] == pytest.approx(sum(engines))
    assert joined.manifest["summary"] == summary
    for name in ("model", "identity", "boundary", "sampling", "seed", "questions"):
        assert joined.manifest[name] == alone.manifest[name]


def test_joined_shards_serve_training_and_the_kv_budget(
    whole: CollectConfig, shards: list[str], tmp_path: Path
) -> None:
    join(shards, tmp_path)
    assert mean_response_tokens(tmp_path) == mean_response_tokens(whole.out)
    settings = {"val_fraction": 0.3, "test_fraction": 0.3, "max_traces_per_class": None, "seed": 0}
    joined, alone = (
        read_training_data(path, **settings, verify_checksums=True)
        for path in (tmp_path, whole.out)
    )
    assert joined.complete
    assert joined.split_ids() == alone.split_ids()
    assert joined.summary()["splits"] == alone.summary()["splits"]


def test_the_order_in_which_shards_are_given_changes_nothing(
    shards: list[str], tmp_path: Path
) -> None:
    join(shards, tmp_path / "one")
    join([shards[2], shards[0], shards[1]], tmp_path / "other")
    one, other = TraceDirectory(tmp_path / "one"), TraceDirectory(tmp_path / "other")
    assert one.fingerprint == other.fingerprint
    assert list(one.keys()) == list(other.keys())


def test_states_are_linked_not_copied(shards: list[str], tmp_path: Path) -> None:
    join(shards, tmp_path)
    for shard in (tmp_path / "features").iterdir():
        assert shard.stat().st_nlink >= 2


def test_states_are_copied_where_they_cannot_be_linked(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_file_system(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", other_file_system)
    join(shards, tmp_path)
    TraceDirectory(tmp_path).verify()
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "features").iterdir())


def test_runs_without_features_are_joined(whole: CollectConfig, tmp_path: Path) -> None:
    outs = [run(whole, shard=f"{i}/2", out=str(tmp_path / str(i)), features=False) for i in (0, 1)]
    summary = join(outs, tmp_path / "joined")
    assert summary["traces"] == N * QUESTIONS
    found = TraceDirectory(tmp_path / "joined")
    found.verify()
    assert found.table(["shard"])["shard"].null_count == N * QUESTIONS


def test_joined_shards_compare_answers_as_their_runs_did(
    whole: CollectConfig, tmp_path: Path
) -> None:
    near = AnswerOptions("number", tolerance=1)
    parts = [
        run(whole, shard=f"{index}/2", out=str(tmp_path / str(index)), answers=near)
        for index in range(2)
    ]
    summary = join(parts, tmp_path / "joined")
    assert summary["majority_accuracy"] == 1.0
    kept = TraceDirectory(tmp_path / "joined").manifest["settings"]
    assert AnswerOptions.from_settings(kept) == near


def test_a_join_that_is_done_stays_as_it_is(shards: list[str], tmp_path: Path) -> None:
    summary = join(shards, tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    assert join(shards, tmp_path) == summary
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_join_that_failed_in_the_middle_starts_again(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("data_gen.merge.summarise", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            join(shards, tmp_path)
    assert not TraceDirectory(tmp_path).complete
    assert join(shards, tmp_path)["traces"] == N * QUESTIONS
    assert TraceDirectory(tmp_path).complete


def test_another_shard_in_the_same_directory_is_refused(whole: CollectConfig) -> None:
    with pytest.raises(InputError, match="Expected shard '0/1' .*the run started in.*found '0/2'"):
        run(whole, shard="0/2")


def test_collecting_into_joined_shards_is_refused(
    whole: CollectConfig, shards: list[str], tmp_path: Path
) -> None:
    join(shards, tmp_path)
    with pytest.raises(InputError, match=r"found joined shards \(step-collect merge\)"):
        run(whole, out=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "found seed 0 in .* and 1 in"),
        ({"system": "Think."}, "found system '' in"),
        ({"answers": AnswerOptions("exact")}, "found answers.kind 'math' in .* and 'exact' in"),
        ({"shard": "1/2"}, "found number of shards 3 in .* and 2 in"),
        ({"feature_dtype": "float16"}, "found feature_dtype 'auto' in"),
    ],
)
def test_shards_of_other_runs_are_refused(
    whole: CollectConfig, shards: list[str], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    other = run(whole, **({"shard": "1/3", "out": str(tmp_path / "other")} | change))
    with pytest.raises(InputError, match=f"Expected shards with the same settings, {named}"):
        join([shards[0], other, shards[2]], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_shards_of_another_model_or_state_type_are_refused(
    whole: CollectConfig, shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    model = str(made_up_model(tmp_path / "model", hidden_size=2 * CollectEngine.H))
    monkeypatch.setattr(CollectEngine, "H", 2 * CollectEngine.H)
    other = run(whole, shard="1/3", out=str(tmp_path / "wide"), model=model)
    monkeypatch.undo()
    with pytest.raises(InputError, match="found model_config_hash"):
        join([shards[0], other, shards[2]], tmp_path / "joined")
    exact = CollectEngine.trace

    def in_float32(self: CollectEngine, plan: Any) -> Any:
        trace = exact(self, plan)
        states_SH = None if trace.hidden_SH is None else trace.hidden_SH.to(torch.float32)
        return dataclasses.replace(trace, hidden_SH=states_SH)

    monkeypatch.setattr(CollectEngine, "trace", in_float32)
    other = run(whole, shard="1/3", out=str(tmp_path / "float32"))
    with pytest.raises(InputError, match=r"found state type 'torch\.bfloat16' in .*float32"):
        join([shards[0], other, shards[2]], tmp_path / "joined")


def test_an_unfinished_shard_is_refused(
    whole: CollectConfig, shards: list[str], tmp_path: Path
) -> None:
    config = dataclasses.replace(whole, shard="1/3", out=str(tmp_path / "half"))
    with pytest.raises(RuntimeError):
        collect(config, CollectEngine(dies_after=6), Console(file=io.StringIO()))
    with pytest.raises(InputError, match=r"found .*half unfinished \(6 traces so far\)"):
        join([shards[0], config.out, shards[2]], tmp_path / "joined")


def test_shards_that_are_not_all_or_not_whole_are_refused(
    whole: CollectConfig, shards: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "joined"
    with pytest.raises(InputError, match="Expected directories of step-collect --shard"):
        join([], out)
    with pytest.raises(InputError, match="Expected all 3 shards, found 1 of them; missing: 0/3, 2"):
        join([shards[1]], out)
    with pytest.raises(InputError, match="Expected each shard once, found 1/3 in"):
        join([*shards, shards[1]], out)
    with pytest.raises(InputError, match="found one of the shards"):
        join(shards, Path(shards[0]))
    with TraceWriter(tmp_path / "other", {}) as made_elsewhere:
        made_elsewhere.update(complete=True)
    with pytest.raises(InputError, match="found traces without a shard"):
        join([str(tmp_path / "other")], out)
    damaged = tmp_path / "damaged"
    shutil.copytree(shards[0], damaged)
    with (damaged / "traces" / "part-00000.parquet").open("r+b") as file:
        file.seek(10)
        file.write(b"?????")
    with pytest.raises(InputError, match="found other content"):
        join([str(damaged), *shards[1:]], out)


def test_a_directory_with_other_content_is_left_alone(
    whole: CollectConfig, shards: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"found notes\.txt and no manifest\.json"):
        join(shards, tmp_path / "mine")
    before = TraceDirectory(whole.out).fingerprint
    with pytest.raises(InputError, match="found traces of one run"):
        join(shards, Path(whole.out))
    assert TraceDirectory(whole.out).fingerprint == before
    join([run(whole, shard="0/1", out=str(tmp_path / "all"))], tmp_path / "joined")
    with pytest.raises(InputError, match=r"Expected shard 0/3 None \(the run started in"):
        join(shards, tmp_path / "joined")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=r"writable output directory at .*loop, found: File exist"):
        join(shards, tmp_path / "loop")


def test_an_empty_shard_is_refused_before_the_engine_starts(
    whole: CollectConfig, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="in shard 7/8, found 7 in all"):
        run(whole, shard="7/8", out=str(tmp_path / "out"))


@pytest.mark.parametrize("shard", ["1", "1/1", "-1/2", "a/b", "1/"])
def test_a_shard_that_is_none_is_refused(whole: CollectConfig, shard: str) -> None:
    with pytest.raises(InputError, match="Expected --shard I/K with I from 0"):
        dataclasses.replace(whole, shard=shard)


def test_shards_share_all_questions() -> None:
    questions = [Question(str(number), "?", None) for number in range(10)]
    parts = [shard_questions(questions, f"{index}/4") for index in range(4)]
    assert sorted(len(part) for part in parts) == [2, 2, 3, 3]
    assert {q.id for part in parts for q in part} == {q.id for q in questions}


def test_the_merge_command(shards: list[str], tmp_path: Path) -> None:
    done = run_command(main, "merge", *shards, "--out", tmp_path / "joined")
    assert done.returncode == 0, done.stderr
    assert "questions right by majority vote" in done.stdout
    assert TraceDirectory(tmp_path / "joined").num_traces == N * QUESTIONS
    refused = run_command(main, "merge", shards[0], "--out", tmp_path / "two")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "missing: 1/3, 2/3" in line
    assert "--shards" in run_command(main, "merge", "--help").stdout
