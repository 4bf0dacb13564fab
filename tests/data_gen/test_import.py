"""Traces made elsewhere: what becomes of them, what is left out, and going on after a stop."""

import dataclasses
import io
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_harness import run_command
from hub_cache import run_beside_two_revisions
from places import CHECKPOINT
from rich.console import Console
from transformers import AutoModel

from data_gen import commands
from data_gen.commands import import_command
from data_gen.config import ImportConfig
from data_gen.importer import import_traces
from data_gen.ledger.questions import iter_questions
from data_gen.ledger.reasoner import Reasoner
from data_gen.traces.directory import TraceDirectory
from step_infer.client.kinds import AnswerOptions
from step_infer.client.prompt import chat_prompt, load_tokenizer
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryOptions
from step_train import commands as training_commands

QUESTIONS = list(itertools.islice(iter_questions("test"), 3))


def response(number: int, seed: int) -> str:
    return Reasoner().trace(QUESTIONS[number].numbers, random.Random(seed)).text


def line(number: int, answer: Any, **fields: Any) -> dict[str, Any]:
    question = QUESTIONS[number]
    return {
        "question": question.text,
        "response": answer,
        "ground_truth": str(question.answer),
    } | fields


BODY = response(0, 0).partition("</think>")[2]
ROWS = [
    line(0, response(0, 0)),
    line(1, [response(1, 0), response(1, 1)]),
    line(0, "<think>\n" + response(0, 1)),  # the template opens the thinking already
    line(2, response(2, 0), ground_truth=QUESTIONS[2].answer),  # a number
    line(0, response(0, 2).partition("</think>")[0]),  # cut off: no answer
    line(0, None),
    line(0, BODY),  # no thinking part
    line(0, "<think>\n\n</think>" + BODY),
    line(1, "\n\n" * 5000 + response(1, 2)),  # longer than the context
    line(1, response(1, 3)),
]
LEFT_OUT = {"no answer": 2, "no thinking part": 2, "too long": 1}


def write(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def config(tmp_path: Path) -> ImportConfig:
    write(tmp_path / "responses.jsonl", ROWS)
    return ImportConfig(
        str(tmp_path / "responses.jsonl"), str(CHECKPOINT), str(tmp_path / "traces")
    )


def run(config: ImportConfig) -> dict[str, Any]:
    return import_traces(config, Console(file=io.StringIO()))


def traces(config: ImportConfig) -> list[dict[str, Any]]:
    found = TraceDirectory(config.out)
    return [row for index in range(found.num_parts) for row in found.part(index).to_pylist()]


def test_responses_become_traces(config: ImportConfig) -> None:
    summary = run(config)
    assert (summary["questions"], summary["traces"]) == (3, 5 + 1)
    assert summary["imported"] == {"rows": len(ROWS), "skipped": LEFT_OUT, "bad_rows": 0}
    assert TraceDirectory(config.out).complete
    rows = traces(config)
    assert len({(row["question_id"], row["trace_id"]) for row in rows}) == len(rows)
    tokenizer = load_tokenizer(str(CHECKPOINT))
    rule = BoundaryOptions().rule(tokenizer)
    texts = [response(0, 0), response(1, 0), response(1, 1), response(0, 1), response(2, 0)]
    for row, text in zip(rows, texts, strict=False):
        number = next(i for i, q in enumerate(QUESTIONS) if q.text == row["question"])
        assert row["text"] == text
        assert tokenizer.decode(row["token_ids"]) == text
        assert row["prompt_token_ids"] == chat_prompt(tokenizer, QUESTIONS[number].text)
        assert row["boundary_positions"] == rule.positions(row["token_ids"])
        assert row["num_steps"] == len(row["boundary_positions"]) > 0
        answer = text.rpartition(r"\boxed{")[2].partition("}")[0]
        assert row["extracted_answer"] == answer
        assert row["is_correct"] is (int(answer) == QUESTIONS[number].answer)
        assert row["step_scores"] is None
    assert {row["is_correct"] for row in rows} == {True, False}


def test_another_text_can_end_the_thinking(config: ImportConfig) -> None:
    thoughts = "[THINK]S1=1\n\nS2=3\n\n"
    rows = [line(0, thoughts + "[/THINK]\n\nSo\n\n\\boxed{3}"), line(0, thoughts + "\\boxed{1}")]
    write(Path(config.responses), rows)
    found = run(dataclasses.replace(config, boundary=BoundaryOptions(think_end="[/THINK]")))
    assert found["imported"]["skipped"] == dict.fromkeys(LEFT_OUT, 0) | {"no thinking part": 1}
    (row,) = traces(config)
    assert row["extracted_answer"] == "3"
    assert row["num_steps"] == 2


@pytest.mark.parametrize(
    ("kind", "answers"),
    [("math", ["7"]), ("auto", ["3.50", "7"]), ("number", ["3.50", "7", "4.0"])],
)
def test_the_answer_kind_says_which_responses_have_an_answer(
    config: ImportConfig, kind: str, answers: list[str]
) -> None:
    thoughts = "S1=1\n\nS2=9\n\n</think>"
    ends = ["The answer is 3.50.", "So \\boxed{7}", "It is 4.0 in all", "I do not know"]
    rows = [line(0, thoughts + end, ground_truth="3.5") for end in ends]
    write(Path(config.responses), rows)
    found = run(dataclasses.replace(config, answers=AnswerOptions(kind)))
    rows = traces(config)
    assert [row["extracted_answer"] for row in rows] == answers
    assert [row["is_correct"] for row in rows] == [answer == "3.50" for answer in answers]
    assert found["imported"]["skipped"]["no answer"] == len(ends) - len(answers)
    with pytest.raises(InputError, match=rf"answers\.kind '{kind}' \(the run started in"):
        run(dataclasses.replace(config, answers=AnswerOptions("exact")))


def test_responses_without_any_boundary_are_told(config: ImportConfig) -> None:
    write(Path(config.responses), [line(0, "S1=1 S2=3</think>\\boxed{3}")])
    printed = io.StringIO()
    import_traces(config, Console(file=printed, width=300))
    assert "no trace of the first part has a step boundary" in printed.getvalue()


def test_fields_can_have_other_names(config: ImportConfig) -> None:
    names = {"question": "problem", "response": "output", "ground_truth": "gold"}
    write(Path(config.responses), [{names[k]: v for k, v in row.items()} for row in ROWS])
    with pytest.raises(InputError, match="Expected a text under 'question', found only 'problem'"):
        run(config)
    mapped = dataclasses.replace(
        config, question_field="problem", response_field="output", answer_field="gold"
    )
    assert run(mapped)["traces"] == 6


def test_an_import_that_was_stopped_goes_on(
    config: ImportConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    expected = run(whole)
    from data_gen.traces.writer import TraceWriter

    config = dataclasses.replace(config, part_traces=1)
    add_part: Callable[..., None] = TraceWriter.add_part

    def stopping(self: TraceWriter, *arguments: Any, **options: Any) -> None:
        if len(self.manifest["parts"]) == 2:
            raise KeyboardInterrupt
        add_part(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TraceWriter, "add_part", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert len(traces(config)) == 3
    assert not TraceDirectory(config.out).complete
    found = run(config)
    assert found["imported"] == expected["imported"]
    without_part = [{k: v for k, v in row.items()} for row in traces(config)]
    assert without_part == traces(whole)
    assert run(config)["traces"] == 6  # and once more there is nothing left to do
    with pytest.raises(InputError, match="Expected system 'Please reason"):
        run(dataclasses.replace(config, system=""))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "responses.jsonl:1: Expected one JSON object a line"),
        (line(0, 7), "Expected a text or a list of texts under 'response', found 7"),
        (line(0, "1\ud800"), r"Unicode text under 'response', found the lone surrogate '\\ud800'"),
        (line(0, [["x"]]), r"Expected a text or a list of texts under 'response', found \[\"x\"\]"),
        (
            {"question": "q", "ground_truth": "1"},
            "found only 'question', 'ground_truth' .--response-f",
        ),
        (line(0, "x", ground_truth=None), "Expected an answer under 'ground_truth', found null"),
        (line(0, "x", question=" "), "Expected a text under 'question'"),
    ],
)
def test_a_row_that_cannot_be_used_stops_the_import_or_is_counted(
    config: ImportConfig, bad: Any, message: str
) -> None:
    text = bad if isinstance(bad, str) else json.dumps(bad)
    path = Path(config.responses)
    path.write_text(text + "\n" + path.read_text())
    with pytest.raises(InputError, match=message):
        run(config)
    assert not Path(config.out).exists()
    summary = run(dataclasses.replace(config, skip_bad_lines=True))
    assert (summary["traces"], summary["imported"]["bad_rows"]) == (6, 1)


def test_a_question_with_two_right_answers_is_refused(config: ImportConfig) -> None:
    write(Path(config.responses), [*ROWS, line(0, response(0, 5), ground_truth="-1")])
    with pytest.raises(InputError, match=r":11: Expected one right answer .* found '-1' here"):
        run(config)


def test_the_same_answer_in_another_form_is_no_contradiction(config: ImportConfig) -> None:
    value = QUESTIONS[0].answer
    write(Path(config.responses), [*ROWS, line(0, response(0, 5), ground_truth=f"{value}.0")])
    assert run(config)["traces"] == 7


def test_nothing_that_can_be_used_is_an_error(config: ImportConfig) -> None:
    write(Path(config.responses), [line(0, None), line(0, BODY)])
    with pytest.raises(InputError, match=r"found none \(1 no answer, 1 no thinking part"):
        run(config)
    Path(config.responses).write_text("")
    with pytest.raises(InputError, match="Expected responses in .*, found none"):
        run(config)


def test_features_of_imported_traces_are_extracted(tmp_path: Path) -> None:
    write(tmp_path / "responses.jsonl", ROWS)
    made, out = tmp_path / "traces", tmp_path / "features"
    result = run_command(
        *(commands.main, "import", "--responses", tmp_path / "responses.jsonl"),
        *("--model", CHECKPOINT, "--out", made),
    )
    assert result.returncode == 0, result.stderr
    assert "Left out: 2 no answer, 2 no thinking part, 1 too long" in result.stdout
    result = run_command(
        *(training_commands.main, "extract", "--model", CHECKPOINT, "--traces", made),
        *("--out", out, "--dtype", "float32", "--accelerator", "cpu"),
    )
    assert result.returncode == 0, result.stderr
    found = TraceDirectory(out)
    assert found.complete
    rows = found.part(0).to_pylist()
    assert [row["is_correct"] for row in rows] == [
        row["is_correct"] for row in TraceDirectory(made).part(0).to_pylist()
    ]
    shard = found.shards()[0]
    hidden = shard.hidden(0, sum(row["num_steps"] for row in rows))
    assert hidden.shape == (sum(row["num_steps"] for row in rows), 256)
    row = rows[-1]
    model = AutoModel.from_pretrained(str(CHECKPOINT), dtype=torch.float32).eval()
    with torch.inference_mode():
        ids = torch.tensor([row["prompt_token_ids"] + row["token_ids"]])
        states = model(input_ids=ids).last_hidden_state[0]
    places = torch.tensor(row["boundary_positions"]) + len(row["prompt_token_ids"])
    first = row["row_start"]
    torch.testing.assert_close(
        hidden[first : first + row["num_steps"]], states[places], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--responses", "/no/such"], "Expected a readable"),
        (["--responses", "."], "found a folder"),
        (["--responses", "{binary}"], "Expected UTF-8 text"),
        (["--responses", "{empty}"], "found none"),
        (["--model", "/no/such"], "Expected a model folder or a hub id"),
        (["--out", "/dev/null/out"], "Expected a writable output directory"),
        (["--part-traces", "0"], "Expected --part-traces of at least 1"),
        (["--grading-workers", "0"], "Expected --grading-workers of at least 1"),
        (["--colour", "red"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_input_is_named_in_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    write(tmp_path / "good.jsonl", ROWS[:1])
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(255, -1, -1)))
    (tmp_path / "empty.jsonl").touch()
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("binary", "empty")}
    given = {
        "--responses": str(tmp_path / "good.jsonl"),
        "--model": str(CHECKPOINT),
        "--out": str(tmp_path / "traces"),
    } | {options[0]: options[1].format(**files)}
    with pytest.raises(InputError, match=message) as caught:
        import_command(list(itertools.chain(*given.items())))
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_subcommand_is_named() -> None:
    result = run_command(commands.main, "imports")
    assert result.returncode == 2
    assert "a subcommand out of import, merge, found 'imports'" in result.stderr


def test_the_revision_of_a_hub_model_is_that_of_its_tokenizer_and_prompts(
    config: ImportConfig, tmp_path: Path
) -> None:
    """The process has a hub cache with two revisions, and no network."""
    code = f"""
import sys
from data_gen.config import ImportConfig
from data_gen.importer import import_traces
from data_gen.traces.directory import TraceDirectory
from step_infer.client.prompt import load_tokenizer
revision = sys.argv[1] if sys.argv[1] == "v1" else None
import_traces(ImportConfig({config.responses!r}, "org/name", sys.argv[1], revision=revision))
found = TraceDirectory(sys.argv[1])
text = load_tokenizer({config.model!r}).decode(found.part(0).to_pylist()[0]["prompt_token_ids"])
print(text[:3], found.manifest["identity"]["revision"])
"""
    for name, printed in (("v1", "old v1"), ("main", "new None")):
        output = run_beside_two_revisions(tmp_path, config.model, "-c", code, name)
        assert output.splitlines()[-1:] == [printed]
    with pytest.raises(InputError, match="reachable hub id, found 'org/name' at revision 'v2'"):
        run(dataclasses.replace(config, model="org/name", revision="v2"))
