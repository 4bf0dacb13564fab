"""What the worker does around a step: which steps it scores, and what carries the scores.

The platform's own worker is replaced by a model of one line; steps and outputs are vLLM's own. With
a model runner of vLLM's the worker is tested in test_adapter_engine.py.
"""

import numpy as np
import pytest
import torch
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, AsyncModelRunnerOutput, ModelRunnerOutput

from step_infer import worker
from step_infer.row_scorer import RowScorer
from step_infer.scorer.network import StepScorer
from step_infer.wire import ROWS_ATTRIBUTE, UNSCORED_ATTRIBUTE

pytestmark = pytest.mark.oldest

ROWS_BH = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class Later(AsyncModelRunnerOutput):
    """An output that is there when it is asked for, as under async scheduling."""

    def __init__(self, output):
        self.output = output

    def get_output(self):
        return self.output

    def get_kv_connector_output(self):
        return "of a connector"


def output_of(count):
    names = [f"r{number}" for number in range(count)]
    return ModelRunnerOutput(names, {name: row for row, name in enumerate(names)}, [[1]] * count)


def step_of(tokens, marked=False, drafts=None):
    step = SchedulerOutput.make_empty()
    step.total_num_scheduled_tokens = tokens
    step.scheduled_spec_decode_tokens = drafts or {}
    if marked:
        setattr(step, UNSCORED_ATTRIBUTE, True)
    return step


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    return StepScorer(8)


@pytest.fixture
def run(monkeypatch, scorer):
    """Return what runs one step and returns the output that reaches the scheduler."""

    def execute_model(self, step):
        self.row_scorer(ROWS_BH)

    monkeypatch.setattr(worker.PlatformWorker, "execute_model", execute_model)
    monkeypatch.setattr(worker.PlatformWorker, "sample_tokens", lambda self, output: output)
    one = worker.StepWorker.__new__(worker.StepWorker)
    one.row_scorer = RowScorer(lambda rows: rows * 2, scorer, capture=False)

    def run(step, output):
        one.execute_model(step)
        found = one.sample_tokens(output)
        return found.get_output() if isinstance(found, AsyncModelRunnerOutput) else found

    run.hook = one.row_scorer
    return run


def rows_of(output):
    return getattr(output, ROWS_ATTRIBUTE, None)


@pytest.mark.parametrize("wrap", [lambda output: output, Later], ids=["sync", "async"])
def test_a_steps_output_carries_the_scores_of_its_rows(run, scorer, wrap):
    found = rows_of(run(step_of(3), wrap(output_of(3))))
    expected = torch.sigmoid(scorer(ROWS_BH)).detach().numpy()
    np.testing.assert_allclose(found.scores_B, expected, rtol=1e-6)


@pytest.mark.parametrize("wrap", [lambda output: output, Later], ids=["sync", "async"])
def test_neither_a_marked_step_nor_one_without_tokens_is_scored(run, wrap):
    for step in (step_of(3, marked=True), step_of(0)):
        assert rows_of(run(step, wrap(output_of(3)))) is None
    assert rows_of(run(step_of(3), wrap(output_of(3)))).count == 3


@pytest.mark.parametrize("wrap", [lambda output: output, Later], ids=["sync", "async"])
def test_a_steps_output_says_where_the_rows_of_each_request_begin(run, wrap):
    found = rows_of(run(step_of(3, drafts={"r1": [7]}), wrap(output_of(2))))
    assert found.count == 3
    assert found.first_rows.tolist() == [0, 1, 3]
    assert [found.first_row(request) for request in (0, 1)] == [0, 1]
    without = rows_of(run(step_of(3), wrap(output_of(3))))
    assert without.first_rows is None
    assert without.first_row(2) == 2


@pytest.mark.parametrize("wrap", [lambda output: output, Later], ids=["sync", "async"])
def test_rows_that_are_not_one_more_than_drafts_are_attached_to_none(run, wrap):
    for drafts in ({"r1": [7, 7]}, {"r1": [7], "r0": [7]}):
        assert rows_of(run(step_of(3, drafts=drafts), wrap(output_of(2)))) is None


@pytest.mark.parametrize("wrap", [lambda output: output, Later], ids=["sync", "async"])
def test_rows_that_are_not_one_a_request_are_attached_to_none(run, wrap, caplog):
    for count in (2, 4):
        assert rows_of(run(step_of(3), wrap(output_of(count)))) is None
    assert caplog.text.count("Rows and requests of a step differ in number") == 1


def test_the_empty_output_that_steps_share_is_left_as_it_is(run):
    run.hook.failed = True
    assert rows_of(run(step_of(3), EMPTY_MODEL_RUNNER_OUTPUT)).failed
    assert rows_of(EMPTY_MODEL_RUNNER_OUTPUT) is None


@pytest.mark.parametrize("wrap", [lambda output: output, Later], ids=["sync", "async"])
def test_word_of_a_failure_comes_with_every_step_from_then_on(run, wrap):
    def fail(rows):
        raise RuntimeError("broken")

    run.hook._scorer = fail
    for step in (step_of(3), step_of(3), step_of(3, marked=True)):
        assert rows_of(run(step, wrap(output_of(3)))).failed


def test_a_later_output_still_says_what_a_connector_did_if_its_tokens_cannot_be_had():
    """From 0.33 on vLLM asks for that, and makes no object without it."""
    later = worker.ScoredOutput(Later(None), None, {})
    assert later.get_kv_connector_output() == "of a connector"


@pytest.mark.parametrize("output", [None, object()])
def test_what_is_no_output_passes_through(run, output):
    assert run(step_of(3), output) is output
