"""Training a scorer: `step-train fit` against a plain PyTorch loop, side by side on the CPU.

Both train the paper's network (H -> 512 -> 1) on the same training questions for the same number of
epochs (the paper's 20 at most), each in a process of its own, in turn. Plain is what one would
write first: a DataLoader (shuffle, batch 128) over a TensorDataset of float32 states, all in
memory, Adam at 1e-4. Ours is `fit` itself, Lightning trainer, checkpoints and all, with
`components`: it finds a subspace, projects every state once, trains there, and exports the network
of full width, which is what is judged here.

The states are made up and not to please the subspace: noise of full rank, low-rank common variance
with an offset of each question, and what tells right from wrong lies across all of that variance.
TracePool "linear": a mean shift along one direction, with a known AUROC within question. TracePool
"interaction": no mean differs; two directions go together in right traces and against each other in
wrong ones.

Reported: training rows a second over whole epochs, with all that ours does before the first one
(reading the table, subspace, projection) spread over them; the time of everything, validation
included; seconds to plain's best validation AUROC; AUROC within question on the test questions with
a paired bootstrap over questions; and processor seconds, which depend less on what else runs.
Plain's loading into memory is not counted.

usage: python benchmarks/scorer_throughput.py [--rounds 3] [--world interaction] [--json FILE]
"""

import argparse
import copy
import dataclasses
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

from data_gen.traces.writer import TraceWriter
from step_eval.statistics import question_mean, within_question_aurocs
from step_infer.scorer.network import StepScorer, load_scorer
from step_train.data.feature_blocks import EvaluationBatches
from step_train.data.trace_table import TraceTable
from step_train.data.training_data import TrainingData, read_training_data
from step_train.export.run import export
from step_train.fit.config import FitConfig
from step_train.fit.run import fit

RANK = 64
SPLIT: dict[str, Any] = {"val_fraction": 0.15, "test_fraction": 0.15, "seed": 0}


def write_features(path: Path, options: argparse.Namespace) -> None:
    """Write a traces directory of made-up states; half of a trace's own noise is shared."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    hidden_size = options.hidden_size
    basis = normal(RANK, hidden_size) * torch.arange(1, RANK + 1).rsqrt().unsqueeze(1)
    directions = torch.linalg.qr(normal(hidden_size, 2))[0].T
    distance = 2**0.5 * float(norm.ppf(options.auroc))
    manifest = {
        "model": "made/up",
        "identity": {
            "config_hash": "0" * 64,
            "tokenizer_hash": "0" * 64,
            "hidden_size": hidden_size,
        },
        "boundary": {
            "kind": "stride",
            "pattern": "",
            "stride": 1,
            "think_end_id": 0,
            "token_ids": [],
        },
    }
    with TraceWriter(path, {}, **manifest) as out:
        for question in range(options.questions):
            offset = normal(RANK) @ basis * 0.5
            rows, states = [], []
            for trace in range(options.traces):
                steps = int(torch.randint(10, 50, (), generator=generator))
                right = bool(torch.rand((), generator=generator) < 0.5)
                state = offset + normal(steps, RANK) @ basis + normal(steps, hidden_size)
                state -= state @ directions.T @ directions
                own = 0.5**0.5 * (normal(1, 2) + normal(steps, 2))
                if options.world == "linear":
                    own[:, 0] += distance * (right - 0.5)
                else:
                    sign = 1 if right else -1
                    own[:, 1] *= (1 - options.correlation**2) ** 0.5
                    own[:, 1] += sign * options.correlation * own[:, 0]
                state += own @ directions
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
                        "answer_group": 0,
                        "boundary_positions": list(range(steps)),
                    }
                )
            out.add_part(rows, states)
        out.update(complete=True)


def now() -> list[float]:
    """Return seconds on the clock, and of this process's processor time."""
    return [time.perf_counter(), time.process_time()]


class Times:
    """When epochs began, their batches were done, and their metrics known."""

    def __init__(self) -> None:
        self._start = np.array(now())
        self._epoch = self._start
        self.before: list[float] = [0.0, 0.0]
        """Seconds before the first epoch, on the clock and of the processor; so all of these."""
        self.training: list[list[float]] = []
        """Of each epoch's training batches."""
        self.elapsed: list[list[float]] = []
        """Since the start, at the end of each epoch."""

    def begin_epoch(self) -> None:
        """Start an epoch."""
        self._epoch = np.array(now())
        if not self.training:
            self.before = (self._epoch - self._start).tolist()

    def batches_done(self) -> None:
        """The epoch's training batches are done."""
        self.training.append((np.array(now()) - self._epoch).tolist())

    def end_epoch(self) -> None:
        """The epoch's metrics are known."""
        self.elapsed.append((np.array(now()) - self._start).tolist())

    def figures(self) -> dict[str, Any]:
        """Return all times, JSON-ready."""
        return {"before": self.before, "training": self.training, "elapsed": self.elapsed}


class Clock(Callback):
    """Takes the times of a Lightning fit."""

    def __init__(self, times: Times) -> None:
        self.times = times

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the epoch."""
        self.times.begin_epoch()

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        """The epoch's batches are done."""
        if trainer.state.fn == "fit":
            self.times.batches_done()

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        """The epoch's metrics are known."""
        if trainer.state.fn == "fit":
            self.times.end_epoch()


def train_ours(traces: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train by `fit`; return times and metrics."""
    times = Times()
    with tempfile.TemporaryDirectory() as run:
        config = FitConfig(
            traces,
            Path(run) / "run",
            **SPLIT,
            components=options.components,
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
        result = fit(config, [Clock(times)])
        # What an engine would load: the folded network of full width.
        path = Path(run) / "scorer.safetensors"
        export(result.run, path, force=True)
        scorer, _ = load_scorer(path)
    data = read_training_data(traces, max_traces_per_class=None, **SPLIT)
    return times.figures() | {
        "val_auroc": [row["val_within_question"] for row in result.history],
        "test_auroc": question_aurocs(scorer, data, data.splits["test"]),
    }


def question_aurocs(scorer: StepScorer, data: TrainingData, table: TraceTable) -> list[float]:
    """Return the AUROC within each question of some traces' steps."""
    with torch.inference_mode():
        batches = EvaluationBatches(data.rows, table)
        score_S = torch.cat([scorer(hidden) for hidden, _ in batches]).double().numpy()
    return within_question_aurocs(table.label_S, score_S, table.question_S).tolist()


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

    def validation_auroc() -> float:
        with torch.inference_mode():
            score_S = scorer(states["val"]).numpy()
        table = data.splits["val"]
        return float(within_question_aurocs(table.label_S, score_S, table.question_S).mean())

    aurocs: list[float] = []
    times = Times()
    for _ in range(options.epochs):
        times.begin_epoch()
        for hidden_BH, label_B in loader:
            optimizer.zero_grad()
            loss_of(scorer(hidden_BH), label_B).backward()
            optimizer.step()
        times.batches_done()
        aurocs.append(validation_auroc())
        times.end_epoch()
        if aurocs[-1] == max(aurocs):
            best = copy.deepcopy(scorer.state_dict())
    scorer.load_state_dict(best)
    return times.figures() | {
        "val_auroc": aurocs,
        "test_auroc": question_aurocs(scorer, data, data.splits["test"]),
    }


SIDES = {"plain": train_plain, "ours": train_ours}


def one_side(side: str, traces: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train one side in this process."""
    torch.set_num_threads(options.threads)
    outcome = SIDES[side](traces, options)
    table = read_training_data(traces, max_traces_per_class=None, **SPLIT).splits["train"]
    # What ours does before the first epoch counts as training; on the clock, and of the processor.
    spent = np.sum([outcome["before"], *outcome["training"]], axis=0)
    seconds = {
        "rows_per_s": table.num_steps * options.epochs / spent[0],
        "rows_per_cpu_s": table.num_steps * options.epochs / spent[1],
        "whole_s": outcome["elapsed"][-1][0],
        "whole_cpu_s": outcome["elapsed"][-1][1],
    }
    return outcome | seconds | {"train_rows": table.num_steps}


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
    times = zip(outcome["elapsed"], outcome["val_auroc"], strict=True)
    return next((seconds for (seconds, _), value in times if value >= goal), None)


def difference_interval(ours: list[float], plain: list[float]) -> tuple[float, ...]:
    """Return the mean difference of questions' AUROCs with its 95 % interval over questions."""
    return dataclasses.astuple(question_mean(np.array(ours) - np.array(plain)))


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

    def ratio(name: str, inverse: bool = False) -> tuple[float, float, float]:
        ratios = [seen["ours"][name] / seen["plain"][name] for seen in rounds]
        return ratio_interval([1 / one if inverse else one for one in ratios])

    return {
        "options": vars(options),
        "torch": torch.__version__,
        "ratios": {
            "rows a second": ratio("rows_per_s"),
            "rows a processor second": ratio("rows_per_cpu_s"),
            "time of everything, inverse": ratio("whole_s", inverse=True),
            "processor time of everything, inverse": ratio("whole_cpu_s", inverse=True),
        },
        # Seeds are the same in every round.
        "difference": difference_interval(
            rounds[0]["ours"]["test_auroc"], rounds[0]["plain"]["test_auroc"]
        ),
        "rounds": rounds,
    }


def main() -> None:
    """Compare, and print the outcome."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side (3)")
    parser.add_argument("--world", choices=("linear", "interaction"), default="linear")
    parser.add_argument("--questions", type=int, default=400, help="questions (400)")
    parser.add_argument("--traces", type=int, default=10, help="traces of a question (10)")
    parser.add_argument("--hidden-size", type=int, default=2560, help="width H (2560)")
    parser.add_argument("--auroc", type=float, default=0.8, help="within question, best case (0.8)")
    parser.add_argument("--correlation", type=float, default=0.8, help="of interaction (0.8)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of both (20)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both (2)")
    parser.add_argument("--components", type=int, default=64, help="of ours; 0: full width (64)")
    parser.add_argument("--batch-size", type=int, default=2048, help="of ours (2048)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of ours (1e-3)")
    parser.add_argument("--precision", default="float32", help="of ours (float32)")
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
    for name, (middle, low, high) in outcome["ratios"].items():
        print(f"{name}, ours / plain: {middle:.1f} [{low:.1f}, {high:.1f}] (95 %)")
    for side in SIDES:
        seen = [one[side] for one in outcome["rounds"]]
        names = ("rows_per_s", "rows_per_cpu_s", "whole_s")
        values = {name: np.mean([one[name] for one in seen]) for name in names}
        aurocs = ", ".join(f"{np.mean(one['test_auroc']):.4f}" for one in seen)
        times = [one["seconds_to_goal"][side] for one in outcome["rounds"]]
        print(
            f"{side}: {values['rows_per_s']:,.0f} rows/s, {values['rows_per_cpu_s']:,.0f} rows/"
            f"processor second, {values['whole_s']:.1f} s in all, "
            f"{np.mean([one['before'][0] for one in seen]):.1f} s of them before the first epoch, "
            f"to plain's best validation AUROC "
            f"{', '.join('never' if one is None else f'{one:.1f} s' for one in times)}, "
            f"test AUROC within question {aurocs}"
        )
    middle, low, high = outcome["difference"]
    print(f"test AUROC within question, ours - plain: {middle:+.4f} [{low:+.4f}, {high:+.4f}]")
    bound = np.mean([one["products_per_s"] for one in outcome["rounds"]])
    print(f"bound by the first layer's products in {options.precision}: {bound:,.0f} rows/s")


if __name__ == "__main__":
    main()
