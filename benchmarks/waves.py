r"""Traces of many questions, all of one at once or in waves: seconds, tokens, waiting.

`StepLLM.generate` answers the same questions with the same seeds: all traces of a question at once
(one question after the other), and with at most so many of each running (`wave`; other questions
fill the room). In turn, in one process, so that all have the same engine. Every vote stops when it
is decided; nothing is pruned, as all traces have room.

Reported for each: seconds of all questions together, tokens, how long a question takes from its
first trace's submission to its last trace, questions right, and answers that differ from the first
way's (two runs of an engine need not be token for token the same).

    python -m data_gen.ledger --out questions.jsonl --count 24
    python benchmarks/waves.py --model checkpoints/ledger-5m --questions questions.jsonl \
        --num-traces 32 --waves 16 8 --system "" --out FIGURES.json
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from data_gen.questions.load import QuestionOptions, load_questions
from step_eval.manifest import device_name
from step_infer.client.grading import Grader
from step_infer.client.llm import Result, StepLLM
from step_infer.client.prompt import SYSTEM_PROMPT
from step_infer.client.trace import Sampling
from step_infer.errors import InputError
from step_infer.storage.files import write_json
from step_infer.storage.run_directory import package_versions


def figures(results: list[Result], truths: list[str | None], seconds: float) -> dict[str, Any]:
    """Return what came of one way of asking."""
    with Grader() as grader:
        pairs = [(result.answer, truth) for result, truth in zip(results, truths, strict=True)]
        right = sum(verdict is True for verdict in grader.grade_many(pairs))
    traces = [trace for result in results for trace in result.traces]
    return {
        "seconds": round(seconds, 2),
        "tokens": sum(len(trace.token_ids) for trace in traces),
        "traces_begun": sum(bool(trace.token_ids) for trace in traces),
        "seconds_a_question": {
            "mean": round(statistics.mean(result.seconds for result in results), 3),
            "most": round(max(result.seconds for result in results), 3),
        },
        "right": right,
    }


def main() -> None:
    """Ask in every way, in turn, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="model folder or hub id")
    parser.add_argument("--questions", required=True, help="file or data set, with answers")
    parser.add_argument("--limit", type=int, default=24, help="questions at most (24)")
    parser.add_argument("--num-traces", type=int, default=32, help="traces a question (32)")
    parser.add_argument("--waves", type=int, nargs="+", default=[16, 8], help="waves (16 8)")
    parser.add_argument("--repeats", type=int, default=1, help="turns that count (1)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=Sampling.max_tokens)
    parser.add_argument("--system", default=SYSTEM_PROMPT, help="system text of the prompt")
    parser.add_argument("--engine", type=json.loads, default={}, help="engine arguments, JSON")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON (none)")
    options = parser.parse_args()
    try:
        asked = load_questions(options.questions, QuestionOptions(limit=options.limit)).questions
    except InputError as error:
        sys.exit(f"error: {error}")
    ways = [None, *options.waves]
    found: dict[str, list[dict[str, Any]]] = {}
    answers: list[str | None] = []
    arguments = {"max_num_seqs": options.num_traces} | options.engine
    with StepLLM(options.model, plain=True, **arguments) as llm:

        def ask(wave: int | None, questions: list[str]) -> list[Result]:
            return llm.generate(
                questions,
                options.num_traces,
                Sampling(options.temperature, options.top_p, options.top_k, options.max_tokens),
                system=options.system,
                progress=False,
                wave=wave,
            )

        ask(None, [asked[0].question])  # the first traces of an engine are slower
        for turn in range(options.repeats):
            for wave in ways if turn % 2 == 0 else reversed(ways):
                begin = time.monotonic()
                results = ask(wave, [question.question for question in asked])
                seconds = time.monotonic() - begin
                name = "all at once" if wave is None else f"at most {wave}"
                found.setdefault(name, [])
                found[name].append(figures(results, [q.answer for q in asked], seconds))
                answers = answers or [result.answer for result in results]
                found[name][-1]["other_answers"] = sum(
                    result.answer != first for result, first in zip(results, answers, strict=True)
                )
                print(name, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    about: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "device": device_name()}
    about |= {"cpus": os.cpu_count(), "versions": package_versions()}
    about |= {"questions": len(asked), "num_traces": options.num_traces, "ways": found}
    print(json.dumps(about, indent=1))
    if options.out is not None:
        write_json(options.out, about)


if __name__ == "__main__":
    main()
