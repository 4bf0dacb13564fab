"""Traces directories made up for tests: what their states tell is known."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from data_gen.traces.directory import TraceDirectory
from data_gen.traces.groups import AnswerGroups
from data_gen.traces.writer import TraceWriter
from step_infer.client.grading import Grader
from step_infer.client.kinds import AnswerOptions

Signal = Literal["label", "noise", "question", "both"]

BOUNDARY = {
    "kind": "blank_line",
    "pattern": r"\n\n",
    "stride": 0,
    "think_end_id": 4,
    "token_ids": [6],
}
BLANK, OTHER = 6, 30


def write_traces(
    path: Path,
    signal: Signal,
    *,
    questions: int = 30,
    traces: int = 8,
    hidden_size: int = 16,
    part_traces: int = 50,
    strength: float = 3.0,
    seed: int = 0,
    changes: dict[int, dict[str, Any]] | None = None,
    answers: AnswerOptions | None = None,
) -> TraceDirectory:
    """Write right and wrong traces of every question, 4 to 15 steps each.

    Args:
        path: the directory to make.
        signal: what the states tell: "label" adds the label along one direction; "question" the
            question's own share of right traces, nothing of the trace; "both" the latter, and the
            former along another direction; "noise" nothing at all.
        questions: how many questions.
        traces: traces of a question.
        hidden_size: width H.
        part_traces: traces in a part.
        strength: of the signal, in standard deviations of the noise.
        seed: of everything.
        changes: columns to overwrite, by the number of the trace.
        answers: the answer kind by which answers are grouped; None is math.
    """
    generator = np.random.default_rng(seed)
    confidences = np.random.default_rng([seed, 1])
    rows, states = [], []
    for question in range(questions):
        share = generator.uniform(0.15, 0.85)
        right = generator.random(traces) < share
        right[:2] = True, False
        for trace in range(traces):
            steps = int(generator.integers(4, 16))
            positions = (np.arange(steps) * 3 + 2).tolist()
            tokens = [OTHER] * (3 * steps + 4)
            for position in positions:
                tokens[position] = BLANK
            state = generator.normal(size=(steps, hidden_size))
            if signal in ("label", "both"):
                state[:, 0] += strength * (right[trace] - 0.5)
            if signal in ("question", "both"):
                state[:, 0 if signal == "question" else 1] += 4 * strength * (share - 0.5)
            states.append(torch.from_numpy(state).to(torch.bfloat16))
            row = {
                "question_id": f"q{question}",
                "trace_id": trace,
                "seed": trace,
                "question": "1+1?",
                "prompt_token_ids": [1, OTHER, 3],
                "token_ids": tokens,
                "text": "…",
                "finish_reason": "stop",
                "extracted_answer": "2",
                "is_correct": bool(right[trace]),
                "boundary_positions": positions,
                "step_confidences": confidences.uniform(1, 9, size=steps).tolist(),
                "mean_token_confidence": float(confidences.uniform(1, 9)),
            }
            rows.append(row | (changes or {}).get(len(rows), {}))
    manifest = {
        "model": "some/model",
        "identity": {
            "config_hash": "c" * 64,
            "tokenizer_hash": "t" * 64,
            "hidden_size": hidden_size,
        },
        "boundary": BOUNDARY,
        "sampling": {"temperature": 1.0},
    }
    settings = {"seed": seed, **(answers or AnswerOptions()).settings()}
    with TraceWriter(path, settings, **manifest) as out, Grader(answers=answers) as grader:
        groups = AnswerGroups(grader, out.read())
        for start in range(0, len(rows), part_traces):
            some = rows[start : start + part_traces]
            for row, number in zip(some, groups.add(some), strict=True):
                row["answer_group"] = number
            hidden = [
                state if row["boundary_positions"] else state[:0]
                for row, state in zip(some, states[start:], strict=False)
            ]
            out.add_part(some, hidden)
        out.update(complete=True)
    return TraceDirectory(path)
