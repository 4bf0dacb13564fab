"""Training a scorer: `step-train fit` against a plain PyTorch loop, side by side on the CPU.

Both train the paper's network (H -> 512 -> 1) on the same training questions for the same number of
epochs, each in a process of its own, in turn. Plain is what one would write first: a DataLoader
(shuffle, batch 128) over a TensorDataset of float32 states, all in memory, Adam at 1e-4. Ours is
`fit` itself, Lightning trainer, checkpoints and all, reading bfloat16 shards, with the options
below. The states are made up: low-rank common variance, an offset of each question, and one
direction that tells right from wrong with a known AUROC within question.

Reported: training rows a second over whole epochs (validation left out on both sides), seconds to
plain's best validation AUROC (all that both do counts, validation too), AUROC within question on
the test questions, and the most anonymous memory.

usage: python benchmarks/scorer_throughput.py [--rounds 3] [--json FILE]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from scipy.stats import norm, t
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from data_gen.trace_writer import TraceWriter
from step_infer.scorer import StepScorer
from step_train.dataset import TrainingData, read_training_data
from step_train.feature_blocks import EvaluationBatches
from step_train.fit import fit
from step_train.fit_config import FitConfig
from step_train.metrics import within_question
from step_train.peak_memory import PeakMemory
from step_train.trace_table import TraceTable

RANK = 64
SPLIT: dict[str, Any] = {"val_fraction": 0.15, "test_fraction": 0.15, "seed": 0}


def write_features(path: Path, options: argparse.Namespace) -> None:
    """Write a traces directory of made-up states; half of a trace's own noise is shared."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    hidden_size = options.hidden_size
    basis = normal(RANK, hidden_size) * torch.arange(1, RANK + 1).rsqrt().unsqueeze(1)
    direction = nn.functional.normalize(normal(hidden_size), dim=0)
    distance = 2**0.5 * float(norm.ppf(options.auroc))
    manifest = {
        "model": "made/up",
        "identity": {
            "config_hash": "0" * 64,
            "tokenizer_hash": "0" * 64,
            "hidden_size": hidden_size,
        },
        "boundary": {"kind": "stride", "pattern": "", "stride": 1, "think_end_id": 0},
    }
    with TraceWriter(path, {}, **manifest) as out:
        for question in range(options.questions):
            offset = normal(RANK) @ basis * 0.5
            rows, states = [], []
            for trace in range(options.traces):
                steps = int(torch.randint(10, 50, (), generator=generator))
                right = bool(torch.rand((), generator=generator) < 0.5)
                state = offset + normal(steps, RANK) @ basis + normal(steps, hidden_size)
                state -= (state @ direction).unsqueeze(1) * direction
                own = 0.5**0.5 * (normal(1) + normal(steps))
                state += (own + distance * (right - 0.5)).unsqueeze(1) * direction
                states.append(state.to(torch.bfloat16))
                rows.append(
                    {
                        "question_id": f"q{question:05d}",
                        "trace_id": trace,
                        "seed": trace,
                        "question": "made up",
                        "prompt_token_ids": [1],
                        "token_ids": [1] * steps,
                        "text": "",
                        "finish_reason": "stop",
                        "extracted_answer": "1",
                        "is_correct": right,
                        "boundary_positions": list(range(steps)),
                    }
                )
            out.add_part(rows, states)
        out.update(complete=True)


class Clock(Callback):
    """Times of epochs: the training batches alone, and since the start, validation included."""

    def __init__(self) -> None:
        self.training: list[float] = []
        self.elapsed: list[float] = []
        self._start = self._epoch = 0.0

    def on_fit_start(self, *_: Any) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the epoch."""
        self._epoch = time.perf_counter()

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        """The epoch's batches are done."""
        if trainer.state.fn == "fit":
            self.training.append(time.perf_counter() - self._epoch)

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        """The epoch's metrics are known."""
        if trainer.state.fn == "fit":
            self.elapsed.append(time.perf_counter() - self._start)


def train_ours(traces: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train by `fit`; return times and metrics."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as run:
        config = FitConfig(
            traces,
            Path(run) / "run",
            **SPLIT,
            max_epochs=options.epochs,
            patience=options.epochs,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            precision=options.precision,
            accelerator="cpu",
            memory_mib=options.memory_mib,
            select="within_question",
            baselines="none",
            progress=False,
        )
        result = fit(config, [clock])
    return {
        "training_s": clock.training,
        "elapsed_s": clock.elapsed,
        "val_auroc": [row["val_within_question"] for row in result.history],
        "test_auroc": result.metrics["steps"]["within_question"]["value"],
    }


def all_steps(data: TrainingData, table: TraceTable) -> Tensor:
    """Return the states of all steps of some traces, float32 [S, H]."""
    return torch.cat([hidden.float() for hidden, _ in EvaluationBatches(data.rows, table)])


def train_plain(traces: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train by a plain loop; return times and metrics. Loading is not timed."""
    data = read_training_data(traces, max_traces_per_class=None, **SPLIT)
    states = {name: all_steps(data, table) for name, table in data.splits.items()}
    label_S = torch.from_numpy(data.splits["train"].label_S).float()
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(states["train"], label_S), batch_size=128, shuffle=True)
    scorer = StepScorer(data.rows.hidden_size)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=1e-4, weight_decay=1e-5)
    right = float(label_S.sum())
    loss_of = nn.BCEWithLogitsLoss(pos_weight=torch.tensor((len(label_S) - right) / right))

    def auroc(name: str) -> float:
        with torch.inference_mode():
            score_S = scorer(states[name]).numpy()
        table = data.splits[name]
        found = within_question(table.label_S, score_S, table.question_S, resamples=0)
        return float(found["value"])

    outcome: dict[str, Any] = {"training_s": [], "elapsed_s": [], "val_auroc": [], "test_auroc": 0}
    begin = time.perf_counter()
    for _ in range(options.epochs):
        epoch = time.perf_counter()
        for hidden_BH, label_B in loader:
            optimizer.zero_grad()
            loss_of(scorer(hidden_BH), label_B).backward()
            optimizer.step()
        outcome["training_s"].append(time.perf_counter() - epoch)
        outcome["val_auroc"].append(auroc("val"))
        outcome["elapsed_s"].append(time.perf_counter() - begin)
        if outcome["val_auroc"][-1] == max(outcome["val_auroc"]):
            outcome["test_auroc"] = auroc("test")
    return outcome


SIDES = {"plain": train_plain, "ours": train_ours}


def one_side(side: str, traces: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train one side in this process."""
    torch.set_num_threads(options.threads)
    with PeakMemory() as memory:
        outcome = SIDES[side](traces, options)
    table = read_training_data(traces, max_traces_per_class=None, **SPLIT).splits["train"]
    rate = table.num_steps * options.epochs / sum(outcome["training_s"])
    return outcome | {"rows_per_s": rate, "peak_mib": memory.peak_mib}


def ratio_interval(ratios: list[float]) -> tuple[float, float, float]:
    """Return the geometric mean of ratios with its 95 % t interval over rounds."""
    logs = np.log(ratios)
    half = 0.0
    if len(logs) > 1:
        half = t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    middle, low, high = np.exp([logs.mean(), logs.mean() - half, logs.mean() + half])
    return float(middle), float(low), float(high)


def seconds_to(outcome: dict[str, Any], goal: float) -> float | None:
    """Return when validation AUROC reached a goal."""
    times = zip(outcome["elapsed_s"], outcome["val_auroc"], strict=True)
    return next((seconds for seconds, value in times if value >= goal), None)


def products_per_s(options: argparse.Namespace) -> float:
    """Return rows a second if a step were the first layer's two products alone, nothing else."""
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.precision)
    hidden = torch.randn(options.batch_size, options.hidden_size).to(dtype)
    weight = torch.randn(512, options.hidden_size).to(dtype)
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        (hidden @ weight.T).T @ hidden
        times.append(time.perf_counter() - begin)
    return options.batch_size / float(np.median(times))


def compare(options: argparse.Namespace, traces: Path) -> dict[str, Any]:
    """Run both sides in turn and return all figures."""
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds):
        seen: dict[str, Any] = {}
        for side in sorted(SIDES, reverse=bool(number % 2)):
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(
                [*command, "--traces-dir", str(traces)], stdout=subprocess.PIPE, check=True
            )
            seen[side] = json.loads(done.stdout.splitlines()[-1])
        goal = max(seen["plain"]["val_auroc"])
        seen["products_per_s"] = products_per_s(options)
        seen["seconds_to_goal"] = {side: seconds_to(seen[side], goal) for side in SIDES}
        rounds.append(seen)
        print(json.dumps(seen), file=sys.stderr, flush=True)
    return {
        "options": vars(options),
        "torch": torch.__version__,
        "ratio": ratio_interval(
            [seen["ours"]["rows_per_s"] / seen["plain"]["rows_per_s"] for seen in rounds]
        ),
        "rounds": rounds,
    }


def main() -> None:
    """Compare, and print the outcome."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (3)")
    parser.add_argument("--questions", type=int, default=100, help="questions (100)")
    parser.add_argument("--traces", type=int, default=10, help="traces of a question (10)")
    parser.add_argument("--hidden-size", type=int, default=2560, help="width H (2560)")
    parser.add_argument("--auroc", type=float, default=0.8, help="within question, best case (0.8)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of both (5)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both (2)")
    parser.add_argument("--batch-size", type=int, default=1024, help="of ours (1024)")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="of ours (5e-4)")
    parser.add_argument("--precision", default="bfloat16", help="of ours (bfloat16)")
    parser.add_argument("--memory-mib", type=int, default=1024, help="of ours (1024)")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--traces-dir", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(one_side(options.side, options.traces_dir, options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        traces = Path(folder) / "traces"
        write_features(traces, options)
        outcome = compare(options, traces)
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1, default=str) + "\n")
    middle, low, high = outcome["ratio"]
    print(f"rows a second, ours / plain: {middle:.1f} [{low:.1f}, {high:.1f}] (95 %)")
    for side in SIDES:
        seen = [one[side] for one in outcome["rounds"]]
        values = {name: np.mean([one[name] for one in seen]) for name in ("rows_per_s", "peak_mib")}
        aurocs = ", ".join(f"{one['test_auroc']:.4f}" for one in seen)
        times = [one["seconds_to_goal"][side] for one in outcome["rounds"]]
        print(
            f"{side}: {values['rows_per_s']:,.0f} rows/s, test AUROC within question {aurocs}, "
            f"to plain's best validation AUROC "
            f"{', '.join('never' if one is None else f'{one:.1f} s' for one in times)}, "
            f"anonymous memory {values['peak_mib']:,.0f} MiB"
        )
    bound = np.mean([one["products_per_s"] for one in outcome["rounds"]])
    print(f"bound by the first layer's products in {options.precision}: {bound:,.0f} rows/s")


if __name__ == "__main__":
    main()
