"""Collecting on a real engine: killed half way, gone on with, and compared with extraction."""

import contextlib
import dataclasses
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from collect_engine import assert_whole
from command_harness import run_command
from held_process import held_at
from places import CHECKPOINT

from data_gen.commands import main
from data_gen.config import CollectConfig
from data_gen.ledger.__main__ import LedgerConfig, write_questions
from data_gen.traces.directory import TraceDirectory
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryRule
from step_train.extract.config import ExtractConfig
from step_train.extract.run import extract

pytestmark = pytest.mark.engine

ENGINE_N = 8
ENGINE_QUESTIONS = 4


@dataclasses.dataclass
class Collected:
    """A run that was killed, and the same run gone on with."""

    config: CollectConfig
    before: list[tuple[str, int]]
    """The traces that the killed run left."""
    engines: list[int]
    """Its child processes."""


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Collected:
    """Collect, kill after the second or third part, go on.

    The killed engine had a process of its own, as engines of several ranks and on CUDA have.
    """
    folder = tmp_path_factory.mktemp("collect")
    questions = folder / "questions.jsonl"
    write_questions(LedgerConfig(questions, "test", ENGINE_QUESTIONS, seed=5))
    config = CollectConfig(
        str(CHECKPOINT), str(questions), str(folder / "out"), num_traces=ENGINE_N
    )
    options = ["--model", config.model, "--questions", config.questions, "--out", config.out]
    options += ["--num-traces", str(ENGINE_N), "--system", "", "--part-traces", "4"]
    options += ["--sampling.temperature", "1", "--sampling.top-p", "1", "--sampling.top-k", "0"]
    options += ["--max-in-flight", "8"]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "data_gen.commands", *options],
            env={**held_at("part-*.parquet", 4), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            while len(listed_parts(config)) < 2:
                log.seek(0)
                assert process.poll() is None, log.read()
                time.sleep(0.02)
            engines = children(process.pid)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    before = list(TraceDirectory(config.out).keys())
    assert 0 < len(before) < ENGINE_N * ENGINE_QUESTIONS
    result = run_command(main, *options)
    assert f"{len(before)} of them done" in result.stdout
    return Collected(config, before, engines)


def children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            _, state_and_parent = path.read_text().rsplit(")", 1)
            if int(state_and_parent.split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def wait_for_the_end_of(pids: list[int]) -> None:
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def listed_parts(config: CollectConfig) -> list[Any]:
    with contextlib.suppress(InputError):
        return list(TraceDirectory(config.out).manifest["parts"])
    return []


def test_a_killed_run_loses_and_repeats_nothing(collected: Collected) -> None:
    config, before = collected.config, collected.before
    assert_whole(config, ENGINE_QUESTIONS)
    assert list(TraceDirectory(config.out).keys())[: len(before)] == before


@pytest.mark.parametrize("processes", ["0", "1"], ids=["engine inside", "engine of its own"])
def test_a_terminated_run_keeps_all_traces_that_were_finished(
    tmp_path: Path, processes: str
) -> None:
    questions = tmp_path / "questions.jsonl"
    write_questions(LedgerConfig(questions, "test", 4, seed=5))
    out = tmp_path / "out"
    options = ["--model", CHECKPOINT, "--questions", questions, "--out", out]
    options += ["--num-traces", "500", "--part-traces", "2000"]
    options += ["--sampling.max-tokens", "200"]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "data_gen.commands", *map(str, options)],
            env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": processes},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        shown = None
        while shown is None:
            assert process.poll() is None, (tmp_path / "log").read_text()
            shown = re.search(r"^traces ([1-9]\d*)/2000", (tmp_path / "log").read_text(), re.M)
            time.sleep(0.05)
        engines = children(process.pid)
        # To all of them, as `timeout` and batch systems do.
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(240) == 128 + signal.SIGTERM
    # What vLLM's own processes say before that is theirs.
    assert (tmp_path / "log").read_text().splitlines()[-1] == "terminated"
    found = TraceDirectory(out)
    found.verify()
    assert int(shown[1]) <= found.num_traces < 2000
    wait_for_the_end_of(engines)


def test_the_engines_traces_hold_together(collected: Collected, tmp_path: Path) -> None:
    config = collected.config
    found = TraceDirectory(config.out)
    rule = BoundaryRule.from_dict(found.manifest["boundary"])
    rows = found.dataset(cache_dir=tmp_path)
    assert len(rows) == ENGINE_N * ENGINE_QUESTIONS
    for row in rows:
        assert row["boundary_positions"] == rule.positions(row["token_ids"])
        assert row["finish_reason"] in ("stop", "length")
        assert (row["is_correct"] is None) == (row["extracted_answer"] is None)
        assert len(row["step_confidences"]) == len(row["boundary_positions"])
        # Not surer than certain, nor less sure than of tokens that are all alike.
        means = [*row["step_confidences"], row["mean_token_confidence"]]
        assert all(math.log(20) <= mean < 100 for mean in means)
    assert len({row["seed"] for row in rows}) == len(rows)
    for shard in found.shards():
        hidden_SH = shard.hidden()
        assert hidden_SH.dtype == torch.bfloat16
        # Final-normed states differ from step to step and are of ordinary size.
        if shard.rows > 1:
            assert hidden_SH.float().std(dim=0).max() > 0
    assert found.manifest["summary"]["traces"] == len(rows)


def test_no_engine_outlives_a_killed_collector(collected: Collected) -> None:
    assert collected.engines
    wait_for_the_end_of(collected.engines)


def test_extraction_agrees_with_the_engines_own_capture(
    collected: Collected, tmp_path: Path
) -> None:
    captured_in = TraceDirectory(collected.config.out)
    computed_in = extract(
        ExtractConfig(
            collected.config.model,
            Path(collected.config.out),
            tmp_path / "extracted",
            progress=False,
            accelerator="cpu",
        )
    )
    cosine = torch.nn.CosineSimilarity(dim=1)
    for captured, computed in zip(captured_in.shards(), computed_in.shards(), strict=True):
        assert torch.equal(captured.position(), computed.position())
        assert torch.equal(captured.trace_index(), computed.trace_index())
        assert captured.dtype == computed.dtype == torch.bfloat16
        a_SH, b_SH = captured.hidden().float(), computed.hidden().float()
        # Both round to 8 bits in every layer, in their own order.
        noise = (a_SH - b_SH).norm(dim=1) / b_SH.norm(dim=1)
        assert float(noise.median()) < 0.01
        assert float(cosine(a_SH, b_SH).min()) > 0.999
