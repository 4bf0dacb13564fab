"""A question watched on the demo model: what is seen on a terminal, and in a file."""

import contextlib
import io
import re
from collections.abc import Iterator

import pytest
from places import CHECKPOINT, SCORER
from rich.console import Console

from data_gen.ledger.questions import iter_questions
from step_eval.watch import WatchConfig, watch
from step_infer.client.llm import StepLLM
from step_infer.client.trace import Sampling

pytestmark = pytest.mark.engine
TRACES = 10


@pytest.fixture(scope="module")
def engine() -> Iterator[StepLLM]:
    # Ten traces of some 900 tokens need twice as much.
    with StepLLM(str(CHECKPOINT), SCORER, kv_budget_tokens=4000, max_model_len=2400) as llm:
        yield llm


def watched(engine: StepLLM, console: Console) -> str | None:
    """Watch the first test question, and return its answer."""
    question = next(iter_questions("test", 0))
    config = WatchConfig(
        model=str(CHECKPOINT),
        scorer=str(SCORER),
        question=question.text,
        num_traces=TRACES,
        sampling=Sampling(temperature=1, top_p=1, top_k=0),
        system="",
    )
    outcome = watch(config, console, lambda *_, **__: contextlib.nullcontext(engine))
    return outcome.answer


def test_in_a_file_there_is_a_line_for_each_end_and_the_answer(engine: StepLLM) -> None:
    console = Console(file=io.StringIO(), width=200)
    answer = watched(engine, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[1] == f"{TRACES} traces begin."
    pruned = [
        line for line in lines if re.fullmatch(r"trace +\d+ pruned: \d+ tokens, score 0.*", line)
    ]
    finished = [line for line in lines if re.match(r"trace +\d+ answers \d+: \d+ tokens", line)]
    assert len(pruned) >= 1
    assert len(finished) >= 1
    assert len(pruned) + len(finished) <= TRACES
    assert lines[-1].startswith(f"Answer: {answer}, with ")


def test_a_terminal_is_redrawn_with_every_trace(engine: StepLLM) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, height=40, color_system=None)
    answer = watched(engine, console)
    frames = re.split(r"\x1b\[2K|\x1b\[1A", file.getvalue())
    text = file.getvalue()
    assert len(frames) > 3 * TRACES
    last = text[text.rindex("mod 1000") :]
    rows = re.findall(r"^ *(\d+) \S ━+ *\d+ +0\.\d\d (.*?)\s*$", last, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(TRACES))
    assert "pruned" in [word for _, word in rows]
    assert re.search(rf"vote so far  {answer}: \d+%", last)
    assert f"Answer: {answer}, with " in last
