"""Collecting on two replicas, one of which is killed: the traces of one engine, each once."""

import io
import os
import random
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from collect_engine import assert_whole
from places import CHECKPOINT
from rich.console import Console

from data_gen.collect import collect
from data_gen.config import CollectConfig
from data_gen.ledger.__main__ import LedgerConfig, write_questions
from data_gen.traces.directory import TraceDirectory
from step_infer.client.trace import Sampling
from step_infer.replicas.pool import ReplicaPool

pytestmark = pytest.mark.engine

QUESTIONS = 4
N = 8


@pytest.fixture
def config(tmp_path: Path) -> CollectConfig:
    questions = tmp_path / "questions.jsonl"
    write_questions(LedgerConfig(questions, "test", QUESTIONS, seed=5))
    return CollectConfig(
        str(CHECKPOINT),
        str(questions),
        str(tmp_path / "one"),
        num_traces=N,
        system="",
        sampling=Sampling(temperature=1, top_p=1, top_k=0),
        part_traces=4,
        max_in_flight=4,
        engine={"kv_cache_memory_bytes": 2**26},
    )


def table(config: CollectConfig) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the rows by question and number, but for where they stand, with their states."""
    found = TraceDirectory(config.out)
    rows = {}
    first: dict[tuple[str, int], int] = {}
    for index, shard in enumerate(found.shards()):
        for row in found.part(index).to_pylist():
            start, steps = row.pop("row_start"), row["num_steps"]
            del row["shard"]
            row["states"] = shard.hidden(start, start + steps).tolist()
            rows[row["question_id"], row["trace_id"]] = row
    # Groups are numbered as their first answers come in: name each by its least trace instead.
    for (question, _), row in sorted(rows.items()):
        if row["answer_group"] is not None:
            name = question, row.pop("answer_group")
            row["group"] = first.setdefault(name, row["trace_id"])
    return rows


def test_a_killed_replica_costs_no_trace_and_changes_none(
    config: CollectConfig, tmp_path: Path
) -> None:
    """The moment of the kill is random: after the first to the eighth finished trace."""
    quiet = Console(file=io.StringIO())
    two = replace(config, out=str(tmp_path / "two"), replicas=2)
    after = random.randint(1, 8)
    killed = []

    class Pool(ReplicaPool):
        def _taken(self, member: Any, item: Any) -> Any:
            trace = super()._taken(member, item)
            if not killed and sum(m.finished for m in self._members) >= after:
                killed.append(member.started.pid)
                os.kill(killed[0], signal.SIGKILL)
            return trace

    logs = Path(two.out) / "logs"
    pool = partial(Pool, replicas=2, log_dir=logs)
    with pytest.warns(UserWarning, match=r"Replica [01] is started again"):
        collect(two, pool, quiet)
    assert killed, after
    assert_whole(two, QUESTIONS)
    assert sorted(path.name for path in logs.iterdir()) == ["replica-0.log", "replica-1.log"]
    collect(config, console=quiet)
    assert table(two) == table(config)
