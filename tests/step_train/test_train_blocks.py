"""Reading features for training: every step once, with its own number, within the memory bound."""

import threading

import numpy as np
import pytest
import torch
from synthetic_traces import write_traces

from step_infer.errors import InputError
from step_train.data.feature_blocks import EvaluationBatches, FeatureRows, TrainingBatches
from step_train.data.trace_table import balance, read_traces, split_questions

HIDDEN = 8
ROW_BYTES = 2 * HIDDEN


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The first two components of a state say which step of the directory it is."""
    return write_traces(
        tmp_path_factory.mktemp("blocks") / "traces", "noise", questions=20, hidden_size=HIDDEN
    )


@pytest.fixture(scope="module")
def data(directory):
    table, _ = read_traces(directory)
    return FeatureRows(directory.shards()), table


def batches(data, memory_rows, *, seed=0, epoch=0, batch_size=32, rank=0, world_size=1):
    rows, table = data
    return TrainingBatches(
        rows,
        table,
        batch_size,
        memory_rows * ROW_BYTES,
        seed,
        lambda: epoch,
        rank,
        world_size,
    )


def as_set(hidden, step):
    return sorted(zip(map(tuple, hidden.float().tolist()), step.tolist(), strict=True))


def everything(data):
    rows, table = data
    hidden = torch.cat([batch for batch, _ in EvaluationBatches(rows, table)])
    return as_set(hidden, torch.arange(table.num_steps))


def test_one_thread_reads_all_epochs(data):
    """Where each epoch ended a thread of its own, an interrupt could be lost in doing so."""
    before, found = set(threading.enumerate()), set()
    loader = batches(data, 100)
    for _ in range(3):
        epoch = iter(loader)
        next(epoch)
        found |= set(threading.enumerate()) - before
        del epoch
        found |= set(threading.enumerate()) - before
    (reader,) = found
    assert reader.is_alive()
    del loader
    reader.join(120)
    assert not reader.is_alive()


@pytest.mark.parametrize("memory_rows", [100, 300, 10**6], ids=["tiny", "small", "whole"])
def test_an_epoch_has_every_step_once_with_its_number(data, memory_rows):
    loader = batches(data, memory_rows)
    for _ in range(2):
        found = list(loader)
        assert len(found) == len(loader)
        hidden, step = (torch.cat(part) for part in list(zip(*found, strict=True))[:2])
        assert as_set(hidden, step) == everything(data)
    assert all(len(step) == rows == 32 for _, step, rows in found[:-1])


def test_blocks_stay_within_the_memory_bound(data):
    loader = batches(data, 300)
    list(loader)
    assert sum(block.nbytes for block in loader._buffers) <= 300 * ROW_BYTES
    assert loader.block_rows == 128


def test_the_order_depends_on_seed_and_epoch_alone(data):
    for memory in (300, 10**6):
        first, *others = (
            torch.cat([hidden for hidden, _, _ in batches(data, memory, seed=seed, epoch=epoch)])
            for seed, epoch in ((0, 0), (0, 0), (1, 0), (0, 1))
        )
        assert torch.equal(first, others[0])
        assert not torch.equal(first, others[1])
        assert not torch.equal(first, others[2])


def test_steps_of_a_batch_come_from_many_traces(data):
    _, table = data
    owner = {}
    rows = FeatureRows(data[0]._shards)
    for hidden, step in EvaluationBatches(rows, table):
        traces = table.trace_S[step.numpy()].tolist()
        owner |= dict(zip(map(tuple, hidden.float().tolist()), traces, strict=True))
    for hidden, _, _ in list(batches(data, 1000))[:-1]:
        assert len({owner[tuple(state)] for state in hidden.float().tolist()}) > 10


def test_processes_share_the_batches_that_one_process_would_have(data):
    whole = list(batches(data, 300))
    shares = [list(batches(data, 300, rank=rank, world_size=2)) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(whole)
    for (hidden, step, rows), *parts in zip(whole, *shares, strict=True):
        joined = [torch.cat([part[i] for part in parts]) for i in range(2)]
        assert as_set(*joined) == as_set(hidden, step)
        assert [part[2] for part in parts] == [rows, rows] == [len(step)] * 2
        assert len(parts[0][1]) - len(parts[1][1]) in (0, 1)


def test_evaluation_is_in_order_and_shared_by_processes(data):
    rows, table = data
    shares = [EvaluationBatches(rows, table, rank, 2) for rank in range(2)]
    for loader in shares:
        loader._chunk = 50
    steps = [step for loader in shares for _, step in loader]
    assert sum(len(loader) for loader in shares) == len(steps)
    assert torch.equal(torch.cat(steps).sort().values, torch.arange(table.num_steps))
    hidden, step = next(iter(shares[1]))
    assert step.tolist() == list(range(50, 100))
    trace = table.trace_S[50]
    shard = rows._shards[table.shard_N[trace]]
    row = table.row_start_N[trace] + table.step_S[50]
    assert torch.equal(hidden[0], shard.hidden(row, row + 1)[0])


def test_a_batch_that_does_not_fit_or_cannot_be_shared_is_refused(data):
    with pytest.raises(InputError, match="memory for two batches"):
        batches(data, 60)
    with pytest.raises(InputError, match="3 devices can share"):
        batches(data, 300, world_size=3)


def test_mixed_hidden_sizes_are_refused(directory, tmp_path):
    other = write_traces(tmp_path / "other", "noise", questions=3, hidden_size=4)
    with pytest.raises(InputError, match="Expected hidden size 8 .* found 4"):
        FeatureRows([*directory.shards(), *other.shards()])


def test_traces_that_cannot_be_used_are_skipped_and_counted(tmp_path):
    changes = {
        0: {"is_correct": None, "extracted_answer": None},
        3: {"is_correct": None},
        4: {"boundary_positions": []},
        9: {"finish_reason": "pruned", "is_correct": None, "extracted_answer": None},
    }
    directory = write_traces(tmp_path / "t", "noise", questions=5, traces=4, changes=changes)
    table, skipped = read_traces(directory)
    assert skipped == {"no boundary": 1, "pruned": 1, "no answer": 1, "no label": 1}
    assert len(table) == 16
    assert table.num_steps == directory.num_steps - sum(
        row["num_steps"] for i, row in enumerate(directory.part(0).to_pylist()) if i in changes
    )


def test_no_usable_trace_is_an_error_that_says_why(tmp_path):
    changes = {i: {"is_correct": None} for i in range(12)}
    directory = write_traces(tmp_path / "t", "noise", questions=3, traces=4, changes=changes)
    with pytest.raises(InputError, match="found none \\(12 no label\\)"):
        read_traces(directory)


def test_no_question_is_in_two_splits(data):
    _, table = data
    splits = split_questions(table, 0.2, 0.3, seed=5)
    questions = {name: set(split.question_N.tolist()) for name, split in splits.items()}
    assert {name: len(found) for name, found in questions.items()} == {
        "train": 10,
        "val": 4,
        "test": 6,
    }
    assert len(set.union(*questions.values())) == 20
    assert sum(len(split) for split in splits.values()) == len(table)
    again = split_questions(table, 0.2, 0.3, seed=5)
    other = split_questions(table, 0.2, 0.3, seed=6)
    assert set(again["test"].question_N) == questions["test"] != set(other["test"].question_N)


def test_too_few_questions_or_one_class_are_refused(tmp_path, data):
    two = write_traces(tmp_path / "two", "noise", questions=2)
    with pytest.raises(InputError, match="at least 3 questions, one a split, found 2"):
        split_questions(read_traces(two)[0], 0.2, 0.2, 0)
    _, table = data
    with pytest.raises(InputError, match=r"right and wrong traces in .*found \d+ right .*--system"):
        split_questions(table.select(table.correct_N), 0.2, 0.2, 0)
    changes = {number: {"is_correct": number < 16} for number in range(32)}
    four = write_traces(tmp_path / "four", "noise", questions=4, changes=changes)
    with pytest.raises(InputError, match=r"in the (train|val) split, found .* --test-fraction"):
        split_questions(read_traces(four)[0], 0.25, 0.25, 0)
    with pytest.raises(InputError, match="--val-fraction and --test-fraction"):
        split_questions(table, 0.6, 0.4, 0)


def test_balancing_takes_so_many_traces_of_each_class_at_random(data):
    _, table = data
    some = balance(table, 20, seed=1)
    assert (int(some.correct_N.sum()), len(some)) == (20, 40)
    assert (np.diff(some.shard_N * 10**6 + some.row_start_N) > 0).all()
    other = balance(table, 20, seed=2)
    assert not np.array_equal(some.row_start_N, other.row_start_N)
    assert len(balance(table, 10**6, seed=1)) == len(table)
    assert balance(table, None, seed=1) is table
