"""How fast traces are collected: `step-collect` against plain `vllm.LLM.generate`.

The same prompts, sampling, seeds and engine arguments, in turn, each run in a process of its own:

- "plain": stock vLLM, all requests in one call of `LLM.generate`;
- "traces": `step-collect` without states, which runs a stock engine too;
- "states": with the states at step boundaries;
- "confidence": with the states and the token confidence.

A run's seconds go from the first submission to the last trace: capture, writing of parts and
grading beside it are in them; the engine's start and a short warm-up are not. What comes after the
last trace (its part, the summary) is `after_seconds`. Also said: engine steps a second, and what
part of a core the engine's process takes, and the caller's (`step-collect` itself, without its
grading processes). A CPU engine lives in its caller; one in a process of its own
(VLLM_ENABLE_V1_MULTIPROCESSING=1) has its worker in a further one, which is not counted.

Every finished run is a line of OUT; a run that is there is not made again. `--profile` has each
run followed by a shorter one whose stacks are sampled (`stack_samples.py`), into
FILE.profile.json.

usage: python benchmarks/collect_speed.py --out FILE.jsonl --model FOLDER --questions FILE.jsonl \
    --num-questions 32 --num-traces 64 --max-tokens 2048 --engine '{"max_model_len": 4096}'
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import stack_samples
from rich.console import Console
from run_lines import read_runs

from data_gen.collect import collect
from data_gen.config import CollectConfig
from data_gen.questions.load import load_questions
from step_infer.cli.command import run as run_command
from step_infer.client.engine import engine_arguments, start_engine
from step_infer.client.llm import StepLLM
from step_infer.client.prompt import chat_prompt, context_length, load_tokenizer
from step_infer.client.trace import Sampling, Trace, trace_seed
from step_infer.storage.files import atomic_write
from step_infer.storage.run_directory import package_versions

PLAIN = "plain"
PARTS = {"traces": (False, False), "states": (True, False), "confidence": (True, True)}
"""What `step-collect` takes: states, and token confidences."""
FIGURES = (
    *("tokens_per_second", "seconds", "after_seconds"),
    *("steps_per_second", "engine_core_share", "caller_core_share"),
)
WARM_UP_TOKENS = 32
PROFILED_TOKENS = 192


def main() -> None:
    """Make the runs that are missing, each in its own process, then print the ratios."""
    arguments = _parse()
    if arguments.run is not None:
        _run(arguments, *arguments.run.split())
        return
    for repeat in range(arguments.repeats):
        for variant in arguments.variants:
            done = [(run["variant"], run["repeat"]) for run in read_runs(arguments.out)]
            if (variant, repeat) not in done:
                command = [sys.executable, __file__, *sys.argv[1:], "--run", f"{variant} {repeat}"]
                environment = dict(os.environ)
                if arguments.profile:  # reaches into the engine's process
                    environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
                subprocess.run(command, env=environment, check=True)
    print(json.dumps(summary(read_runs(arguments.out)), indent=2))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="JSON lines, one a run")
    add("--model", required=True, help="model folder")
    add("--questions", required=True, help="file with the questions")
    add("--num-questions", type=int, default=32)
    add("--num-traces", type=int, default=64, help="traces of a question")
    add("--max-tokens", type=int, default=2048, help="longest trace, in tokens")
    add("--temperature", type=float, default=0.8)
    add("--max-num-seqs", type=int, default=512, help="sequences that run at once")
    add("--engine", type=json.loads, default={}, help="more engine arguments, as a JSON object")
    add("--grading-workers", type=int, help="step-collect's own default if left out")
    add("--variants", nargs="+", choices=(PLAIN, *PARTS), default=[PLAIN, "states", "confidence"])
    add("--repeats", type=int, default=2)
    add("--profile", action="store_true", help="sample the stacks of a shorter run after each")
    add("--run", help=argparse.SUPPRESS)
    return parser.parse_args()


class Load:
    """What processes have spent since this was made: wall time, processor time, engine steps."""

    def __init__(self, engine: Any) -> None:
        """`engine`: vLLM's `LLMEngine`, whose steps are counted from now on."""
        self.steps = 0
        self._engine, self._step = engine, engine.step
        engine.step = self._counted
        self._pids = [child.pid for child in active_children() if child.pid is not None]
        self._before = self._cpu_seconds()
        self._began = time.perf_counter()

    def _counted(self) -> Any:
        self.steps += 1
        return self._step()

    def _cpu_seconds(self) -> tuple[float, float]:
        return sum(map(cpu_seconds, self._pids)), cpu_seconds(os.getpid())

    def end(self) -> dict[str, Any]:
        """Return the figures of a run that ends now."""
        seconds = time.perf_counter() - self._began
        self._engine.step = self._step
        engine_s, own_s = (
            after - before for after, before in zip(self._cpu_seconds(), self._before, strict=True)
        )
        return {
            "seconds": seconds,
            "steps": self.steps,
            "steps_per_second": self.steps / seconds,
            "engine_core_share": (engine_s if self._pids else own_s) / seconds,
            "caller_core_share": own_s / seconds,
        }


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far, all of its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class TimedLLM(StepLLM):
    """A client that measures what its reader takes for all traces, and outlives several runs."""

    found: Mapping[str, Any] = {}
    ended_s = 0.0

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Trace]:
        """Sample traces; the time that the reader keeps each of them counts."""
        load, tokens = Load(self._engine), 0
        for trace in super().stream(*args, **kwargs):
            tokens += len(trace.token_ids)
            yield trace
        self.found = {**load.end(), "tokens": tokens}
        self.ended_s = time.perf_counter()

    def close(self) -> None:
        """Stay: another run follows."""

    def end(self) -> None:
        """Stop the engine."""
        super().close()


def _run(arguments: argparse.Namespace, variant: str, repeat: str) -> None:
    """Make one run, and append it to the file."""
    make = _Plain if variant == PLAIN else _Collect
    with tempfile.TemporaryDirectory() as name:
        runner = make(arguments, variant, Path(name))
        try:
            runner.run("warm-up", 8, 2, WARM_UP_TOKENS)
            counts = arguments.num_questions, arguments.num_traces
            found = runner.run("timed", *counts, arguments.max_tokens)
            if arguments.profile:
                _profile(arguments, f"{variant} {repeat}", runner)
        finally:
            runner.end()
    run = {
        "variant": variant,
        "repeat": int(repeat),
        "traces": arguments.num_questions * arguments.num_traces,
        **found,
        "tokens_per_second": found["tokens"] / found["seconds"],
        "device": _device(),
        "versions": package_versions(),
        "command": sys.argv[: sys.argv.index("--run")],
    }
    before = arguments.out.read_bytes() if arguments.out.exists() else b""
    with atomic_write(arguments.out) as file:
        file.write(before + json.dumps(run).encode() + b"\n")
    print(
        f"{variant}: {run['tokens_per_second']:,.0f} tokens/s in {run['seconds']:.1f} s, "
        f"{run['steps_per_second']:.1f} steps/s, engine {run['engine_core_share']:.0%} of a core, "
        f"caller {run['caller_core_share']:.0%}; after the last trace {run['after_seconds']:.1f} s",
        flush=True,
    )


class _Plain:
    """Stock vLLM, as one would call it."""

    def __init__(self, arguments: argparse.Namespace, _: str, __: Path) -> None:
        self._arguments = arguments
        self._config = _config(arguments, "unused", 1, 1, 1)
        self._tokenizer = load_tokenizer(arguments.model)
        engine = engine_arguments(arguments.model, self._config.engine, None)
        engine["disable_log_stats"] = True  # as LLM has it by default
        self.llm, self._guard = start_engine(engine)

    def run(self, _: str, num_questions: int, num_traces: int, max_tokens: int) -> dict[str, Any]:
        from vllm import SamplingParams

        config = self._config
        context = context_length(config.model, config.engine.get("max_model_len")) or sys.maxsize
        prompts, params = [], []
        for question in _questions(self._arguments, num_questions):
            prompt = chat_prompt(self._tokenizer, question.question, config.system)
            for number in range(num_traces):
                prompts.append({"prompt_token_ids": prompt})
                params.append(
                    SamplingParams(
                        temperature=config.sampling.temperature,
                        top_p=config.sampling.top_p,
                        top_k=config.sampling.top_k,
                        max_tokens=min(max_tokens, context - len(prompt)),
                        seed=trace_seed(config.seed, question.id, number),
                    )
                )
        load = Load(self.llm.llm_engine)
        outputs = self.llm.generate(prompts, params)
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        return {**load.end(), "tokens": tokens, "after_seconds": 0.0}

    def end(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        self._guard.close()


class _Collect:
    """`step-collect`, all of it but the start of the engine."""

    def __init__(self, arguments: argparse.Namespace, variant: str, folder: Path) -> None:
        self._arguments, self._parts, self._folder = arguments, PARTS[variant], folder
        self._timed: TimedLLM | None = None

    @property
    def llm(self) -> Any:
        assert self._timed is not None
        return self._timed._llm

    def run(
        self, name: str, num_questions: int, num_traces: int, max_tokens: int
    ) -> dict[str, Any]:
        out = self._folder / name
        config = _config(
            self._arguments, str(out), num_questions, num_traces, max_tokens, *self._parts
        )
        collect(config, self._start, Console(quiet=True))
        assert self._timed is not None
        after = time.perf_counter() - self._timed.ended_s
        return {**self._timed.found, "after_seconds": after}

    def _start(self, *args: Any, **kwargs: Any) -> StepLLM:
        self._timed = self._timed or TimedLLM(*args, **kwargs)
        return self._timed

    def end(self) -> None:
        if self._timed is not None:
            self._timed.end()


def _config(
    arguments: argparse.Namespace,
    out: str,
    num_questions: int,
    num_traces: int,
    max_tokens: int,
    features: bool = False,
    confidence: bool = False,
) -> CollectConfig:
    workers = arguments.grading_workers
    return CollectConfig(
        model=arguments.model,
        questions=arguments.questions,
        out=out,
        limit=num_questions,
        num_traces=num_traces,
        sampling=Sampling(temperature=arguments.temperature, max_tokens=max_tokens),
        features=features,
        confidence=confidence,
        engine={"max_num_seqs": arguments.max_num_seqs, **arguments.engine},
        **({} if workers is None else {"grading_workers": workers}),
    )


def _questions(arguments: argparse.Namespace, limit: int) -> Sequence[Any]:
    return load_questions(arguments.questions, _config(arguments, "", limit, 1, 1)).questions


def _profile(arguments: argparse.Namespace, name: str, runner: Any) -> None:
    """Write where the engine's process and this one spend a shorter run with all sequences."""
    pids = [child.pid for child in active_children()]
    if pids:
        runner.llm.collective_rpc(stack_samples.start)
    stack_samples.start()
    traces = -(-arguments.max_num_seqs // arguments.num_questions)
    found = runner.run("profiled", arguments.num_questions, traces, PROFILED_TOKENS)
    profile = {"steps": found["steps"], "seconds": found["seconds"], "caller": stack_samples.stop()}
    if pids:
        profile["engine"] = runner.llm.collective_rpc(stack_samples.stop)[0]
    path = arguments.out.with_suffix(".profile.json")
    profiles = json.loads(path.read_text()) if path.exists() else {}
    with atomic_write(path, "w") as file:
        file.write(json.dumps({**profiles, name: profile}, indent=1))


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each variant's means, and its tokens a second over plain's of the same repeat."""
    plain = {run["repeat"]: run for run in runs if run["variant"] == PLAIN}
    rows = {}
    for variant in (PLAIN, *PARTS):
        own = [run for run in runs if run["variant"] == variant]
        if not own:
            continue
        rows[variant] = {name: statistics.mean(run[name] for run in own) for name in FIGURES}
        ratios = [
            run["tokens_per_second"] / plain[run["repeat"]]["tokens_per_second"]
            for run in own
            if run["repeat"] in plain
        ]
        if variant != PLAIN and ratios:
            rows[variant]["ratio_of_each_repeat"] = ratios
            rows[variant]["ratio"] = statistics.mean(ratios)
    return rows


if __name__ == "__main__":
    run_command(main)
