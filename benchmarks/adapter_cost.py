"""What scoring costs: throughput of an engine with the adapter over plain vLLM's.

The model has random weights (`load_format="dummy"`) in the shape of a configuration file, by
default Qwen3-8B's. For each of vLLM's model runners both engines are started side by side and run
in turn, with CUDA graphs where the device has them: the same number of sequences, each of as many
generated tokens, with a step boundary every 20 tokens on average. Memory is ample: none is pruned.

Every finished run is a line of OUT; a run that is there is not made again.

usage: python benchmarks/adapter_cost.py --out FILE.jsonl [--runners 0 1]

The 8B shape with the defaults (64 sequences of 1,024 tokens, 256 of 384) needs 72 GiB of GPU
memory.

To find where the time goes: `--engines plain scoring eager scheduler idle` also runs the engine
with parts of the adapter off, in the same process. "eager": scoring without the scorer's CUDA
graphs; "scheduler": all requests opt in, but no row is scored; "idle": no request opts in, so that
no row is scored either: its loss is that of the measurement itself, and the loss over it that of
scoring alone. `--profile` writes FILE.profile.json: what GPU and host do in a step of each
(`engine_profile.py`).
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import engine_profile
import torch
from run_lines import read_runs

from step_eval.replay.shapes import (
    NO_WEIGHTS,
    kv_bytes_per_token,
    read_shape,
    write_model,
    write_scorer,
)
from step_infer.cli.command import run as run_command
from step_infer.client.llm import StepLLM
from step_infer.client.trace import Sampling, TracePlan
from step_infer.row_scorer import RowScorer
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.network import read_card
from step_infer.storage.files import atomic_write
from step_infer.storage.run_directory import package_versions

PROMPT_TOKENS = 32
BOUNDARY_EVERY = 20
PROFILED_TOKENS = 48
PARTS = {
    "scoring": (True, True, True),
    "eager": (True, True, False),
    "scheduler": (False, True, True),
    "idle": (True, False, True),
}
"""Engines with the adapter: whether the worker can score, whether requests opt in, and whether
scores run as CUDA graphs where the device has them."""
ENGINES = ("plain", *PARTS)


def main() -> None:
    """Make the runs that are missing, one process a runner, then print the cost."""
    arguments = _parse()
    if arguments.runner is not None:
        _run_both(arguments)
        return
    for runner in arguments.runners:
        if _missing(arguments, runner) or _unprofiled(arguments, runner):
            command = [sys.executable, __file__, *sys.argv[1:], "--runner", str(runner)]
            environment = {**os.environ, "VLLM_USE_V2_MODEL_RUNNER": str(runner)}
            environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # to reach into the workers
            if arguments.ranks > 1:  # as _run_both's options
                environment["VLLM_ALLREDUCE_USE_FLASHINFER"] = "0"
                environment["VLLM_ALLREDUCE_USE_SYMM_MEM"] = "0"
            subprocess.run(command, env=environment, check=True)
    print(json.dumps(summary(read_runs(arguments.out)), indent=2))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="JSON lines, one a run")
    add("--shape", default="qwen3-8b", help="name of a shape, or a config.json")
    add("--sequences", type=int, nargs="+", default=[64, 256])
    add("--runners", type=int, nargs="+", default=[0, 1], help="0: vLLM's V1 runner, 1: its V2")
    add("--tokens", type=int, nargs="+", default=[1024, 384], help="tokens of a sequence, for each")
    add("--repeats", type=int, default=3)
    add("--engines", nargs="+", choices=ENGINES, default=["plain", "scoring"])
    add("--profile", action="store_true", help="also look into a few steps of each engine")
    add("--ranks", type=int, default=1, help="tensor-parallel ranks of an engine")
    add("--confidence", action="store_true", help="the worker also takes token confidences")
    add("--runner", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if len(arguments.tokens) != len(arguments.sequences):
        parser.error("expected as many --tokens as --sequences")
    return arguments


def _set_up(run: dict[str, Any]) -> tuple[int, bool]:
    """Return the ranks of a run, and whether it took token confidences as well."""
    return run.get("ranks", 1), run.get("confidence", False)


def _missing(arguments: argparse.Namespace, runner: int) -> list[tuple[int, int, int, str]]:
    """Return the runs to be made in their order: repeat, sequences, tokens of each, engine."""
    shape = read_shape(arguments.shape)
    done = {
        (run["repeat"], run["sequences"], run["tokens"], run["engine"])
        for run in read_runs(arguments.out)
        if (run["runner"], run["shape"], *_set_up(run))
        == (runner, shape, arguments.ranks, arguments.confidence)
    }
    wanted = [
        (repeat, sequences, tokens, engine)
        for sequences, tokens in zip(arguments.sequences, arguments.tokens, strict=True)
        for repeat in range(arguments.repeats)
        for engine in arguments.engines
    ]
    return [run for run in wanted if run not in done]


def _model(folder: Path, shape: dict[str, Any]) -> Path:
    """Write a model folder without weights, and a random scorer of its size; return the scorer."""
    write_model(folder, shape)
    ids = frozenset(range(BOUNDARY_EVERY - 1, shape["vocab_size"], BOUNDARY_EVERY))
    rule = BoundaryRule("blank_line", ids, None, pattern="\n\n")
    scorer = folder / "scorer" / "scorer.safetensors"
    write_scorer(scorer, folder, str(folder), rule)
    return scorer


def _run_both(arguments: argparse.Namespace) -> None:
    """Start both engines in this process and make the missing runs in turn."""
    shape = read_shape(arguments.shape)
    context = PROMPT_TOKENS + max(arguments.tokens)
    most = max(arguments.sequences)
    # A block more for each sequence, and a tenth to spare: nobody may wait or be pruned.
    cached = 1.1 * max(
        sequences * (PROMPT_TOKENS + tokens + 32)
        for sequences, tokens in zip(arguments.sequences, arguments.tokens, strict=True)
    )
    options = {
        **NO_WEIGHTS,
        "dtype": shape.get("dtype", "auto"),  # on CPUs as well: the KV cache is sized by it
        "max_model_len": context,
        "max_num_seqs": most,
        "kv_cache_memory_bytes": int(cached * kv_bytes_per_token(shape) / arguments.ranks),
        "gpu_memory_utilization": 0.4,
        "tensor_parallel_size": arguments.ranks,
        "seed": 0,
    }
    if arguments.ranks > 1:
        # Both engines add up by NCCL: other kernels need GPUs that share memory windows.
        options |= {
            "disable_custom_all_reduce": True,
            "compilation_config": {"pass_config": {"fuse_allreduce_rms": False}},
        }
    with tempfile.TemporaryDirectory() as name:
        scorer = _model(Path(name), shape)
        rule = read_card(scorer).boundary_rule  # the made-up tokenizer has no blank line
        with (
            StepLLM(name, plain=True, boundary=rule, **options) as plain,
            StepLLM(name, scorer, confidence=arguments.confidence, **options) as own,
        ):
            for llm in (plain, own):
                _time(llm, min(8, most), 32)
            for repeat, sequences, tokens, engine in _missing(arguments, arguments.runner):
                llm = plain if engine == "plain" else _with_parts(own, *PARTS[engine])
                seconds, scored, step_ms = _time(llm, sequences, tokens)
                run = {
                    "runner": arguments.runner,
                    "ranks": arguments.ranks,
                    "confidence": arguments.confidence,
                    "sequences": sequences,
                    "tokens": tokens,
                    "engine": engine,
                    "repeat": repeat,
                    "seconds": seconds,
                    "tokens_per_second": sequences * tokens / seconds,
                    "median_step_ms": step_ms,
                    "scored_steps": scored,
                    "device": _device(),
                    "versions": package_versions(),
                    "shape": shape,
                }
                before = arguments.out.read_bytes() if arguments.out.exists() else b""
                with atomic_write(arguments.out) as file:
                    file.write(before + json.dumps(run).encode() + b"\n")
                shown = f"{run['tokens_per_second']:.1f} tokens/s"
                print(f"runner {arguments.runner}, {sequences} sequences, {engine}: {shown}")
            _profile(arguments, plain, own)


def _with_parts(own: StepLLM, scores: bool, opts_in: bool, graphs: bool) -> StepLLM:
    """Switch parts of the adapter on or off."""
    own._llm.collective_rpc(_let_score, args=(scores, graphs))
    own.plain = not opts_in  # its requests do not ask for the adapter
    return own


def _let_score(wrapper: Any, scores: bool, graphs: bool) -> None:
    worker = wrapper.worker  # vLLM hands out the worker in a wrapper, which shows its attributes
    hook = worker.model_runner.get_model().compute_logits
    if isinstance(hook, RowScorer):  # on the rank that scores
        worker.row_scorer = hook if scores else None
        captured = vars(worker).setdefault("captured_scorer", hook._captured)
        hook._captured = captured if graphs else None


def _profiles(arguments: argparse.Namespace) -> dict[str, Any]:
    path = arguments.out.with_suffix(".profile.json")
    return json.loads(path.read_text()) if path.exists() else {}


def _unprofiled(arguments: argparse.Namespace, runner: int) -> dict[str, str]:
    """Return the engines to be looked into, by the names of their profiles."""
    wanted = {f"V{runner + 1} {engine}": engine for engine in arguments.engines}
    done = _profiles(arguments)
    return {k: v for k, v in wanted.items() if k not in done} if arguments.profile else {}


def _profile(arguments: argparse.Namespace, plain: StepLLM, own: StepLLM) -> None:
    """Write what a step of each engine is made of, at the first number of sequences."""
    for name, engine in _unprofiled(arguments, arguments.runner).items():
        llm = plain if engine == "plain" else _with_parts(own, *PARTS[engine])
        llm._llm.collective_rpc(engine_profile.start)
        _time(llm, arguments.sequences[0], PROFILED_TOKENS)
        ranks = llm._llm.collective_rpc(engine_profile.stop, args=(PROFILED_TOKENS,))
        with atomic_write(arguments.out.with_suffix(".profile.json"), "w") as file:
            file.write(json.dumps({**_profiles(arguments), name: ranks}, indent=1))


def _time(llm: StepLLM, sequences: int, tokens: int) -> tuple[float, int, float]:
    """Generate all sequences at once.

    Returns:
        seconds, the number of scored steps, and the median milliseconds of an engine step.
    """
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=tokens)
    plans = [
        TracePlan("q", number, tuple(range(10, 10 + PROMPT_TOKENS)), None, sampling, "q")
        for number in range(sequences)
    ]
    ends: list[float] = []
    start = time.perf_counter()
    traces = list(llm.stream(plans, sequences, lambda: ends.append(time.perf_counter())))
    seconds = time.perf_counter() - start
    if any(len(trace.token_ids) != tokens for trace in traces):
        raise RuntimeError("A sequence ended early: the engines did not do the same work.")
    step_ms = 1e3 * statistics.median(later - end for end, later in itertools.pairwise(ends))
    return seconds, sum(len(trace.step_scores) for trace in traces), step_ms


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each set-up and number of sequences, what each engine loses over plain.

    A repeat's loss compares runs that were made one after the other.
    """
    rates: dict[tuple[int, int, bool, int], dict[str, dict[int, float]]] = {}
    for run in runs:
        key = run["runner"], *_set_up(run), run["sequences"]
        of_engine = rates.setdefault(key, {}).setdefault(run["engine"], {})
        of_engine[run["repeat"]] = run["tokens_per_second"]
    rows = []
    for (runner, ranks, confidence, sequences), engines in sorted(rates.items()):
        plain, idle = engines.get("plain", {}), engines.get("idle", {})
        for engine in PARTS:
            own = engines.get(engine, {})
            if not (losses := _losses(own, plain)):
                continue
            row = {
                "runner": f"V{runner + 1}",
                "ranks": ranks,
                "confidence": confidence,
                "sequences": sequences,
                "engine": engine,
                "plain_tokens_per_second": statistics.mean(plain.values()),
                "tokens_per_second": statistics.mean(own.values()),
                "loss_percent": statistics.mean(losses),
                "loss_percent_of_each_repeat": losses,
            }
            if engine != "idle" and (over_idle := _losses(own, idle)):
                row["loss_percent_over_idle"] = statistics.mean(over_idle)
                row["loss_percent_over_idle_of_each_repeat"] = over_idle
            rows.append(row)
    return rows


def _losses(own: dict[int, float], other: dict[int, float]) -> list[float]:
    return [100 * (1 - own[n] / other[n]) for n in sorted(other.keys() & own.keys())]


if __name__ == "__main__":
    run_command(main)
