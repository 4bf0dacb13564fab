"""What step-collect and the ledger refuse, in whole: what they expected, found, and what to do."""

import bz2
import gzip
import json
import lzma
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_harness import run_command
from refusals import refusal
from safetensors.torch import save_file

from data_gen.commands import main
from data_gen.config import CollectConfig, ImportConfig
from data_gen.importer import read_responses
from data_gen.ledger.__main__ import LedgerConfig, write_questions
from data_gen.merge import read_shards
from data_gen.questions.benchmarks import BENCHMARKS, find_benchmark
from data_gen.questions.load import QuestionOptions, load_questions, shard_questions
from data_gen.questions.rows import Row
from data_gen.traces.directory import TraceDirectory
from data_gen.traces.features import FeatureShard, write_shard
from data_gen.traces.table import read_part, write_part
from data_gen.traces.writer import TraceWriter
from step_infer.storage.run_directory import read_manifest, run_manifest, write_manifest

collect = partial(CollectConfig, model="model", questions="questions.jsonl", out="out")
importing = partial(ImportConfig, responses="responses.jsonl", model="model", out="out")
KNOWN = ", ".join(BENCHMARKS)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        *(
            (
                partial(collect, **{name: 0}),
                f"--{name.replace('_', '-')} of at least 1, found 0.",
            )
            for name in (
                "num_traces",
                "max_in_flight",
                "part_traces",
                "steps_per_trace",
                "replicas",
            )
        ),
        (lambda: collect(grading_workers=0), "--grading-workers of at least 1, found 0."),
        (lambda: collect(allow_mismatch=["x"]), "--scorer beside --allow-mismatch, found none."),
        (lambda: collect(limit=0), "--limit of at least 1 question, found 0."),
        (
            lambda: collect(shard="4/4"),
            "--shard I/K with I from 0 to K - 1, such as 0/4, found '4/4'.",
        ),
        (lambda: collect(benchmark="aime"), f"a benchmark out of {KNOWN}, found 'aime'."),
        (lambda: find_benchmark("gsm"), f"a benchmark out of {KNOWN}, found 'gsm'."),
        (lambda: importing(part_traces=0), "--part-traces of at least 1, found 0."),
        (lambda: importing(grading_workers=-2), "--grading-workers of at least 1, found -2."),
        (
            lambda: read_shards([], "out"),
            "directories of step-collect --shard to merge, found none. "
            "Hint: step-collect merge DIR... --out DIR.",
        ),
        (
            lambda: write_questions(LedgerConfig(Path("out"), count=0)),
            "--count of at least 1 question, found 0.",
        ),
        (
            lambda: write_questions(LedgerConfig(Path("out"), split="dev")),
            "a split out of train, scorer-train, test, found 'dev'.",
        ),
    ],
)
def test_settings(make, text):
    assert refusal(make) == f"Expected {text}"


def test_a_subcommand_that_is_not_there():
    assert run_command(main, "record").stderr == (
        "error: Expected options, or a subcommand out of import, merge, found 'record'. "
        "Hint: see step-collect --help.\n"
    )


GOOD = '{"question": "1+1", "answer": "2"}'
SKIP = "Hint: mend it, or leave out such rows with --skip-bad-lines."


def read(name, content, **options):
    """Return a function that reads a file of this content in a folder."""

    def call(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        load_questions(folder / name, QuestionOptions(**options))

    return call


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "{",
            "one JSON object a line, found: Expecting property name enclosed in double quotes: "
            "line 2 column 1 (char 2).",
        ),
        ('{"id": "a"}{"id": "b"}', "one JSON object a line, found another from column 12 on."),
        ("[" * 100_000, "one JSON object a line, found one nested too deep."),
        ("[1]", "a JSON object, found [1]."),
        (
            '{"answer": "1"}',
            "a text under 'question', found only 'answer' (--question-field can name another).",
        ),
        ('{"question": 7, "answer": "1"}', "a text under 'question', found 7."),
        ('{"question": "x", "answer": null}', "an answer under 'answer', found null."),
        (
            '{"question": "x", "answer": [1]}',
            "a text or a finite number under 'answer', found [1].",
        ),
        (
            '{"question": "x", "answer": "1", "id": [1]}',
            "a text or a whole number under 'id', found [1].",
        ),
        (
            '{"question": "x", "answer": "1", "id": "\\ud83d"}',
            "Unicode text under 'id', found the lone surrogate '\\ud83d'.",
        ),
        (
            GOOD[:-1] + ', "id": "line-1"}',
            "each id once, found 'line-1' in TMP/q.jsonl:1 too, where it was made for a row "
            "without one.",
        ),
        (json.dumps({"question": "1" * 2**24}), "at most 16 MiB in a line, found more."),
    ],
)
def test_a_line_of_a_questions_file(line, text, tmp_path):
    found = refusal(read("q.jsonl", f"{GOOD}\n{line}\n"), tmp_path)
    assert found == f"TMP/q.jsonl:2: Expected {text} {SKIP}"


def test_a_worked_solution_without_its_answer(tmp_path):
    line = '{"problem": "x", "solution": "It is 5."}'
    found = refusal(read("q.jsonl", f"{GOOD}\n{line}\n", benchmark="math"), tmp_path)
    assert found == (
        "TMP/q.jsonl:2: Expected a solution with the right answer after '####' or in \\boxed{} "
        f"under 'solution', found \"It is 5.\". {SKIP}"
    )


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            read("q.jsonl", GOOD.encode() + b"\n\xe9"),
            "TMP/q.jsonl:2: Expected UTF-8 text, found: 'utf-8' codec can't decode byte 0xe9 in "
            f"position 0: unexpected end of data. {SKIP}",
        ),
        (
            read("q.jsonl", f'{GOOD[:-1]}, "id": "line-2"}}\n{GOOD}\n'),
            "TMP/q.jsonl:2: Expected each id once, found 'line-2', made for this row without one, "
            f"in TMP/q.jsonl:1 too. {SKIP}",
        ),
        (
            read("q.jsonl", f'{GOOD[:-1]}, "id": "a"}}\n{GOOD[:-1]}, "id": "a"}}\n'),
            f"TMP/q.jsonl:2: Expected each id once, found 'a' in TMP/q.jsonl:1 too. {SKIP}",
        ),
        *(
            (
                read("q.jsonl", content),
                f"Expected a file that is not compressed at TMP/q.jsonl, found {kind}. Hint: undo "
                f"it with {tool}, and give the file that comes out.",
            )
            for content, kind, tool in (
                (gzip.compress(GOOD.encode()), "gzip", "gunzip"),
                (pa.compress(GOOD.encode(), codec="zstd", asbytes=True), "Zstandard", "unzstd"),
                (bz2.compress(GOOD.encode()), "bzip2", "bunzip2"),
                (lzma.compress(GOOD.encode()), "xz", "unxz"),
                (b"PK\x03\x04" + bytes(26), "zip", "unzip"),
            )
        ),
        (
            read("q.csv", "question,answer\n" + "1," * 2**23 + "\n"),
            "Expected at most 16 MiB in a line of TMP/q.csv, found more.",
        ),
        (
            read("q.csv", 'question,answer\n"' + f"{'1' * 2**20}\n" * 17 + '",1\n'),
            "Expected CSV in UTF-8 in TMP/q.csv, found: field larger than field limit (16777216) "
            "(line 18). Hint: save it as UTF-8 and close every quotation mark.",
        ),
        (
            read("q.csv", "question,answer\n1+1\n"),
            f"TMP/q.csv, row 1: Expected 2 columns (first line), found 1. {SKIP}",
        ),
        (
            read("q.csv", "answer,question,answer\n"),
            "Expected each column once in the first line of TMP/q.csv, found 'answer' more than "
            "once. Hint: rename the others.",
        ),
        (
            read("q.csv", 'question,answer\n"1+1,2\n'),
            "Expected CSV in UTF-8 in TMP/q.csv, found: unexpected end of data (line 3). "
            "Hint: save it as UTF-8 and close every quotation mark.",
        ),
        (
            read("q.parquet", "text"),
            "Expected Parquet in TMP/q.parquet, found: Parquet file size is 4 bytes, smaller than "
            "the minimum file footer (8 bytes). "
            "Hint: the file may be cut short; copy or make it again.",
        ),
        (
            read("q.jsonl", "\n"),
            "Expected at least one question in TMP/q.jsonl, found none. "
            "Hint: check the source, --question-field and --answer-field.",
        ),
        (
            read("q.jsonl", "{\n{\n", skip_bad_lines=True),
            "Expected at least one question in TMP/q.jsonl, found none (2 bad rows left out). "
            "Hint: check the source, --question-field and --answer-field.",
        ),
        (
            lambda tmp: load_questions(tmp),
            "Expected a questions file at TMP, found a folder. Hint: give one of its files.",
        ),
        (
            lambda tmp: load_questions(tmp / "none.jsonl"),
            "Expected a readable questions file TMP/none.jsonl, or a hub id such as "
            "org/name:config@split, found no such file. Hint: check the path.",
        ),
        (
            lambda tmp: load_questions("aime_2025", QuestionOptions(benchmark="gpqa_diamond")),
            "Expected --benchmark aime_2025 or none, found gpqa_diamond. "
            "Hint: leave --benchmark out; the name says it.",
        ),
        (
            lambda tmp: load_questions("hmmt_2012_2023"),
            "Expected a file with the questions of hmmt_2012_2023, which no data set of the hub "
            "holds, found its name. Hint: say --questions FILE --benchmark hmmt_2012_2023.",
        ),
        (
            lambda tmp: shard_questions([None] * 2, "2/3"),
            "Expected at least one question in shard 2/3, found 2 in all. Hint: use fewer shards.",
        ),
    ],
)
def test_a_questions_file(refused, text, tmp_path):
    assert refusal(refused, tmp_path) == text


def test_a_questions_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = tmp_path / "q.jsonl"
    path.touch()

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", fail)
    assert refusal(lambda tmp: load_questions(path), tmp_path) == (
        "Expected a readable questions file TMP/q.jsonl, found: Input/output error. "
        "Hint: check the file and its permissions."
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"question": "x", "ground_truth": "1", "output": "y"},
            "'response', found only 'question', 'ground_truth', 'output' (--response-field can "
            "name another).",
        ),
        (
            {"question": "x", "ground_truth": "1", "response": [["y"]]},
            "a text or a list of texts under 'response', found [\"y\"].",
        ),
    ],
)
def test_responses(values, text):
    assert refusal(lambda: read_responses(Row("", "", values), importing())) == f"Expected {text}"


def trace(**changes):
    return {
        "question_id": "q",
        "trace_id": 0,
        "seed": 0,
        "question": "1+1",
        "prompt_token_ids": [1],
        "token_ids": [1, 2, 3],
        "text": "…",
        "finish_reason": "stop",
        "boundary_positions": [1, 2],
        **changes,
    }


def directory(folder, states=2, **settings):
    """Make a traces directory of one trace."""
    hidden = None if not states else [torch.zeros(states, 4).bfloat16()]
    with TraceWriter(folder, {"seed": 0, **settings}) as out:
        out.add_part([trace()], hidden, complete=True)
    return TraceDirectory(folder)


def listed(folder, **changes):
    """Make one whose manifest lists its feature shard otherwise."""
    found = directory(folder)
    found.manifest["parts"][0]["features"] |= changes
    return found


LISTED = {"file": "traces/part-00000.parquet", "rows": 1, "bytes": 1, "sha256": "f"}


def relisted(part, folder):
    """Open one whose manifest lists its part otherwise; `out` is a link that leads out."""
    (folder / "out").symlink_to("/dev/null")
    write_manifest(folder, run_manifest(kind="traces", parts=[part]))
    return TraceDirectory(folder)


def tensors(folder, **found):
    save_file(found, folder / "x.safetensors")
    return FeatureShard(folder / "x.safetensors")


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda tmp: write_part(tmp / "x", [trace(colour="red")]),
            "columns of the traces table, found ['colour']. "
            "Hint: leave out those that TRACE_SCHEMA lacks.",
        ),
        (
            lambda tmp: write_part(tmp / "x", [trace(num_steps="many")]),
            "rows of the traces table, found: Could not convert 'many' with type str: tried to "
            "convert to int32. "
            "Hint: TRACE_SCHEMA has the type of each column.",
        ),
        (
            lambda tmp: write_part(tmp / "x", [trace(num_steps=2), trace(num_steps=2, text=None)]),
            "a value in every row of column 'text', found none in 1 of 2 rows. "
            "Hint: fill it in every row.",
        ),
        (
            lambda tmp: write_part(tmp / "x", [trace(num_steps=2, extracted_answer="2")]),
            "an answer_group in every row with an extracted_answer, and in no other, found 1 "
            "answers and 0 groups. Hint: AnswerGroups.add numbers them.",
        ),
        (
            lambda tmp: (pq.write_table(pa.table({"a": [1]}), tmp / "x"), read_part(tmp / "x")),
            "column 'question_id' in TMP/x, found none. "
            "Hint: make it again with this version of the toolkit.",
        ),
        (
            lambda tmp: ((tmp / "x").write_text("text"), read_part(tmp / "x")),
            "a Parquet file at TMP/x, found: Parquet file size is 4 bytes, smaller than the "
            "minimum file footer (8 bytes). "
            "Hint: the copy may not be whole; copy or make it again.",
        ),
        (
            lambda tmp: write_shard(tmp / "x", [], []),
            "states and positions of the same traces, at least one, found 0 and 0. "
            "Hint: give one entry a trace in both lists.",
        ),
        (
            lambda tmp: write_shard(tmp / "x", [torch.zeros(1, 4, dtype=torch.int8)], [[1]]),
            "states in bfloat16, float16, float32, found torch.int8. "
            "Hint: convert them first, such as with .bfloat16().",
        ),
        (
            lambda tmp: write_shard(tmp / "x", [torch.zeros(2, 4).half()], [[1]]),
            "states [1, 4] torch.float16 of trace 0, found [2, 4] torch.float16. "
            "Hint: give one row a position, and one dtype for all traces.",
        ),
        (
            lambda tmp: write_shard(tmp / "x", [torch.full((1, 4), torch.inf)], [[1]]),
            "finite states of trace 0, found NaN or infinity in torch.float32. Hint: let the "
            "engine run, and the features be stored, in bfloat16 or float32.",
        ),
        (
            lambda tmp: FeatureShard(tmp / "none"),
            "a feature shard at TMP/none, found: No such file or directory: TMP/none. "
            "Hint: collect or extract again.",
        ),
        (
            lambda tmp: tensors(tmp, hidden=torch.zeros(3, 4)),
            "tensors hidden [S, H], trace_index [S] and position [S] in TMP/x.safetensors, found "
            "{'hidden': [3, 4]}. "
            "Hint: collect or extract again.",
        ),
        (
            lambda tmp: directory(tmp, states=0).shard(0),
            "features in TMP, found none. "
            "Hint: collect with --features true, or add them with step-train extract.",
        ),
        (
            lambda tmp: listed(tmp, bytes=7).shard(0),
            "7 bytes (manifest) in TMP/features/shard-00000.safetensors, found SIZE. "
            "Hint: the copy is not whole, or remove the directory and make it again.",
        ),
        (
            lambda tmp: listed(tmp, rows=9).shard(0),
            "9 rows (manifest) in TMP/features/shard-00000.safetensors, found 2. "
            "Hint: remove the directory and make it again.",
        ),
        (
            lambda tmp: listed(tmp, file="features/none").verify(),
            "TMP/features/none (manifest), found no such file. "
            "Hint: the copy is not whole, or remove the directory and make it again.",
        ),
        (
            lambda tmp: listed(tmp, sha256="f" * 64).verify(),
            "SIZE bytes with checksum ffffffffffff… (manifest) in "
            "TMP/features/shard-00000.safetensors, found other content. "
            "Hint: remove the directory and make it again.",
        ),
        *(
            (
                partial(relisted, part),
                "file, rows, bytes and sha256 of traces, and of features or null, in part 0 of "
                f"TMP/manifest.json, found {part!r:.60}. Hint: restore the manifest, or make the "
                "directory again.",
            )
            for part in (
                7,
                [],
                {},
                {"traces": LISTED | {"file": 7}},
                {"traces": LISTED | {"file": "\0"}},
                {"traces": LISTED | {"rows": "1"}},
                {"traces": LISTED | {"rows": -1}},
                {"traces": LISTED, "features": 7},
                {"traces": LISTED, "features": {"file": "x"}},
            )
        ),
        *(
            (
                partial(relisted, {"traces": LISTED | {"file": file}, "features": None}),
                f"part 0 of TMP/manifest.json inside its directory, found {file!r}, which leads "
                "out of it. Hint: copy the file into the directory; links to other places are not "
                "followed.",
            )
            for file in ("../x", "traces/../../x", "/dev/null", "out")
        ),
        (
            lambda tmp: (TraceWriter(tmp, {}).close(), TraceDirectory(tmp).table(["text"])),
            "traces in TMP, found none. "
            "Hint: give the command that makes it again; it goes on where it stopped.",
        ),
        (
            lambda tmp: (TraceWriter(tmp, {}).close(), TraceDirectory(tmp).dataset()),
            "traces in TMP, found none. "
            "Hint: give the command that makes it again; it goes on where it stopped.",
        ),
        (
            lambda tmp: (write_manifest(tmp, run_manifest(kind="step-eval")), TraceDirectory(tmp)),
            "a traces directory at TMP, found a manifest of kind 'step-eval'. "
            "Hint: make one with step-collect.",
        ),
    ],
)
def test_tables_and_features(refused, text, tmp_path):
    found = refusal(refused, tmp_path)
    shard = tmp_path / "features" / "shard-00000.safetensors"
    size = str(shard.stat().st_size) if shard.exists() else ""
    assert found == f"Expected {text.replace('SIZE', size)}"


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda tmp: TraceWriter(Path("/dev/null/out"), {}),
            "a writable output directory at /dev/null/out, found: Not a directory. "
            "Hint: choose another path or change its permissions.",
        ),
        (
            lambda tmp: ((tmp / "traces").write_text(""), TraceWriter(tmp, {})),
            "an empty directory or one of an earlier run at TMP, found traces and no "
            "manifest.json. Hint: choose another output directory.",
        ),
        (
            lambda tmp: (write_manifest(tmp, run_manifest(kind="x")), TraceWriter(tmp, {})),
            "an empty directory or one of an earlier run at TMP, found another command's, of kind "
            "'x'. Hint: choose another output directory.",
        ),
        (
            lambda tmp: (directory(tmp), TraceWriter(tmp, {"seed": 0}, merged=[])),
            "an empty directory or one of the same command at TMP, found traces of one run. "
            "Hint: choose another output directory.",
        ),
        (
            lambda tmp: (directory(tmp), TraceWriter(tmp, {"seed": "x" * 99})),
            f"seed 0 (the run started in TMP), found '{'x' * 78}…. "
            "Hint: use the same settings to go on, or another output directory.",
        ),
    ],
)
def test_an_output_directory(refused, text, tmp_path):
    assert refusal(refused, tmp_path) == f"Expected {text}"


def test_an_output_directory_whose_folders_cannot_be_written(tmp_path):
    directory(tmp_path)
    (tmp_path / "features" / ".probe").mkdir()
    assert refusal(lambda tmp: TraceWriter(tmp, {"seed": 0}), tmp_path) == (
        "Expected a writable output directory at TMP/features, found: Is a directory. "
        "Hint: choose another path or change its permissions."
    )


def test_an_output_directory_that_another_writer_holds(tmp_path):
    with TraceWriter(tmp_path, {}):
        assert refusal(lambda tmp: TraceWriter(tmp, {}), tmp_path) == (
            "Expected no other process writing to TMP, found another process that writes there. "
            "Hint: wait for it, stop it, or choose another output directory."
        )


def shards(folder, *names, out="out", **settings):
    for name in names:
        directory(folder / name.replace("/", "-"), shard=name, **settings)
    return read_shards([str(folder / name.replace("/", "-")) for name in names], str(folder / out))


def unfinished(folder):
    (folder / "0-1").mkdir()
    directory(folder / "0-1", shard="0/1")
    write_manifest(folder / "0-1", read_manifest(folder / "0-1") | {"complete": False})
    read_shards([str(folder / "0-1")], str(folder / "out"))


def twice(folder):
    directory(folder / "a", shard="1/2")
    directory(folder / "b", shard="1/2")
    read_shards([str(folder / "a"), str(folder / "b")], str(folder / "out"))


def others(folder):
    directory(folder / "a", shard="0/2")
    directory(folder / "b", shard="1/2", system="Think.")
    read_shards([str(folder / "a"), str(folder / "b")], str(folder / "out"))


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (
            lambda tmp: shards(tmp, "0/1", out="0-1"),
            "--out to be a new directory, found one of the shards, TMP/0-1. "
            "Hint: choose another --out.",
        ),
        (twice, "each shard once, found 1/2 in TMP/a and in TMP/b. Hint: leave one of them out."),
        (
            lambda tmp: shards(tmp, "1/3"),
            "all 3 shards, found 1 of them; missing: 0/3, 2/3. Hint: collect them with --shard.",
        ),
        (
            unfinished,
            "finished shards, found TMP/0-1 unfinished (1 traces so far). "
            "Hint: give its step-collect command again; it goes on where it stopped.",
        ),
        (
            lambda tmp: (directory(tmp), read_shards([str(tmp)], "out")),
            "a directory of step-collect --shard at TMP, found traces without a shard. "
            "Hint: leave it out; it is whole already.",
        ),
        (
            others,
            "shards with the same settings, found system None in TMP/a and 'Think.' in TMP/b. "
            "Hint: collect one of them again with the other's settings.",
        ),
    ],
)
def test_shards(refused, text, tmp_path):
    assert refusal(refused, tmp_path) == f"Expected {text}"
