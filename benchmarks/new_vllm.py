"""What a new vLLM is to show on the GPUs of one machine: the adapter's tests, and what it costs.

Jobs start in their order, each as soon as as many GPUs as it needs are free. Tests compare with a
forward pass on the CPU and have few of its cores: what is timed beside them needs the others. A
job's output is OUT/NAME.log, and once it has passed its seconds are OUT/NAME.seconds: started
again, what is done is not done again. `--model` is a real model for `collect`, `n-grams` and, with
`--draft`, `drafts`.

usage: python benchmarks/new_vllm.py --out runs/new-vllm --questions math_500.jsonl \
    --model qwen2.5-coder-1.5b-instruct --draft qwen2.5-coder-0.5b-instruct
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from step_infer.cli.command import run as run_command
from step_infer.errors import InputError
from step_infer.storage.files import atomic_write
from step_infer.storage.run_directory import RunDirectory

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests" / "step_infer"
RUNNERS = {"V2": "1", "V1": "0"}
TEST_FILES = (
    *("adapter_engine", "speculation_engine", "sleep_engine", "engine_features"),
    *("connector_engine", "confidence", "row_scorer", "captured_scorer", "split_scorer"),
)
TEST_THREADS = 4
POLL_S = 0.2


@dataclass(frozen=True)
class Job:
    """A command, and what it needs."""

    name: str
    gpus: int
    limit_s: float
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


_Running = tuple[Job, subprocess.Popen[bytes], list[int], float]
"""A job, its process, its GPUs, and when it began."""


def jobs(arguments: argparse.Namespace) -> list[Job]:
    """Return all jobs that the arguments allow, in the order of their starts."""
    out, python = arguments.out, sys.executable
    cost = [python, "benchmarks/adapter_cost.py", "--repeats", str(arguments.repeats)]
    idle = ["--engines", "plain", "scoring", "idle"]
    demo = ["--shape", "checkpoints/ledger-5m/config.json", "--sequences", "64", "--tokens", "1024"]
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", "--tb=short"]
    threads = {"OMP_NUM_THREADS": str(TEST_THREADS)}

    def costs(name: str, *options: str, gpus: int = 1) -> Job:
        return Job(name, gpus, 480, [*cost, "--out", f"{out}/{name}.jsonl", *options])

    def tested(name: str, runner: str, files: tuple[str, ...], gpus: int = 1) -> Job:
        paths = [str(TESTS / f"test_{file}.py") for file in files]
        environment = {"VLLM_USE_V2_MODEL_RUNNER": RUNNERS[runner], **threads}
        return Job(f"{name}-{runner}", gpus, 500, [*tests, *paths], environment)

    def drafted(name: str, runner: str, *options: str) -> Job:
        command = [python, "benchmarks/speculation.py", "--out", f"{out}/{name}-{runner}.jsonl"]
        command += ["--model", arguments.model, "--questions", arguments.questions, *options]
        return Job(f"{name}-{runner}", 1, 700, [*command, "--runners", RUNNERS[runner]])

    real: list[Job] = []
    drafts: list[Job] = []
    if arguments.model is not None:
        collect = [python, "benchmarks/collect_speed.py", "--out", f"{out}/collect.jsonl"]
        collect += ["--model", arguments.model, "--questions", arguments.questions]
        collect += ["--num-questions", "24", "--engine", '{"max_model_len": 4096}', "--profile"]
        real = [Job("collect", 1, 800, collect)]
        for runner in RUNNERS:
            if arguments.draft is not None:
                drafts.append(drafted("drafts", runner, "--draft", arguments.draft))
            drafts.append(drafted("n-grams", runner))
    return [
        costs("cost-two-ranks", "--ranks", "2", "--runners", "1", gpus=2),
        costs("cost-V2", "--runners", "1", *idle, "--profile"),
        costs("cost-V1", "--runners", "0", *idle),
        *(tested("ranks", runner, ("parallel_engine",), gpus=2) for runner in RUNNERS),
        costs("cost-confidence", "--runners", "1", "--confidence"),
        costs("cost-host", "--runners", "1", *demo, *idle, "--profile"),
        *real,
        *(tested("tests", runner, TEST_FILES) for runner in RUNNERS),
        *drafts,
    ]


def main() -> None:
    """Run the jobs that are not done; exit with 1 where one of them failed."""
    arguments = _parse()
    wanted = jobs(arguments)
    names = [job.name for job in wanted]
    if unknown := set(arguments.jobs or ()) - set(names):
        raise InputError(
            f"Expected --jobs among {', '.join(names)}, found: {', '.join(sorted(unknown))}. "
            "Hint: those of a real model need --model and --questions."
        )
    with RunDirectory(arguments.out, kind=None).claim():
        wanted = [
            job
            for job in wanted
            if (arguments.jobs is None or job.name in arguments.jobs)
            and not (arguments.out / f"{job.name}.seconds").exists()
        ]
        if too_large := [job.name for job in wanted if job.gpus > arguments.gpus]:
            print(f"left out, as they need more GPUs: {', '.join(too_large)}")
            wanted = [job for job in wanted if job.gpus <= arguments.gpus]
        failed = _run(wanted, arguments)
    if failed:
        print(f"failed: {', '.join(failed)}; see their logs in {arguments.out}")
        sys.exit(1)
    print("All other jobs passed." if too_large else "All jobs passed.")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--gpus", type=int, default=1, help="GPUs of the machine; those from 0 on are used")
    add("--model", help="folder of a real model")
    add("--draft", help="folder of a smaller model of the same vocabulary")
    add("--questions", help="file with questions for the real model")
    add("--repeats", type=int, default=6, help="of each cost")
    add("--jobs", nargs="+", help="only these")
    add("--seconds", type=float, default=3600, help="for all jobs; then what runs is stopped")
    arguments = parser.parse_args()
    if arguments.model is not None and arguments.questions is None:
        parser.error("expected --questions with --model")
    arguments.out = arguments.out.absolute()
    for name in ("model", "draft", "questions"):  # jobs run in another folder
        if (value := getattr(arguments, name)) is not None and Path(value).exists():
            setattr(arguments, name, str(Path(value).absolute()))
    return arguments


def _run(waiting: list[Job], arguments: argparse.Namespace) -> list[str]:
    """Run jobs, in order, as GPUs are free; return the names of those that failed."""
    running: list[_Running] = []
    try:
        return _run_all(waiting, running, arguments)
    finally:
        # They have process groups of their own: a Ctrl-C does not reach them.
        for _, process, _, _ in running:
            process.send_signal(signal.SIGINT)
        for _, process, _, _ in running:
            process.wait()


def _run_all(
    waiting: list[Job], running: list[_Running], arguments: argparse.Namespace
) -> list[str]:
    began = time.monotonic()
    free = list(range(arguments.gpus))
    failed = []
    while waiting or running:
        left = arguments.seconds - (time.monotonic() - began)
        if waiting and left <= 0:
            failed += [job.name for job in waiting]
            waiting = []
        while waiting and waiting[0].gpus <= len(free):
            job = waiting.pop(0)
            gpus, free = free[: job.gpus], free[job.gpus :]
            print(f"{time.strftime('%T')} {job.name} on {gpus}: {shlex.join(job.command)}")
            limit = max(1.0, min(job.limit_s, left))  # timeout takes 0 for no limit
            running.append((job, _start(job, gpus, limit, arguments.out), gpus, time.monotonic()))
        for entry in [entry for entry in running if entry[1].poll() is not None]:
            job, process, gpus, start = entry
            running.remove(entry)
            free = sorted(free + gpus)
            seconds = time.monotonic() - start
            print(f"{time.strftime('%T')} {job.name}: {process.returncode} after {seconds:.0f} s")
            if process.returncode:
                failed.append(job.name)
            else:
                with atomic_write(arguments.out / f"{job.name}.seconds", "w") as file:
                    file.write(f"{seconds:.1f}\n")
        sys.stdout.flush()
        time.sleep(POLL_S)
    return failed


def _start(job: Job, gpus: list[int], limit_s: float, out: Path) -> subprocess.Popen[bytes]:
    """Start a job; it is interrupted at its limit, as by Ctrl-C, and killed a little later."""
    environment = {
        **os.environ,
        # Engines and servers are other processes.
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
        **job.environment,
    }
    # It would be compiled at the first start, for minutes.
    environment.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    command = ["timeout", "--signal=INT", "--kill-after=15", f"{limit_s:.0f}", *job.command]
    with (out / f"{job.name}.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


if __name__ == "__main__":
    run_command(main)
