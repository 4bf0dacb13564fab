"""Step boundaries."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryOptions, BoundaryRule

VOCABULARY = ["a", "\n", "\n\n", ".\n\n", "</think>", "done.", "b", "<unk>"]
THINK_END_ID = 4


class WordTokenizer:
    """A vocabulary of whole words."""

    unk_token_id = 7

    def __init__(self, vocabulary: list[str] = VOCABULARY) -> None:
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.vocabulary)

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return "".join(self.vocabulary[i] for i in token_ids)

    def convert_tokens_to_ids(self, token: str) -> int:
        return self.vocabulary.index(token) if token in self.vocabulary else self.unk_token_id


RULE = BoundaryRule.for_tokenizer(WordTokenizer())


def test_blank_lines_are_found_inside_tokens() -> None:
    assert RULE.token_ids == {2, 3}
    assert RULE.think_end_id == THINK_END_ID


@pytest.mark.parametrize(
    ("kind", "options", "ids"),
    [
        ("newline", {}, {1, 2, 3}),
        ("sentence", {}, {3, 5}),
        ("regex", {"pattern": "^[ab]$"}, {0, 6}),
    ],
)
def test_other_rules_find_their_tokens(kind: str, options: dict[str, Any], ids: set[int]) -> None:
    assert BoundaryRule.for_tokenizer(WordTokenizer(), kind, **options).token_ids == ids


@pytest.mark.parametrize(
    ("token_ids", "positions"),
    [
        ([0, 2, 0, 3, 0], [1, 3]),
        ([2, 2, 0], [0, 1]),
        ([0, 2], []),  # no token follows: its state is never computed
        ([0, 2, 4, 2, 0], [1]),  # after the end of thinking nothing counts
        ([4, 2, 0], []),
        ([2, 4], [0]),
        ([], []),
        ([2], []),
    ],
)
def test_positions(token_ids: list[int], positions: list[int]) -> None:
    assert RULE.positions(token_ids) == positions


@pytest.mark.parametrize("rule", [RULE, BoundaryRule("stride", frozenset(), THINK_END_ID, None, 3)])
@given(token_ids=st.lists(st.integers(0, 7), max_size=40))
def test_token_by_token_and_all_at_once_agree(rule: BoundaryRule, token_ids: list[int]) -> None:
    found = []
    for position, token_id in enumerate(token_ids[:-1]):
        if token_id == THINK_END_ID:
            break
        if rule.is_boundary(token_id, position):
            found.append(position)
    assert rule.positions(token_ids) == found


def test_stride_counts_generated_tokens() -> None:
    rule = BoundaryRule.for_tokenizer(WordTokenizer(), "stride", stride=2)
    assert rule.positions([0] * 7) == [1, 3, 5]
    assert rule.positions([0] * 6) == [1, 3]


def test_a_model_without_thinking_marks_is_scored_to_its_end() -> None:
    rule = BoundaryRule.for_tokenizer(WordTokenizer(["a", "\n\n"]), think_end=None)
    assert rule.think_end_id is None
    assert rule.positions([0, 1, 1, 0]) == [1, 2]


def test_a_mark_that_is_unknown_to_the_tokenizer_is_none() -> None:
    assert BoundaryRule.for_tokenizer(WordTokenizer(), think_end="</thought>").think_end_id is None


@pytest.mark.parametrize("rule", [RULE, BoundaryRule("stride", frozenset(), None, None, 5)])
def test_round_trip_through_json_data(rule: BoundaryRule) -> None:
    assert BoundaryRule.from_dict(rule.to_dict()) == rule


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("paragraph", {}, "Expected a boundary rule out of blank_line"),
        ("stride", {}, "Expected a stride of at least 1 token, found 0"),
        ("regex", {}, "Expected a pattern"),
        ("regex", {"pattern": "("}, "Expected a regular expression"),
        ("regex", {"pattern": "zzz"}, "found none in the vocabulary"),
    ],
)
def test_bad_rules_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BoundaryRule.for_tokenizer(WordTokenizer(), kind, **options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "blank_line"}, "'token_ids'"),
        (RULE.to_dict() | {"stride": "x"}, "stride 'x', which is no int"),
        (RULE.to_dict() | {"stride": True}, "stride True, which is no int"),
        (RULE.to_dict() | {"think_end_id": "x"}, "think_end_id 'x', which is no int or null"),
        (RULE.to_dict() | {"kind": None}, "kind None, which is no str"),
        (RULE.to_dict() | {"token_ids": ["x"]}, "invalid literal"),
    ],
)
def test_damaged_data_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"Expected a boundary rule, found .*{message}"):
        BoundaryRule.from_dict(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "word"}, "--boundary.kind out of blank_line, newline, .*, found 'word'"),
        ({"kind": "regex", "pattern": "("}, "a regular expression as --boundary.pattern, .*Hint"),
        ({"kind": "regex", "pattern": "a{99999999999}"}, "a regular expression .*too large"),
        ({"kind": "regex"}, "--boundary.pattern with --boundary.kind regex"),
        ({"stride": 5}, "--boundary.stride with --boundary.kind stride"),
        ({"kind": "stride", "stride": -5}, "--boundary.stride of at least 1, found -5"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"Expected {message}"):
        BoundaryOptions(**options)
