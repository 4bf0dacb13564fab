r"""How fast one `step-collect` writes what many engines would give it: traces/s and MB/s.

Runs the command's own code from a finished trace to the files: the answer is found and graded, the
table's rows are made, states are checked, and both files are written, synced and hashed, part by
part. Only the engine is made up: it gives finished traces as fast as they are taken. They have half
to one and a half times the mean number of steps; their states are random numbers, and their text is
made of words as frequent as a language's. Not in it: what Ray takes to bring a trace here.

    python -m data_gen.ledger --out questions.jsonl --count 8
    python benchmarks/driver_writing.py --questions questions.jsonl --out FIGURES.json

The disk of `--work` must have room for a run, 157 MB a question at 4,096.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from data_gen.collect import collect
from data_gen.collection import TOKENS_PER_STEP
from data_gen.config import CollectConfig
from data_gen.traces.directory import TraceDirectory
from step_eval.manifest import device_name
from step_infer.client.engine import EngineStats
from step_infer.client.prompt import load_tokenizer
from step_infer.client.requests import question_plans
from step_infer.client.trace import Trace, TracePlan
from step_infer.errors import InputError
from step_infer.storage.files import write_json
from step_infer.storage.run_directory import package_versions

MODEL = Path(__file__).parent.parent / "checkpoints" / "ledger-5m"
CONTEXT = 65_536
KINDS_OF_TRACES = 256
"""Different traces, which come again and again; a part holds no two of a kind."""
WORDS = 20_000


class MadeUpEngine:
    """What `step-collect` uses of a `StepLLM`; it samples nothing."""

    def __init__(self, model: str, traces: list[Trace]) -> None:
        """Take the traces to give."""
        self._tokenizer = load_tokenizer(model)
        self._traces = traces
        self.seconds = self.cpu_seconds = 0.0
        """From the first trace taken to the last one written, of all threads of this process."""

    def plan(self, question_id: str, question: str, *options: Any, **more: Any) -> list[TracePlan]:
        """Return a question's orders, those of `StepLLM.plan`."""
        n, sampling, seed, system = options
        return question_plans(
            self._tokenizer, CONTEXT, question_id, question, n, sampling, seed, system, 0, **more
        )

    def stream(self, plans: Iterable[TracePlan], **_: Any) -> Iterator[Trace]:
        """Yield a finished trace for each order, at once."""
        self.seconds, self.cpu_seconds = -time.monotonic(), -time.process_time()
        for number, plan in enumerate(plans):
            made = self._traces[number % len(self._traces)]
            yield replace(
                made,
                question_id=plan.question_id,
                trace_id=plan.trace_id,
                seed=plan.seed,
                prompt_token_ids=list(plan.prompt_token_ids),
                answer=plan.extract(made.text, None),
            )

    def stats(self) -> EngineStats:
        """Return no tokens: none are sampled."""
        return EngineStats(time.monotonic())

    def close(self) -> None:
        """Stop the clocks: the last part is written."""
        self.seconds += time.monotonic()
        self.cpu_seconds += time.process_time()


def made_up_traces(hidden_size: int, steps: int, seed: int = 0) -> list[Trace]:
    """Return finished traces of so many steps on average, with states in float16."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlu"))
    words = ["".join(rng.choice(letters, rng.integers(1, 7))) + " " for _ in range(WORDS)]
    share_W = 1 / np.arange(10, WORDS + 10)  # the more frequent half of a text are few words
    share_W /= share_W.sum()
    traces = []
    for number in range(KINDS_OF_TRACES):
        count = max(1, round(steps * (0.5 + number / (KINDS_OF_TRACES - 1))))
        token_ids = rng.choice(WORDS, count * TOKENS_PER_STEP, p=share_W)
        text = "".join(words[token] for token in token_ids)
        states_SH = rng.standard_normal((count, hidden_size), dtype=np.float32)
        traces.append(
            Trace(
                "",
                0,
                0,
                [],
                token_ids.tolist(),
                f"{text}</think>\n\n\\boxed{{{number % 4}}}",
                "stop",
                boundary_positions=list(
                    range(TOKENS_PER_STEP - 1, len(token_ids), TOKENS_PER_STEP)
                ),
                step_confidences=rng.random(count).tolist(),
                mean_token_confidence=0.5,
                hidden_SH=torch.from_numpy(states_SH).half(),
            )
        )
    return traces


def model_of_width(folder: Path, hidden_size: int) -> str:
    """Write a model folder without weights whose states would be so wide."""
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": hidden_size, "max_position_embeddings": CONTEXT}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def measure(questions: str, hidden_size: int, steps: int, num_traces: int, work: Path) -> Any:
    """Collect made-up traces once, and return what it took."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        model = model_of_width(folder / "model", hidden_size)
        engine = MadeUpEngine(model, made_up_traces(hidden_size, steps))
        config = CollectConfig(
            model=model,
            questions=questions,
            out=str(folder / "traces"),
            num_traces=num_traces,
            steps_per_trace=steps,
            system="",
        )
        load = os.getloadavg()[0]
        collect(config, lambda *_, **__: engine, Console(file=sys.stderr, soft_wrap=True))  # type: ignore[arg-type,return-value]
        written = TraceDirectory(config.out)
        parts = written.manifest["parts"]
    sizes = {
        kind: sum(part[kind]["bytes"] for part in parts) / 1e6 for kind in ("features", "traces")
    }
    seconds, count = engine.seconds, sum(part["traces"]["rows"] for part in parts)
    return {
        "hidden_size": hidden_size,
        "traces": count,
        "parts": len(parts),
        "seconds": round(seconds, 3),
        "traces_per_second": round(count / seconds, 2),
        "mb_per_second": round(sum(sizes.values()) / seconds, 1),
        "states_mb_a_trace": round(sizes["features"] / count, 3),
        "table_mb_a_trace": round(sizes["traces"] / count, 3),
        "cpu_ms_a_trace": round(1000 * engine.cpu_seconds / count, 2),
        "load_of_the_machine": round(load, 1),
    }


def disk_of(path: Path) -> str:
    """Return the device and the file system that hold a folder."""
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [m for m in mounts if path.resolve().is_relative_to(m[1])]
    device, _, system = max(holding, key=lambda mount: len(mount[1]))
    return f"{device}, {system}"


def main() -> None:
    """Measure each width in turn, and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", required=True, help="file or data set, with answers")
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[2560, 4096])
    parser.add_argument("--steps", type=int, default=300, help="mean steps a trace (300)")
    parser.add_argument("--num-traces", type=int, default=64, help="traces a question (64)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each width (3)")
    parser.add_argument("--work", type=Path, default=Path(), help="folder on the disk to measure")
    parser.add_argument("--out", type=Path, help="file for the figures, JSON (none)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    runs = []
    try:
        for _ in range(options.repeats):
            for width in options.hidden_sizes:
                sizes = (width, options.steps, options.num_traces)
                runs.append(measure(options.questions, *sizes, options.work))
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    except InputError as error:
        sys.exit(f"error: {error}")
    about: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "device": device_name()}
    about |= {"disk": disk_of(options.work), "versions": package_versions()}
    about |= {"steps_a_trace": options.steps, "tokens_a_step": TOKENS_PER_STEP}
    about["medians"] = {
        str(width): {
            name: statistics.median(run[name] for run in runs if run["hidden_size"] == width)
            for name in ("traces_per_second", "mb_per_second", "cpu_ms_a_trace")
        }
        for width in options.hidden_sizes
    }
    about["runs"] = runs
    print(json.dumps(about, indent=1))
    if options.out is not None:
        write_json(options.out, about)


if __name__ == "__main__":
    main()
