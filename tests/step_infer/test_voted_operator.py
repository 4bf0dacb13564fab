"""A voted model whose operator has calibrated the scorer and brings an answer kind of their own."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import pytest
from patience import wait_until
from places import ROOT, SCORER
from server_harness import Server, serve

from step_infer.scorer.network import load_scorer, save_scorer

openai = pytest.importorskip("openai")
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.engine

QUESTION = "618+487+934 mod 1000 = ?"
NAME = "demo-voted"
TRACES = 8
OWN = """
class Parity:
    def extract(self, text):
        digits = [sign for sign in text if sign.isdigit()]
        return digits[-1] if digits else None

    def equal(self, first, second):
        return int(first) % 2 == int(second) % 2
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("operator")
    (folder / "operators_answers.py").write_text(OWN)
    network, card = load_scorer(SCORER)
    deciding = {"score": {"threshold": 0.6}}
    own = folder / "scorer.safetensors"
    save_scorer(own, network, dataclasses.replace(card, deciding=deciding))
    flags = ["--scorer", str(own), "--voted-model-name", NAME, "--voted-traces", str(TRACES)]
    flags += ["--voted-answers", "operators_answers.Parity"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
        with serve(folder, 500, *flags) as running:
            yield running


def chat(server: Server, **step: Any) -> Any:
    return server.client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": QUESTION}],
        temperature=1.0,
        max_tokens=900,
        seed=0,
        extra_body={"step": step},
    )


def test_likely_ends_a_vote_with_the_threshold_of_the_scorer_card(server):
    before = server.step_metrics()["step_decided_total"]
    step = chat(server, stop_rule="likely", answers="math").step
    assert (step["ended"], step["why"]) == ("decided", "likely")
    decided = step["traces"]["decided"]
    assert decided >= 1
    assert step["traces"]["finished"] >= 4, "likely waits for four votes"
    events = server.settled_events()
    assert [event["reason"] for event in events if event["event"] == "abort"] == [
        "decided"
    ] * decided
    server.completion(None, max_tokens=2)  # counts travel with the steps
    assert wait_until(lambda: server.step_metrics()["step_decided_total"] == before + decided)


def test_likely_is_refused_for_a_vote_without_a_threshold(server):
    words = "threshold for the stop rule likely with the vote uniform in the scorer card"
    with pytest.raises(openai.BadRequestError, match=words):
        chat(server, stop_rule="likely", vote="uniform")


def test_calls_that_name_no_answer_kind_have_the_operators_own(server):
    step = chat(server, stop_rule="never").step
    assert (step["kind"], step["chosen_by"], step["uncompared"]) == ("own", "vote", 0)
    assert len(step["answers"]) <= 2, "odd or even"
    assert step["answer"] in set("0123456789")
    other = chat(server, stop_rule="never", answers="math").step
    assert other["kind"] == "math"
    assert int(other["answer"]) % 2 in (0, 1)


def test_a_process_that_is_killed_costs_no_later_call_its_answer(server):
    def workers() -> list[psutil.Process]:
        children = psutil.Process(server.process.pid).children(recursive=True)
        return [child for child in children if "function_worker" in " ".join(child.cmdline())]

    killed = workers()
    assert killed
    for process in killed:
        process.kill()  # the server sees it with the next call
    for _ in range(2):
        step = chat(server).step
        assert (step["kind"], step["chosen_by"]) == ("own", "vote")
        assert len(step["answers"]) <= 2
    assert not {process.pid for process in killed} & {process.pid for process in workers()}
    assert len(workers()) <= 2


@pytest.mark.parametrize("asked", ["operators_answers.Parity", "own"])
def test_a_client_cannot_name_the_operators_code(server, asked):
    with pytest.raises(openai.BadRequestError, match="Expected an answer kind out of math"):
        chat(server, answers=asked)
