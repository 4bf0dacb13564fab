"""Collecting on two replicas: what dies costs no trace, doubles none and changes none.

The moments of the deaths are random, by a seed that is printed.
"""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from collect_engine import CollectEngine, assert_whole
from command_harness import run_command
from engine_precision import ANY_BATCH
from fake_engine import made_up_model
from held_process import held_at
from mortal_engines import DEADLY, ENDLESS, MortalReplica, StillbornReplica
from places import CHECKPOINT, ROOT
from ray.cluster_utils import Cluster
from ray_cluster import add_node, two_nodes
from rich.console import Console

from data_gen.collect import collect
from data_gen.config import CollectConfig
from data_gen.ledger.__main__ import LedgerConfig, write_questions
from data_gen.traces.directory import TraceDirectory
from step_infer.cli.command import run
from step_infer.client.trace import Sampling, Trace
from step_infer.errors import InputError
from step_infer.replicas.actors import MOST_LOSSES
from step_infer.replicas.pool import ReplicaPool
from step_infer.replicas.replica import Replica

pytestmark = pytest.mark.engine

QUESTIONS = 4
N = 8
QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with two_nodes() as found:
        yield found


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CollectConfig:
    """The settings of one engine, whose traces are there."""
    folder = tmp_path_factory.mktemp("one")
    questions = folder / "questions.jsonl"
    write_questions(LedgerConfig(questions, "test", QUESTIONS, seed=5))
    found = CollectConfig(
        str(CHECKPOINT),
        str(questions),
        str(folder / "traces"),
        num_traces=N,
        system="",
        sampling=Sampling(temperature=1, top_p=1, top_k=0),
        part_traces=4,
        max_in_flight=4,
        engine={"kv_cache_memory_bytes": 2**27, **ANY_BATCH},
    )
    collect(found, console=QUIET)
    return found


@pytest.fixture
def chance() -> random.Random:
    """What says when something dies; pytest shows the seed of a test that fails."""
    seed = random.randrange(2**32)
    print("seed", seed)
    return random.Random(seed)


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


class Pool(ReplicaPool):
    """Calls something once, when so many traces have finished."""

    def __init__(self, *arguments: Any, after: int, then: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.after, self.then = after, then

    def stream(self, *arguments: Any, **options: Any) -> Iterator[Trace]:
        for count, trace in enumerate(super().stream(*arguments, **options), start=1):
            if count == self.after:
                self.then(self)
            yield trace


def parts(out: str) -> int:
    """Return how many parts a traces directory lists."""
    with suppress(InputError):
        return TraceDirectory(out).num_parts
    return 0


def test_a_driver_and_then_a_replica_are_killed(
    config: CollectConfig,
    cluster: Cluster,
    tmp_path: Path,
    chance: random.Random,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two = replace(config, out=str(tmp_path / "two"), replicas=2, ray_address=cluster.address)
    options: dict[str, Any] = {
        "--model": two.model,
        "--questions": two.questions,
        "--out": two.out,
        "--num-traces": N,
        "--system": "",
        "--sampling.temperature": 1,
        "--sampling.top_p": 1,
        "--sampling.top_k": 0,
        "--part-traces": two.part_traces,
        "--max-in-flight": two.max_in_flight,
        "--engine.kv_cache_memory_bytes": 2**27,
        "--engine.dtype": ANY_BATCH["dtype"],
        "--replicas": 2,
        "--ray-address": cluster.address,
    }
    after = chance.randint(1, 5)
    log = tmp_path / "log"
    with log.open("w") as file:
        driver = subprocess.Popen(
            [
                *(sys.executable, "-m", "data_gen.commands"),
                *(str(part) for pair in options.items() for part in pair),
            ],
            cwd=ROOT,
            env=held_at("part-*.parquet", after + 2),  # it must not come to its end
            stdout=file,
            stderr=file,
        )
    while parts(two.out) < after and driver.poll() is None:
        time.sleep(0.005)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL, log.read_text()
    before = TraceDirectory(two.out)
    assert after * two.part_traces <= before.num_traces < QUESTIONS * N

    left = QUESTIONS * N - before.num_traces
    pool = partial(
        Pool,
        replicas=2,
        address=cluster.address,
        log_dir=Path(two.out) / "logs",
        after=chance.randint(1, max(1, left // 2)),
        then=lambda pool: os.kill(chance.choice(pool.pids()), signal.SIGKILL),
    )
    with pytest.warns(UserWarning, match=r"Replica [01] is started again"):
        collect(two, pool, QUIET)
    told = capsys.readouterr().err  # no terminal
    assert re.search(r"traces 32/32 .* replicas \d+\.\d\d \+ \d+\.\d\d traces/s", told)
    assert_whole(two, QUESTIONS)
    assert table(two) == table(config)
    logs = Path(two.out) / "logs"
    assert sorted(path.name for path in logs.iterdir()) == ["replica-0.log", "replica-1.log"]


def asking(names: list[str], folder: Path, cluster: Cluster) -> CollectConfig:
    """Return settings for questions of these names, which a pretended engine answers."""
    questions = folder / "questions.jsonl"
    questions.write_text(
        "".join(json.dumps({"id": n, "question": "1-1", "answer": "0"}) + "\n" for n in names)
    )
    return CollectConfig(
        made_up_model(folder, hidden_size=CollectEngine.H),
        str(questions),
        str(folder / "out"),
        num_traces=2,
        ray_address=cluster.address,
    )


def refused(config: CollectConfig, pool: Any) -> str:
    """Run a collection as the command does, and return the one line of its refusal."""
    found = run_command(lambda: run(lambda: collect(config, pool, QUIET)))
    assert found.returncode == 2
    lines = [line for line in found.stderr.splitlines() if not line.startswith("traces ")]
    assert len(lines) == 1
    return lines[0]


def test_a_question_that_kills_each_replica_is_named_and_what_was_collected_is_kept(
    cluster: Cluster, tmp_path: Path
) -> None:
    config = asking(["first", "second", DEADLY, "last"], tmp_path, cluster)
    pool = partial(ReplicaPool, replicas=1, address=cluster.address, actor=MortalReplica)
    with pytest.warns(UserWarning, match="is started again") as warned:
        told = refused(config, pool)
    assert len([w for w in warned if "is started again" in str(w.message)]) == MOST_LOSSES
    assert re.fullmatch(
        rf"error: Expected replicas that live through question {DEADLY}, found that 4 died with "
        r"it, the last of: .*\. Hint: see the logs of the replicas, or leave that question out\.",
        told,
    )
    left = TraceDirectory(config.out)
    left.verify()
    assert set(left.keys()) == {(name, i) for name in ("first", "second") for i in range(2)}
    assert not left.complete


def test_a_replica_that_dies_at_each_start_ends_the_run(cluster: Cluster, tmp_path: Path) -> None:
    config = asking(["first"], tmp_path, cluster)
    pool = partial(ReplicaPool, replicas=1, address=cluster.address, actor=StillbornReplica)
    with pytest.warns(UserWarning, match="Replica 0 is started again"):
        told = refused(config, pool)
    assert re.fullmatch(
        r"error: Expected that replica 0 starts, found that it died 4 times without an order, the "
        r"last of: .*\. Hint: see the logs of the replicas\.",
        told,
    )


def has_ended(pid: int) -> bool:
    """Return whether a process is gone, or only waits for its parent to see that."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def lose_a_node(
    config: CollectConfig, cluster: Cluster, chance: random.Random, actor: type[Replica]
) -> None:
    """Collect on two nodes, of which one goes, to the traces that one engine gave."""
    two = replace(config, out=f"{config.out}-two", replicas=2, ray_address=cluster.address)
    node = chance.choice(cluster.list_all_nodes()[1:])

    def remove_node(pool: ReplicaPool) -> None:
        """Ray's workers outlive their node by a moment, in which they could finish."""
        pids = pool.pids()
        cluster.remove_node(node, allow_graceful=False)
        until = time.monotonic() + 120
        while not any(map(has_ended, pids)):
            assert time.monotonic() < until, f"no process of {pids} ended with its node"
            time.sleep(0.05)

    pool = partial(
        Pool,
        replicas=2,
        address=cluster.address,
        actor=actor,
        after=chance.randint(1, QUESTIONS * N // 2),
        then=remove_node,
    )
    # Ray may know of the replica's end before that of its node: then another start is tried.
    told = r"Replica [01] is (gone with its node; 1 go on|started again)"
    try:
        with pytest.warns(UserWarning, match=told):
            collect(two, pool, QUIET)
    finally:
        add_node(cluster)
    assert_whole(two, QUESTIONS)
    assert table(two) == table(config)


def test_a_node_is_gone_with_its_replica_and_the_other_one_goes_on(
    cluster: Cluster, tmp_path: Path, chance: random.Random
) -> None:
    config = replace(
        asking([f"q{i}" for i in range(QUESTIONS)], tmp_path, cluster),
        num_traces=N,
        max_in_flight=4,
        part_traces=4,
    )
    one = partial(ReplicaPool, replicas=1, address=cluster.address, actor=MortalReplica)
    collect(config, one, QUIET)
    lose_a_node(config, cluster, chance, MortalReplica)


@pytest.mark.nightly
def test_a_node_is_gone_with_its_real_engine(
    config: CollectConfig, cluster: Cluster, chance: random.Random
) -> None:
    lose_a_node(config, cluster, chance, Replica)


def test_the_last_node_is_gone_and_what_was_collected_is_kept(
    cluster: Cluster, tmp_path: Path
) -> None:
    config = asking(["first", ENDLESS], tmp_path, cluster)

    def remove_nodes(_: ReplicaPool) -> None:
        for node in cluster.list_all_nodes()[1:]:
            cluster.remove_node(node, allow_graceful=False)

    pool = partial(
        Pool,
        replicas=1,
        address=cluster.address,
        actor=MortalReplica,
        after=2,
        then=remove_nodes,
    )
    told = refused(config, pool)
    assert re.fullmatch(
        r"error: Expected a node for a replica, found none left in the Ray cluster: .*\. Hint: "
        r"give the same command again when there is one; it goes on where it stopped\.",
        told,
    )
    assert set(TraceDirectory(config.out).keys()) == {("first", 0), ("first", 1)}
