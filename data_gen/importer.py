"""Import traces that were made elsewhere, resumably: `import_traces(ImportConfig(...))`.

The form is that of the paper's code: an object a line with question, response and ground truth.
What is made of it is a traces directory like that of a collection, without features; `step-train
extract` adds them.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from data_gen.config import ImportConfig
from data_gen.questions.load import read_answer, read_text, unicode_text
from data_gen.questions.rows import Row, RowSource, short
from data_gen.summary import print_summary, summarise
from data_gen.traces.groups import AnswerGroups
from data_gen.traces.writer import TraceWriter
from step_infer.cli.progress import TraceProgress
from step_infer.client.grading import Grader
from step_infer.client.prompt import chat_prompt, context_length, load_tokenizer
from step_infer.errors import InputError
from step_infer.scorer.boundary import NO_BOUNDARY
from step_infer.scorer.identity import identify
from step_infer.scorer.think_end import opens_thinking, think_start

_MOST_LINE_MIB = 256
"""Longest line of responses: one line may hold all of a question's."""

NO_SEED = -1
"""Stands in the table where a trace's sampling seed is not known."""

SKIP_REASONS = ("no answer", "no thinking part", "too long")
"""Why a response is left out, in the order of asking; one without text has no answer."""


@dataclass(frozen=True)
class Responses:
    """What one row holds."""

    question: str
    truth: str
    texts: list[str]

    @property
    def question_id(self) -> str:
        """An id that follows from the question's text."""
        return "q-" + hashlib.sha256(self.question.encode()).hexdigest()[:16]


def import_traces(config: ImportConfig, console: Console | None = None) -> dict[str, Any]:
    """Tokenise, grade and write traces; go on where an earlier run stopped.

    Args:
        config: the settings.
        console: where the counts and the summary go; None is standard output.

    Returns:
        The summary (see `data_gen.summary.summarise`) with what was left out under "imported".

    Raises:
        InputError: an input, a setting or the output directory cannot be used, or no response can.
    """
    console = console or Console(soft_wrap=True)
    source = RowSource(config.responses, _MOST_LINE_MIB)
    identity = identify(config.model, config.revision)
    maker = TraceMaker(config)
    settings = config.result_settings() | {
        "responses_sha256": source.sha256(),
        "model_config_hash": identity.config_hash,
        "tokenizer_hash": identity.tokenizer_hash,
        "boundary": maker.rule.to_dict(),
    }
    described = {
        "model": identity.model,
        "identity": {
            "config_hash": identity.config_hash,
            "tokenizer_hash": identity.tokenizer_hash,
            "hidden_size": identity.hidden_size,
            "revision": identity.revision,
        },
        "boundary": maker.rule.to_dict(),
        "system": config.system,
        "chat_template_kwargs": config.chat_template_kwargs,
        "responses": config.responses,
    }
    with Grader(config.grading_processes, answers=config.answers) as grader:
        rows, bad = check_rows(config, source, grader)
        with TraceWriter(config.out, settings, **described) as out:
            imported = _write(config, rows, maker, grader, out, console)
            if not out.manifest["parts"]:
                raise InputError(
                    f"Expected a response with a thinking part and an answer in "
                    f"{config.responses}, found none ({_skipped(imported)}). "
                    "Hint: --boundary.think-end can name another end of the thinking."
                )
            summary = summarise(out.read()) | {"imported": imported | {"bad_rows": bad}}
            out.finish(summary=summary)
    print_summary(summary, console)
    console.print(f"Left out: {_skipped(summary['imported'])}\nTraces: {config.out}")
    return summary


def check_rows(config: ImportConfig, source: RowSource, grader: Grader) -> tuple[list[int], int]:
    """Read all rows once, so that a bad one is found now and not hours later.

    Returns:
        For each row its number of responses, 0 for one that cannot be used, and how many those are.

    Raises:
        InputError: a row cannot be used and none may be left out, or two rows give the same
            question different answers.
    """
    counts: list[int] = []
    truths: dict[str, str] = {}
    bad = 0
    for row in source:
        try:
            found = read_responses(row, config)
            truth = truths.setdefault(found.question_id, found.truth)
            if grader.equal(truth, found.truth) is not True:
                raise InputError(
                    f"Expected one right answer for a question, found {found.truth!r:.60} here "
                    f"and {truth!r:.60} before."
                )
            counts.append(len(found.texts))
        except InputError as error:
            if not config.skip_bad_lines:
                raise InputError(
                    f"{row.place}: {error} Hint: mend it, or leave out such rows with "
                    "--skip-bad-lines."
                ) from error
            bad += 1
            counts.append(0)
    if not any(counts):
        left_out = f" ({bad} bad rows left out)" if bad else ""
        raise InputError(
            f"Expected responses in {config.responses}, found none{left_out}. "
            "Hint: check the file and --response-field."
        )
    return counts, bad


def read_responses(row: Row, config: ImportConfig) -> Responses:
    """Return what a row holds.

    Raises:
        InputError: its question, its answer or its responses cannot be used.
    """
    if row.error is not None:
        raise InputError(row.error)
    question = read_text(row, (config.question_field,)).strip()
    truth = read_answer(row, (config.answer_field,))
    assert truth is not None
    value = row.values.get(config.response_field)
    if config.response_field not in row.values:
        names = ", ".join(repr(name) for name in list(row.values)[:8])
        raise InputError(
            f"Expected {config.response_field!r}, found only {names} "
            "(--response-field can name another)."
        )
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise InputError(
                f"Expected a text or a list of texts under {config.response_field!r}, "
                f"found {short(text)}."
            )
        unicode_text(text or "", (config.response_field,))
    return Responses(question, truth, [text or "" for text in texts])


class TraceMaker:
    """Makes rows of the traces table from responses."""

    def __init__(self, config: ImportConfig) -> None:
        self.system = config.system
        self.template_kwargs = config.chat_template_kwargs
        self.tokenizer = load_tokenizer(config.model, config.revision)
        self.rule = config.boundary.rule(self.tokenizer)
        self.context = context_length(config.model, revision=config.revision)
        self._asked: tuple[str, list[int], bool] | None = None

    def trace(
        self, question: str, response: str, grader: Grader
    ) -> tuple[dict[str, Any] | None, str | None]:
        """Return a trace's columns that follow from its text, or why it is left out."""
        end = self.rule.think_end
        answer = grader.extract(response, end)
        if answer is None:
            return None, "no answer"
        prompt_ids, thinks = self._prompt(question)
        text = response
        if end is not None:
            start = think_start(end) or ""
            if thinks and text.lstrip().startswith(start):
                # The chat template has opened the thinking already.
                text = text.lstrip().removeprefix(start).lstrip("\n")
            thought, found, _ = text.partition(end)
            opened = thinks or (start != "" and start in text)
            expected = opened or self.rule.think_end_id is not None
            if expected and not (found and thought.strip().removeprefix(start).strip()):
                return None, "no thinking part"
        token_ids = self.tokenizer.encode(text, add_special_tokens=False)
        if self.context is not None and len(prompt_ids) + len(token_ids) > self.context:
            return None, "too long"
        return {
            "prompt_token_ids": prompt_ids,
            "token_ids": token_ids,
            "text": text,
            "finish_reason": "stop",
            "extracted_answer": answer,
            "boundary_positions": self.rule.positions(token_ids),
        }, None

    def _prompt(self, question: str) -> tuple[list[int], bool]:
        """Return a question's prompt, and whether it ends by opening the thinking."""
        if self._asked is None or self._asked[0] != question:
            token_ids = chat_prompt(self.tokenizer, question, self.system, self.template_kwargs)
            prompt_end = self.tokenizer.decode(token_ids[-64:])
            end = self.rule.think_end
            thinks = end is not None and opens_thinking(prompt_end, end)
            self._asked = question, token_ids, thinks
        return self._asked[1:]


def _write(
    config: ImportConfig,
    counts: Sequence[int],
    maker: TraceMaker,
    grader: Grader,
    out: TraceWriter,
    console: Console,
) -> dict[str, Any]:
    """Write what is not written yet; return how far the source is read and what was left out."""
    imported = out.manifest.get("imported") or {
        "rows": 0,
        "skipped": dict.fromkeys(SKIP_REASONS, 0),
    }
    skipped = Counter(imported["skipped"])
    next_id = Counter(question_id for question_id, _ in out.read().keys())  # noqa: SIM118
    waiting: list[dict[str, Any]] = []
    groups = AnswerGroups(grader, out.read())

    def flush(rows_read: int) -> dict[str, Any]:
        state = {"rows": rows_read, "skipped": {name: skipped[name] for name in SKIP_REASONS}}
        verdicts = grader.grade_many(
            (trace["extracted_answer"], trace["ground_truth"]) for trace in waiting
        )
        graded = [
            trace | {"is_correct": verdict, "answer_group": number}
            for trace, verdict, number in zip(waiting, verdicts, groups.add(waiting), strict=True)
        ]
        if graded:
            if not (out.manifest["parts"] or any(t["boundary_positions"] for t in graded)):
                console.print(f"[bold]warning:[/] {NO_BOUNDARY}", highlight=False)
            out.add_part(graded, None, imported=state)
            waiting.clear()
        return state

    before = sum(counts[: imported["rows"]])
    with TraceProgress(sum(counts), before, "responses") as progress:
        for number, row in _after(RowSource(config.responses, _MOST_LINE_MIB), imported["rows"]):
            if counts[number]:
                found = read_responses(row, config)
                for text in found.texts:
                    trace, reason = maker.trace(found.question, text, grader)
                    progress.finished(0 if trace is None else len(trace["token_ids"]))
                    progress.step()
                    if trace is None:
                        skipped[str(reason)] += 1
                        continue
                    waiting.append(
                        {
                            "question_id": found.question_id,
                            "trace_id": next_id[found.question_id],
                            "seed": NO_SEED,
                            "question": found.question,
                            "ground_truth": found.truth,
                            **trace,
                        }
                    )
                    next_id[found.question_id] += 1
            if len(waiting) >= config.part_traces:
                flush(number + 1)
    state = flush(len(counts))
    out.regroup(groups.changed())
    return state


def _after(source: RowSource, rows: int) -> Iterator[tuple[int, Row]]:
    for number, row in enumerate(source):
        if number >= rows:
            yield number, row


def _skipped(imported: dict[str, Any]) -> str:
    reasons = imported["skipped"] | (
        {"rows that cannot be used": imported["bad_rows"]} if imported.get("bad_rows") else {}
    )
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())
