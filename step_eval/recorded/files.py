"""Where recorded traces come from, and the small file that holds them without their text.

What a replay needs of a trace is its length, boundaries, step scores, confidences and answer. It is
read from a directory of step-collect or of step-eval, or from one Parquet file, which `step-eval
record` makes and `write_table` writes.
"""

import dataclasses
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_gen.traces.directory import TraceDirectory
from data_gen.traces.features import FeatureShard
from data_gen.traces.groups import kept_vote
from data_gen.traces.manifest import KIND as TRACES_KIND
from data_gen.traces.manifest import OWN_FILES as TRACE_FILES
from step_eval.recorded.traces import (
    PoolQuestion,
    PoolTrace,
    TracePool,
    shared_beginnings,
    texts_that_share,
)
from step_eval.records import QuestionRecord, TraceRecord
from step_eval.results import KIND as EVAL_KIND
from step_eval.results import OWN_FILES as EVAL_FILES
from step_eval.results import read_run
from step_infer.client.kinds import AnswerOptions
from step_infer.errors import InputError
from step_infer.scorer.aggregate import AGGREGATORS
from step_infer.scorer.confidence_term import ConfidenceTerm
from step_infer.scorer.network import StepScorer, load_scorer
from step_infer.storage.files import atomic_path, check_output
from step_infer.storage.run_directory import read_manifest

_AGGREGATOR = b"step_infer.aggregator"
_SOURCE = b"step_infer.source"
_ANSWERS = b"step_infer.answer_kind"
_COLUMNS = (
    "question_id",
    "trace_id",
    "ground_truth",
    "finish_reason",
    "extracted_answer",
    "is_correct",
    "boundary_positions",
    "step_scores",
    "step_confidences",
    "mean_token_confidence",
)
_GROUP = "answer_group"
_SHARED = ("shared_with", "shared_tokens")
"""Columns of a file without texts that say how far a trace begins like an earlier one."""
_LENGTHS = {"prompt_tokens": "prompt_token_ids", "num_tokens": "token_ids"}
"""Columns of lengths, and the lists that they count in step-collect's table."""


def write_table(path: Path | str, pool: TracePool) -> None:
    """Write the traces of a pool as one file, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "question_id": question.question_id,
            "trace_id": number,
            **dict(zip(_SHARED, shared, strict=True)),
            "prompt_tokens": question.prompt_tokens,
            "num_tokens": trace.tokens,
            "ground_truth": question.truth,
            "finish_reason": "length" if trace.cut else "stop",
            "extracted_answer": trace.answer,
            "is_correct": trace.right,
            "boundary_positions": trace.positions,
            "step_scores": trace.scores or None,
            "step_confidences": trace.confidences or None,
            "mean_token_confidence": trace.confidence,
        }
        for question in pool.questions
        for number, (trace, shared) in enumerate(
            zip(question.traces, _shared(question.traces), strict=True)
        )
    ]
    schema = pa.schema(
        [
            ("question_id", pa.string()),
            ("trace_id", pa.int32()),
            ("prompt_tokens", pa.int32()),
            ("num_tokens", pa.int32()),
            ("ground_truth", pa.string()),
            ("finish_reason", pa.string()),
            ("extracted_answer", pa.string()),
            ("is_correct", pa.bool_()),
            ("boundary_positions", pa.list_(pa.int32())),
            ("step_scores", pa.list_(pa.float32())),
            ("step_confidences", pa.list_(pa.float32())),
            ("mean_token_confidence", pa.float32()),
            *((name, pa.int32()) for name in _SHARED),
        ],
        {
            _AGGREGATOR: (pool.aggregator or "").encode(),
            _SOURCE: pool.source.encode(),
            _ANSWERS: json.dumps(pool.answers.settings()).encode(),
        },
    )
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary, compression="zstd")


def _shared(traces: Sequence[PoolTrace]) -> list[tuple[int | None, int | None]]:
    """Return the two columns of a question's traces; empty ones where a text is not known."""
    texts = [trace.text for trace in traces if trace.text is not None]
    if len(texts) < len(traces):
        return [(None, None)] * len(traces)
    return [*shared_beginnings(texts)]


def record(
    traces: Path | str,
    out: Path | str,
    scorer: Path | str | None = None,
    aggregator: str | None = None,
) -> str:
    """Write recorded traces to one file, and say in a line what it holds.

    Raises:
        InputError: the traces or the scorer cannot be used, there is no such aggregator, or `out`
            is one of the inputs.
    """
    if aggregator is not None and aggregator not in AGGREGATORS:
        raise InputError(
            f"Expected --aggregator out of {', '.join(AGGREGATORS)}, found {aggregator!r}."
        )
    source = Path(traces)
    own = [source / name for name in (*TRACE_FILES, *EVAL_FILES)] if source.is_dir() else [source]
    check_output(out, scorer, *own)
    pool = read_pool(traces, scorer)
    write_table(out, dataclasses.replace(pool, aggregator=aggregator or pool.aggregator))
    count = sum(len(question.traces) for question in pool.questions)
    return (
        f"{out}: {count:,} traces of {len(pool.questions)} questions, "
        f"{'with' if pool.scored else 'without'} step scores"
    )


def read_table(path: Path | str) -> TracePool:
    """Read a file of `write_table`, or a part of step-collect's traces table.

    Raises:
        InputError: it is neither, or holds no trace.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        found = pq.read_schema(path)
        lengths = {name: name if name in found.names else old for name, old in _LENGTHS.items()}
        # Those of step-collect have groups; in those of `write_table` equal answers have one form.
        groups = [_GROUP] if _GROUP in found.names else []
        shared = [name for name in _SHARED if name in found.names]
        table = pq.read_table(path, columns=[*_COLUMNS, *groups, *shared, *lengths.values()])
        for name, column in lengths.items():
            if column != name:
                table = table.append_column(name, pc.list_value_length(table[column]))
        rows = table.drop_columns([c for n, c in lengths.items() if c != n]).to_pylist()
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(
            f"Expected recorded traces of step-eval record or step-collect at {path}, found: "
            f"{str(error).splitlines()[0].rstrip('.')}. Hint: choose other --traces."
        ) from error
    if not rows:
        raise InputError(
            f"Expected recorded traces in {path}, found none. Hint: choose other --traces."
        )
    by_question: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["trace_id"]):
        by_question.setdefault(row["question_id"], []).append(row)
    for group in by_question.values():
        if groups:
            _give_forms(group)
        _check_places(path, group)
    order = dict.fromkeys(row["question_id"] for row in rows)
    questions = tuple(
        PoolQuestion(
            question_id,
            by_question[question_id][0]["prompt_tokens"],
            _pool_traces(by_question[question_id]),
            by_question[question_id][0]["ground_truth"],
        )
        for question_id in order
    )
    metadata = found.metadata or {}
    source = metadata.get(_SOURCE, b"").decode()
    about = f"recorded traces of {path}" + (f" ({source})" if source else "")
    answers = AnswerOptions.from_settings(json.loads(metadata.get(_ANSWERS, b"{}")))
    return TracePool(questions, about, metadata.get(_AGGREGATOR, b"").decode() or None, answers)


def _pool_traces(rows: Sequence[dict[str, Any]]) -> tuple[PoolTrace, ...]:
    """Return a question's traces, with texts where it is known which ones begin alike."""
    traces = [pool_trace(row) for row in rows]
    shared = [(row.get(_SHARED[0]), int(row.get(_SHARED[1]) or 0)) for row in rows]
    if any(row.get(_SHARED[1]) is None for row in rows):
        return tuple(traces)
    texts = texts_that_share([trace.tokens for trace in traces], shared)
    pairs = zip(traces, texts, strict=True)
    return tuple(dataclasses.replace(trace, text=text) for trace, text in pairs)


def _check_places(path: Path | str, rows: Sequence[dict[str, Any]]) -> None:
    """Refuse boundaries and beginnings that a question's traces cannot have."""
    lengths = [row["num_tokens"] for row in rows]
    for number, row in enumerate(rows):
        places = [-1, *row["boundary_positions"], lengths[number] - 1]
        ascending = all(before < after for before, after in pairwise(places))
        earlier, tokens = row.get(_SHARED[0]), row.get(_SHARED[1]) or 0
        known = earlier is None or 0 <= earlier < number
        most = 0 if earlier is None or not known else min(lengths[earlier], lengths[number])
        if not (ascending or not places[1:-1]) or not known or not 0 <= tokens <= most:
            raise InputError(
                f"Expected step boundaries below the last of {lengths[number]} tokens, and a "
                f"beginning shared with an earlier trace, in {path}, found others in trace "
                f"{number} of {row['question_id']}. Hint: make it again with step-eval record."
            )


def _give_forms(rows: Sequence[dict[str, Any]]) -> None:
    """Give equal wrong answers of a question's rows one form, by the groups that are kept."""
    wrong = [row for row in rows if not row["is_correct"]]
    for form, _, voters in kept_vote(wrong).groups:
        for voter in voters:
            wrong[voter]["extracted_answer"] = form


def pool_trace(row: dict[str, Any]) -> PoolTrace:
    """Return the trace of a row, whose number of tokens stands under `num_tokens`."""
    return PoolTrace(
        row["num_tokens"],
        tuple(row["boundary_positions"]),
        "right" if row["is_correct"] else row["extracted_answer"],
        bool(row["is_correct"]),
        row["finish_reason"] == "length",
        tuple(row["step_scores"] or ()),
        confidences=tuple(row["step_confidences"] or ()),
        confidence=row["mean_token_confidence"],
    )


_DIRECTORY_COLUMNS = [
    "question_id",
    "trace_id",
    "prompt_token_ids",
    "token_ids",
    "finish_reason",
    "extracted_answer",
    "is_correct",
    _GROUP,
    "boundary_positions",
    "step_scores",
    "step_confidences",
    "mean_token_confidence",
    "ground_truth",
    "row_start",
    "num_steps",
]


def read_pool(path: Path | str, scorer: Path | str | None = None) -> TracePool:
    """Read recorded traces, and score their steps where a scorer is given.

    Args:
        path: a directory of step-collect; one of step-eval, whose traces of the method sc are
            taken (their boundaries are recorded, their states are not); or a Parquet file of
            `write_table`.
        scorer: scorer file for the stored hidden states; None takes recorded step scores, if any.

    Raises:
        InputError: the directory or the scorer cannot be used.
    """
    if Path(path).is_file():
        if scorer is not None:
            raise InputError(
                f"Expected a directory of step-collect for --scorer, found the file {path}, "
                "which holds no hidden states. Hint: without --scorer, its own scores are used."
            )
        return read_table(path)
    manifest = read_manifest(path)
    if manifest.get("kind") == EVAL_KIND:
        if scorer is not None:
            raise InputError(
                f"Expected a directory of step-collect for --scorer, found {path} of step-eval, "
                "which keeps no hidden states. Hint: without --scorer, its own scores are used."
            )
        return _eval_pool(path)
    if manifest.get("kind") != TRACES_KIND or not manifest.get("parts"):
        raise InputError(
            f"Expected traces of step-collect or step-eval in {path}, found none. "
            "Hint: make them with step-collect."
        )
    net, card = load_scorer(scorer) if scorer is not None else (None, None)
    by_question: dict[str, list[dict[str, Any]]] = {}
    directory = TraceDirectory(path)
    for index in range(directory.num_parts):
        rows = directory.part(index, _DIRECTORY_COLUMNS).to_pylist()
        if net is not None and card is not None:
            _score(rows, net, card.confidence_term, directory.shard(index))
        for row in rows:
            row["token_ids"] = np.array(row["token_ids"], dtype=np.int64)
            row["num_tokens"] = len(row["token_ids"])
            by_question.setdefault(row["question_id"], []).append(row)
    questions = []
    for question_id, rows in by_question.items():
        rows.sort(key=lambda row: row["trace_id"])
        _give_forms(rows)
        traces = tuple(dataclasses.replace(pool_trace(row), text=row["token_ids"]) for row in rows)
        prompt_tokens = len(rows[0]["prompt_token_ids"])
        questions.append(PoolQuestion(question_id, prompt_tokens, traces, rows[0]["ground_truth"]))
    about = f"recorded traces of {path}: {len(questions)} questions"
    if scorer is not None:
        about += f", scored by {scorer}"
    aggregator = card.aggregator if card is not None else None
    return TracePool(tuple(questions), about, aggregator, _answers_of(manifest))


def _answers_of(manifest: dict[str, Any]) -> AnswerOptions:
    return AnswerOptions.from_settings(manifest.get("settings") or {})


def _score(
    rows: list[dict[str, Any]], net: StepScorer, term: ConfidenceTerm | None, shard: FeatureShard
) -> None:
    """Put a scorer's step scores of a part's states [S, H] in the place of its rows' own."""
    width = net.net[0].in_features
    if shard.hidden_size != width:
        raise InputError(
            f"Expected states of width {width} (scorer) in {shard.path}, found "
            f"{shard.hidden_size}. Hint: choose a scorer of the model that made the traces."
        )
    with torch.inference_mode():
        score_S = torch.sigmoid(net(shard.hidden())).tolist()
    for row in rows:
        row["step_scores"] = score_S[row["row_start"] : row["row_start"] + row["num_steps"]]
        if term is None:
            continue
        confidences = row["step_confidences"]
        if confidences is None:
            raise InputError(
                f"Expected token confidences beside {shard.path}, which the scorer takes, found "
                "none. Hint: collect the traces with --confidence true."
            )
        pairs = zip(row["step_scores"], confidences, strict=True)
        row["step_scores"] = [term.score(*pair) for pair in pairs]


def _eval_pool(path: Path | str) -> TracePool:
    """Return the traces that the method sc of a step-eval directory made."""
    manifest, records = read_run(path)
    found = sc_records(records, path)
    by_id: dict[str, list[QuestionRecord]] = {}
    for record in found:
        by_id.setdefault(record.question_id, []).append(record)
    questions = tuple(
        PoolQuestion(
            question_id,
            group[0].prompt_tokens,
            tuple(trace for record in group for trace in record_traces(record)),
            group[0].truth,
        )
        for question_id, group in by_id.items()
    )
    about = f"traces of the method sc in {path}: {len(questions)} questions"
    return TracePool(questions, about, answers=_answers_of(manifest))


def sc_records(
    records: dict[str, list[QuestionRecord]], path: Path | str
) -> Sequence[QuestionRecord]:
    """Return the records of the method sc, none of whose traces was pruned.

    Raises:
        InputError: there are none.
    """
    if "sc" not in records:
        raise InputError(
            f"Expected records of the method sc in {path}, found none. "
            "Hint: choose a run with sc among its --methods."
        )
    return records["sc"]


def _answer(record: QuestionRecord, trace: TraceRecord) -> str | None:
    if trace.group is None:
        return None
    return "right" if trace.correct else record.answers[trace.group].answer


def record_traces(record: QuestionRecord) -> list[PoolTrace]:
    """Return a record's traces; pruned ones end where they were stopped."""
    return [
        PoolTrace(
            trace.tokens,
            tuple(trace.positions),
            _answer(record, trace),
            trace.correct is True,
            trace.finish_reason == "length",
            tuple(trace.scores),
            _text(trace),
        )
        for trace in record.traces
    ]


def _text(trace: TraceRecord) -> np.ndarray:
    """Return numbers that tell texts apart, from the check sums at a record's boundaries.

    Where two traces part ways within a step, the whole step counts as different.
    """
    text_T = np.full(trace.tokens, -2 - trace.trace_id, dtype=np.int64)
    start = 0
    for position, digest in zip(trace.positions, trace.prefix_hashes, strict=True):
        text_T[start : position + 1] = digest
        start = position + 1
    return text_T
