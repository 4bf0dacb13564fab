"""An evaluation on two replicas: the records of one engine, whoever dies."""

import dataclasses
import random
import re
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_harness import run_command
from engine_precision import ANY_BATCH
from fake_engine import FakeEngine, made_up_model, made_up_scorer, write_questions
from mortal_engines import MortalEngine
from places import CHECKPOINT
from prepared_process import start
from ray.cluster_utils import Cluster
from ray_cluster import add_node, two_nodes
from rich.console import Console

from data_gen.ledger.__main__ import LedgerConfig
from data_gen.ledger.__main__ import write_questions as write_ledger_questions
from step_eval.command import main
from step_eval.config import EvalConfig
from step_eval.records import QuestionRecord, RecordStore
from step_eval.replicas import lock_files
from step_eval.run import evaluate
from step_infer.storage.files import read_json
from step_infer.storage.run_directory import read_manifest

pytestmark = pytest.mark.engine

QUESTIONS = 6
BY_THE_CLOCK = ("seconds", "running_trace_s", "waiting_trace_s", "peak_kv_use", "series")
NO_TIMES = {"submitted_s": 0.0, "finished_s": 0.0}


def quiet() -> Console:
    return Console(file=open("/dev/null", "w"))  # noqa: SIM115


def content(out: str | Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    """Return each record, of which there must be one, without what a clock decides."""
    found: dict[tuple[str, int, str], dict[str, Any]] = {}
    for method, group in RecordStore(out).read().items():
        for record in group:
            key = (method, *record.key)
            assert key not in found, "asked twice"
            found[key] = timeless(record)
    return found


def timeless(record: QuestionRecord) -> dict[str, Any]:
    values = dataclasses.asdict(record)
    for name in BY_THE_CLOCK:
        del values[name]
    values["traces"] = [trace | NO_TIMES for trace in values["traces"]]
    return values


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with two_nodes() as found:
        yield found


@pytest.fixture(scope="module")
def address(cluster: Cluster) -> str:
    return cluster.address


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EvalConfig:
    """Settings of one pretended engine, whose records are there."""
    folder = tmp_path_factory.mktemp("one")
    model = made_up_model(folder)
    found = EvalConfig(
        model=model,
        scorer=made_up_scorer(folder / "scorer" / "scorer.safetensors", model),
        questions=write_questions(folder / "questions.jsonl", QUESTIONS),
        out=str(folder / "out"),
        methods="sc,step,oracle",
        num_traces=12,
        kv_budget_tokens=3000,
        system="",
    )
    evaluate(found, FakeEngine, quiet())
    return found


def test_a_replica_is_killed_and_the_records_are_those_of_one_engine(
    config: EvalConfig, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    after = random.randint(1, 12 * QUESTIONS // 2)
    print("dies after", after)
    two = dataclasses.replace(config, out=str(tmp_path / "two"), replicas=2, ray_address=address)
    mortal = partial(MortalEngine, dead=tmp_path / "dead", after=after)
    with pytest.warns(UserWarning, match=r"Replica [01] is started again"):
        results = evaluate(two, mortal, quiet())
    assert content(two.out) == content(config.out)
    told = capsys.readouterr().err
    total = 3 * 12 * QUESTIONS
    assert re.search(rf"traces {total}/{total} .*replicas \d+\.\d\d \+ \d+\.\d\d traces/s", told)
    logs = Path(two.out) / "logs"
    assert sorted(path.name for path in logs.iterdir()) == ["replica-0.log", "replica-1.log"]
    # The figures that no clock decides, with their intervals.
    one = read_json(Path(config.out) / "results.json")
    for name, found in results["methods"].items():
        for metric in ("accuracy", "tokens", "pruned"):
            assert found["metrics"][metric] == one["methods"][name]["metrics"][metric]
    assert read_manifest(two.out)["replicas"] == {
        "count": 2,
        "share_devices": False,
        "take_turns": False,
    }
    assert "2 at most, each on devices of its own" in (Path(two.out) / "report.html").read_text()
    assert one["replicas"] is None


def test_a_node_is_gone_and_the_other_one_asks_its_questions(
    config: EvalConfig, cluster: Cluster, tmp_path: Path
) -> None:
    after = random.randint(1, 12 * QUESTIONS // 2)
    print("dies after", after)
    two = dataclasses.replace(
        config, out=str(tmp_path / "two"), replicas=2, ray_address=cluster.address
    )
    mortal = partial(MortalEngine, dead=tmp_path / "dead", after=after, with_node=True)
    told = r"Replica [01] is gone with its node; 1 go on\. [A-Z]"
    try:
        with pytest.warns(UserWarning, match=told):
            evaluate(two, mortal, quiet())
    finally:
        add_node(cluster)
    assert content(two.out) == content(config.out)


DRIVER = """
import sys
import time
from fake_engine import FakeEngine
from held_process import stand_still_at
from step_eval.command import run_command
from step_eval.config import EvalConfig
from step_eval.run import evaluate

class Slow(FakeEngine):
    def stream(self, *arguments, **options):
        time.sleep(0.2)
        yield from super().stream(*arguments, **options)

stand_still_at("records/*.jsonl", int(sys.argv[2]))  # it must not come to its end
evaluate(EvalConfig(**eval(sys.argv[1])), Slow)
"""


def test_a_driver_is_killed_and_the_same_command_goes_on(
    config: EvalConfig, address: str, tmp_path: Path
) -> None:
    two = dataclasses.replace(config, out=str(tmp_path / "two"), replicas=2, ray_address=address)
    names = ("model", "scorer", "questions", "out", "methods", "num_traces", "kv_budget_tokens")
    values = {name: getattr(two, name) for name in (*names, "system", "replicas", "ray_address")}
    after = random.randint(1, 2 * QUESTIONS)
    print("dies after", after)
    process = start(DRIVER, values, after + 2, log=tmp_path / "log")
    store = RecordStore(two.out)
    while process.is_alive() and sum(map(len, store.read().values())) < after:
        process.join(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert after <= sum(map(len, store.read().values())) < 3 * QUESTIONS
    evaluate(two, FakeEngine, quiet())
    assert content(two.out) == content(config.out)


def test_each_gpu_has_a_lock_file_of_its_own_and_a_machine_without_any_the_one() -> None:
    assert lock_files("lock", []) == ["lock"]
    assert lock_files("lock", ["1", "0"]) == ["lock.gpu0", "lock.gpu1"]
    assert lock_files(None, ["0"]) == []


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_two_real_engines_give_the_records_of_one(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)  # what auto goes by
    questions = tmp_path / "questions.jsonl"
    write_ledger_questions(LedgerConfig(questions, "test", 3, seed=5))
    options = {
        "--model": CHECKPOINT,
        "--scorer": made_up_scorer(tmp_path / "scorer.safetensors", str(CHECKPOINT)),
        "--questions": questions,
        "--num-traces": 6,
        "--methods": "sc,step",
        "--kv-budget-tokens": 2100,
        "--engine.max_model_len": 2048,
        "--engine.dtype": ANY_BATCH["dtype"],
        "--sampling.temperature": 1,
        "--sampling.top_p": 1,
        "--sampling.top_k": 0,
        "--system": "",
    }
    arguments = [part for pair in options.items() for part in pair]
    lock = tmp_path / "lock"
    more = {"one": [], "two": ["--replicas", 2, "--ray-address", "auto", "--device-lock", lock]}
    for out, replicas in more.items():
        found = run_command(main, *arguments, "--out", tmp_path / out, *replicas)
        assert found.returncode == 0, found.stderr[-4000:]
    assert "Replicas: 2 at most, each on devices of its own." in found.stdout
    assert content(tmp_path / "two") == content(tmp_path / "one")
    reasons = {t["finish_reason"] for r in content(tmp_path / "two").values() for t in r["traces"]}
    assert "pruned" in reasons
    assert lock.exists()
