"""Rows of a step with drafts: each token's own state is found once, whatever is accepted."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from step_infer.draft_rows import first_rows, sampling_row, state_row


def test_each_request_has_a_row_more_than_drafts():
    np.testing.assert_array_equal(first_rows([3, 0, 2]), [0, 4, 5, 8])
    np.testing.assert_array_equal(first_rows([]), [0])


def test_only_the_last_token_of_a_step_waits_for_its_state():
    assert [state_row(4, index, 3) for index in range(3)] == [5, 6, None]
    assert state_row(4, 0, 1) is None
    assert [sampling_row(4, index) for index in range(3)] == [4, 5, 6]


class Request:
    """A request as the runner sees it: tokens by number, of which the last is the next input."""

    def __init__(self, prompt):
        self.prompt = prompt
        self.length = prompt  # tokens known
        self.computed = 0
        self.pending = False  # the newest generated token has no state yet
        self.states = {}  # token number -> the row's input that gave its state
        self.sampled_by = {}  # token number -> the row's input whose logits gave it


@settings(max_examples=150)
@given(data=st.data())
def test_every_token_but_a_requests_last_finds_its_own_state_once(data):
    running = [Request(data.draw(st.integers(1, 9))) for _ in range(data.draw(st.integers(1, 5)))]
    ended = []
    for _ in range(data.draw(st.integers(1, 25))):
        batch = [request for request in running if data.draw(st.booleans())]
        chunks, drafted = [], []
        for request in batch:
            if data.draw(st.integers(0, 7)) == 0:
                request.computed = 0  # preempted: all its tokens are computed again
            left = request.length - request.computed
            chunks.append(data.draw(st.integers(1, left)))
            drafted.append(data.draw(st.integers(0, 4)) if chunks[-1] == left else 0)
        # The step: rows hold the number of their input token; drafts follow the last known one.
        rows = []
        for number, (request, chunk, drafts) in enumerate(zip(batch, chunks, drafted, strict=True)):
            last = request.computed + chunk - 1
            rows += [(number, last + place) for place in range(1 + drafts)]
        first = first_rows(drafted)
        assert first[-1] == len(rows)
        for number, (request, chunk, drafts) in enumerate(zip(batch, chunks, drafted, strict=True)):
            request.computed += chunk
            if request.computed < request.length:
                continue  # a part of a prefill
            count = 1 + data.draw(st.integers(0, drafts))
            ends = data.draw(st.integers(0, 9)) == 0
            if ends:  # a stop token among the accepted ones: the tokens after it are cut off
                count = data.draw(st.integers(1, count))
            begin = int(first[number])
            if request.pending:
                owner, token = rows[begin]
                assert owner == number
                assert request.length - 1 not in request.states, "a state was found twice"
                request.states[request.length - 1] = token
                request.pending = False
            for index in range(count):
                token = request.length + index
                owner, request.sampled_by[token] = rows[sampling_row(begin, index)]
                assert owner == number
                row = state_row(begin, index, count)
                request.pending = row is None
                if row is not None:
                    owner, request.states[token] = rows[row]
                    assert owner == number
            request.length += count
            request.computed += count - 1
            if ends:
                running.remove(request)
                ended.append(request)
    for request in running + ended:
        generated = range(request.prompt, request.length)
        assert request.states == {token: token for token in generated[:-1]}
        assert request.sampled_by == {token: token - 1 for token in generated}
