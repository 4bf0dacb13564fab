r"""A voted call against what a client does without one, and a hundred voted calls at once.

A real server (`step-serve`) with a voted model, asked by the openai client:

- `storm`: voted calls at once, half of them streams; a third are cut off at random moments. Then
  what is left in the engine is read from the server's metrics until nothing is, and the memory of
  its processes; a second storm shows whether a storm leaves anything behind.
- `questions`: every question once by a voted call, and once by a call of n traces whose answers
  the client puts to a vote itself, one vote each. Both find the server quiet; who goes first
  changes from question to question. The server prunes in neither but the voted call.

    python benchmarks/voted_calls.py --model MODEL --scorer scorer.safetensors \
        --questions math_500.jsonl --limit 30 --out FIGURES.json -- --num-gpu-blocks-override 1102

What follows `--` goes to `step-serve`.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
from served import Served, served

from data_gen.questions.load import Question, QuestionOptions, load_questions
from step_eval.manifest import device_name
from step_eval.statistics import question_mean
from step_infer.client.answers import vote
from step_infer.client.grading import Grader
from step_infer.client.prompt import SYSTEM_PROMPT
from step_infer.errors import InputError
from step_infer.storage.files import write_json
from step_infer.storage.run_directory import package_versions

MODEL, VOTED = "model", "model-voted"
VOTED_CALL, CLIENT_VOTE = "voted call", "vote of the client"
QUIET_S = 60.0
"""How long the engine may take to become quiet after a storm."""


@dataclass(frozen=True)
class Answer:
    """What one way of asking made of a question."""

    answer: str | None
    right: bool
    seconds: float
    """From the call to the answer, the client's vote included."""
    tokens: int
    step: dict[str, Any] | None = None
    """What the voted call tells of its vote."""


class Asker:
    """Asks a server, with the same sampling in all calls."""

    def __init__(self, address: str, options: argparse.Namespace, grader: Grader) -> None:
        self._client = openai.AsyncOpenAI(
            base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=None
        )
        self._grader = grader
        self._options = options

    async def call(self, model: str, question: Question, **more: Any) -> Any:
        """Make one chat call."""
        options = self._options
        return await self._client.chat.completions.create(
            model=model,
            messages=[
                {"role": "system", "content": SYSTEM_PROMPT},
                {"role": "user", "content": question.question},
            ],
            temperature=options.temperature,
            top_p=options.top_p,
            max_tokens=options.max_tokens,
            extra_body={"top_k": options.top_k} | more.pop("extra_body", {}),
            **more,
        )

    async def voted(self, question: Question) -> Answer:
        """Ask for one voted answer."""
        begin = time.monotonic()
        response = await self.call(VOTED, question)
        seconds, step = time.monotonic() - begin, response.step
        right = self._grader.grade(step["answer"], question.answer) is True
        return Answer(step["answer"], right, seconds, response.usage.completion_tokens, step)

    async def client_vote(self, question: Question) -> Answer:
        """Ask for n answers and put them to a vote, one vote each."""
        begin = time.monotonic()
        response = await self.call(MODEL, question, n=self._options.num_traces)
        answers = [
            self._grader.extract(choice.message.content or "") for choice in response.choices
        ]
        winner = vote(answers, equal=lambda a, b: self._grader.equal(a, b) is True).answer
        seconds = time.monotonic() - begin
        right = self._grader.grade(winner, question.answer) is True
        return Answer(winner, right, seconds, response.usage.completion_tokens)

    async def in_storm(self, question: Question, streams: bool, cut_s: float | None) -> str:
        """Make one voted call of a storm; return what came of it."""
        extra = {"step": {"traces": self._options.storm_traces}}
        try:
            async with asyncio.timeout(cut_s):
                if not streams:
                    found = await self.call(VOTED, question, extra_body=extra)
                    return "answered" if found.choices[0].message.content else "empty"
                text = ""
                stream = await self.call(VOTED, question, extra_body=extra, stream=True)
                async with stream:
                    async for chunk in stream:
                        text += "".join(c.delta.content or "" for c in chunk.choices)
                return "answered" if text else "empty"
        except TimeoutError:
            return "cut off"
        except openai.OpenAIError as error:
            return f"{type(error).__name__}: {error}"


async def ask_both(asker: Asker, question: Question, voted_first: bool) -> dict[str, Answer]:
    """Ask a question in both ways, one after the other."""
    ways = {VOTED_CALL: asker.voted, CLIENT_VOTE: asker.client_vote}
    names = list(ways) if voted_first else list(reversed(ways))
    return {name: await ways[name](question) for name in names}


def figures(found: list[dict[str, Answer]]) -> dict[str, Any]:
    """Return means with intervals over questions, and the paired differences."""

    def mean(values: list[float]) -> dict[str, float | None]:
        return asdict(question_mean(np.array(values, dtype=float)))

    table: dict[str, Any] = {"questions": len(found)}
    for name in (VOTED_CALL, CLIENT_VOTE):
        answers = [answers[name] for answers in found]
        table[name] = {
            "accuracy": mean([answer.right for answer in answers]),
            "seconds": mean([answer.seconds for answer in answers]),
            "tokens": mean([answer.tokens for answer in answers]),
        }
    pairs = [(answers[VOTED_CALL], answers[CLIENT_VOTE]) for answers in found]
    table["difference"] = {
        "accuracy": mean([voted.right - client.right for voted, client in pairs]),
        "seconds": mean([voted.seconds - client.seconds for voted, client in pairs]),
        "tokens": mean([voted.tokens - client.tokens for voted, client in pairs]),
    }
    steps = [voted.step for voted, _ in pairs if voted.step is not None]
    table["traces_of_voted_calls"] = {
        name: statistics.mean(step["traces"][name] for step in steps)
        for name in ("all", "finished", "pruned", "decided", "over_budget")
    }
    return table


async def storm(
    asker: Asker, server: Served, questions: list[Question], options: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Make voted calls at once, cut a third of them off; return what came of them and was left."""
    draws = random.Random(seed)
    begin = time.monotonic()
    tasks = [
        asyncio.create_task(
            asker.in_storm(
                questions[number % len(questions)],
                streams=number % 2 == 1,
                cut_s=draws.uniform(0, options.cut_within) if number % 3 == 0 else None,
            )
        )
        for number in range(options.storm)
    ]
    outcomes = await asyncio.gather(*tasks)
    seconds = time.monotonic() - begin
    quiet_s = await _until_quiet(server)
    counted = {name: outcomes.count(name) for name in dict.fromkeys(outcomes)}
    return {
        "calls": options.storm,
        "traces_a_call": options.storm_traces,
        "outcomes": counted,
        "seconds": round(seconds, 2),
        "quiet_after_s": quiet_s,
        "resident_mib": _resident_mib(server.pid),
    }


async def _until_quiet(server: Served) -> float | None:
    """Wait until the engine has no request and no block; None if it does not come to that."""
    begin = time.monotonic()
    while time.monotonic() - begin < QUIET_S:
        with urllib.request.urlopen(f"{server.address}/metrics", timeout=30) as response:
            text = response.read().decode()
        left = [
            float(value)
            for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
            for value in re.findall(rf"^vllm:{name}\{{[^}}]*\}} (\S+)$", text, re.M)
        ]
        if len(left) >= 3 and not any(left):
            return round(time.monotonic() - begin, 2)
        await asyncio.sleep(0.1)
    return None


def _resident_mib(pid: int) -> dict[str, int]:
    """Return the resident memory of a process and of all below it, and how many these are."""
    mib: dict[int, int] = {}
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(re.findall(r"^(\w+):\s*(.*)$", path.read_text(), re.M))
        except OSError:
            continue  # it has ended
        child = int(fields["Pid"])
        parents[child] = int(fields["PPid"])
        mib[child] = int(fields.get("VmRSS", "0").split()[0]) // 1024

    def is_below(child: int) -> bool:
        while child and child != pid:
            child = parents.get(child, 0)
        return child == pid

    found = [amount for child, amount in mib.items() if is_below(child)]
    return {"processes": len(found), "mib": sum(found)}


async def measure(server: Served, options: argparse.Namespace) -> AsyncIterator[dict[str, Any]]:
    """Yield all figures so far, after each storm and each question."""
    questions = load_questions(options.questions, QuestionOptions(limit=options.limit)).questions
    with Grader() as grader:
        grader.warm_up()
        asker = Asker(server.address, options, grader)
        await asker.voted(questions[-1])  # the first requests of a server are slower
        await asker.client_vote(questions[-1])
        table: dict[str, Any] = {"resident_mib_before_storms": _resident_mib(server.pid)}
        table["storms"] = []
        for number in range(options.storms):
            table["storms"].append(await storm(asker, server, questions, options, number))
            print(json.dumps(table["storms"][-1]), file=sys.stderr, flush=True)
            yield table
        found: list[dict[str, Answer]] = []
        for number, question in enumerate(questions):
            found.append(await ask_both(asker, question, voted_first=number % 2 == 0))
            line = ", ".join(f"{n}: {a.seconds:.1f} s, {a.right}" for n, a in found[-1].items())
            print(f"{number + 1} of {len(questions)}: {line}", file=sys.stderr, flush=True)
            each = [{name: asdict(answer) for name, answer in answers.items()} for answers in found]
            yield table | figures(found) | {"each": each}


async def _main(server: Served, options: argparse.Namespace) -> None:
    about: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "device": device_name()}
    about |= {"versions": package_versions(), "cpus": os.cpu_count()}
    table: dict[str, Any] = {}
    async for table in measure(server, options):
        if options.out is not None:
            write_json(options.out, about | table)
    shown = {name: value for name, value in (about | table).items() if name != "each"}
    print(json.dumps(shown, indent=1))


def main() -> None:
    """Start a server, ask it, write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="model folder or hub id")
    parser.add_argument("--scorer", required=True, type=Path, help="its scorer")
    parser.add_argument("--questions", required=True, help="file or data set, with answers")
    parser.add_argument("--limit", type=int, default=30, help="questions at most (30)")
    parser.add_argument("--num-traces", type=int, default=64, help="traces a question (64)")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--top-k", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=2048, help="of a trace (2048)")
    parser.add_argument("--storms", type=int, default=2, help="storms (2)")
    parser.add_argument("--storm", type=int, default=100, help="voted calls of a storm (100)")
    parser.add_argument("--storm-traces", type=int, default=16, help="traces of each (16)")
    parser.add_argument(
        "--cut-within", type=float, default=10.0, help="the cut come within so many seconds (10)"
    )
    parser.add_argument("--out", type=Path, help="file for the figures, JSON (none)")
    parser.add_argument("served", nargs="*", help="after --: for step-serve")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the server would outlive this
    command = [sys.executable, "-m", "step_infer.server.command", options.model]
    command += ["--scorer", str(options.scorer), "--served-model-name", MODEL]
    command += ["--voted-model-name", VOTED, "--voted-traces", str(options.num_traces)]
    try:
        with served([*command, *options.served]) as server:
            asyncio.run(_main(server, options))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
