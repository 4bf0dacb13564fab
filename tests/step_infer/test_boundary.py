"""Step boundaries."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryOptions, BoundaryRule, BoundaryState
from step_infer.scorer.think_end import is_unfinished, think_start

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


def test_tokens_are_told_apart_by_their_newlines() -> None:
    assert RULE.line_ends == {"\n": {1}, "\n\n": {2}, "x\n\n": {3}}
    assert RULE.think_end_id == THINK_END_ID


@pytest.mark.parametrize(
    ("kind", "options", "ids"),
    [
        ("sentence", {}, {3, 5}),
        ("regex", {"pattern": "^[ab]$"}, {0, 6}),
        ("regex", {"pattern": "th|b"}, {6}),  # not the end of thinking
    ],
)
def test_other_rules_find_their_tokens(kind: str, options: dict[str, Any], ids: set[int]) -> None:
    assert BoundaryRule.for_tokenizer(WordTokenizer(), kind, **options).token_ids == ids


@pytest.mark.parametrize(
    ("token_ids", "positions"),
    [
        ([0, 2, 0, 3, 0], [1, 3]),
        ([0, 1, 1, 0], [2]),  # two tokens make one blank line
        ([2, 2, 1, 1, 0], [0]),  # more newlines make no second one
        ([0, 1, 2, 0], [2]),
        ([2, 3, 0], [0, 1]),  # a word stands between
        ([0, 1, 3, 0, 1, 0], [2]),
        ([1, 0, 1, 0], []),
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


@pytest.mark.parametrize(
    ("token_ids", "positions"),
    [
        ([0, 1, 0, 1, 0], [1, 3]),
        ([0, 1, 1, 0, 2, 0, 3, 0], [1, 4, 6]),  # a blank line ends one line, not two
        ([2, 1, 2, 0], [0]),
        ([0, 1, 4, 1, 0], [1]),
    ],
)
def test_newline_counts_a_run_of_newlines_once(token_ids: list[int], positions: list[int]) -> None:
    rule = BoundaryRule.for_tokenizer(WordTokenizer(), "newline")
    assert rule.positions(token_ids) == positions


@pytest.mark.parametrize("kind", ["blank_line", "newline"])
def test_blanks_between_newlines_do_not_part_them(kind: str) -> None:
    vocabulary = ["a", "\n", " ", "\t ", "\r\n", "\r\n\r\n", "\n a"]
    rule = BoundaryRule.for_tokenizer(WordTokenizer(vocabulary), kind, think_end=None)
    late = kind == "blank_line"
    for token_ids in ([0, 1, 2, 1, 0], [0, 1, 3, 1, 0], [0, 4, 2, 4, 0], [0, 4, 3, 6, 0]):
        assert rule.positions(token_ids) == [3 if late else 1], token_ids
    assert rule.positions([0, 5, 2, 1, 0]) == [1]
    assert rule.positions([0, 1, 0, 2, 1, 0]) == ([] if late else [1, 4])


@pytest.mark.parametrize("rule", [RULE, BoundaryRule("stride", frozenset(), THINK_END_ID, None, 3)])
@given(token_ids=st.lists(st.integers(0, 7), max_size=40))
def test_unmarked_tokens_can_be_left_out(rule: BoundaryRule, token_ids: list[int]) -> None:
    state = BoundaryState()
    found = [
        position
        for position, token_id in enumerate(token_ids)
        if rule.ends_step(state, token_id, position)
    ]
    assert rule.positions(token_ids) == [i for i in found if i < len(token_ids) - 1]


def test_a_vocabulary_without_newlines_is_refused_with_a_rule_that_fits() -> None:
    with pytest.raises(InputError, match="with a newline .*found none.*the rule sentence fits"):
        BoundaryRule.for_tokenizer(WordTokenizer(["a", "."]))
    with pytest.raises(
        InputError, match="with a newline .*found none.*Hint: the rule stride needs"
    ):
        BoundaryRule.for_tokenizer(WordTokenizer(["a", "b"]), "newline")


def test_options_beside_a_scorer_must_be_its_own() -> None:
    stride = BoundaryRule("stride", frozenset(), None, None, 64, think_end="[/THINK]")
    BoundaryOptions().check_scorer(stride)
    BoundaryOptions("stride", stride=64, think_end="[/THINK]").check_scorer(stride)
    for options, message in (
        (BoundaryOptions("stride", stride=32), "stride 64 beside a scorer .*found 32"),
        (BoundaryOptions("newline"), "kind 'stride' beside a scorer .*found 'newline'"),
        (BoundaryOptions(think_end=""), r"think-end '\[/THINK\]' beside a scorer .*found ''"),
    ):
        with pytest.raises(InputError, match=f"Expected --boundary.{message}"):
            options.check_scorer(stride)
    everywhere = BoundaryRule("stride", frozenset(), None, None, 64, think_end=None)
    BoundaryOptions(think_end="").check_scorer(everywhere)


def test_tokens_that_a_rule_does_not_name_do_nothing() -> None:
    data = {"kind": "blank_line", "pattern": None, "stride": 0}
    rule = BoundaryRule.from_dict(data | {"think_end_id": 4, "token_ids": [2, 3]})
    assert rule.positions([0, 2, 2, 1, 1, 4, 2, 0]) == [1, 2]


def test_stride_counts_generated_tokens() -> None:
    rule = BoundaryRule.for_tokenizer(WordTokenizer(), "stride", stride=2)
    assert rule.positions([0] * 7) == [1, 3, 5]
    assert rule.positions([0] * 6) == [1, 3]


def test_a_model_without_thinking_marks_is_scored_to_its_end() -> None:
    rule = BoundaryRule.for_tokenizer(WordTokenizer(["a", ".\n\n", "</think>"]), think_end=None)
    assert rule.think_end_id is None
    assert rule.positions([0, 1, 2, 1, 0]) == [1, 3]


def test_a_mark_that_is_unknown_to_the_tokenizer_is_none() -> None:
    assert BoundaryRule.for_tokenizer(WordTokenizer(), think_end="</thought>").think_end_id is None


@pytest.mark.parametrize(
    ("end", "token_ids", "positions"),
    [
        ("</think>", [0, 1, 2, 3, 5, 4, 0], [1]),  # "</" "think" ">\n\n"
        ("</think>", [0, 6, 3, 4, 5, 4, 0], [3, 4, 5]),  # "<a", then no more of it
        ("</think>", [0, 2, 0, 3, 5, 4, 0], [4, 5]),  # "</" "a" "think" ">\n\n"
        ("</think>", [7, 0, 4, 0], []),  # "x</think>\n\n"
        ("</think>", [8, 3, 5, 4, 0], [0]),  # "\n\n</" "think" ">\n\n"
        ("[/THINK]", [0, 4, 9, 10, 11, 4, 0], [1]),
        ("[/THINK]", [0, 4, 9, 0, 11, 4, 0], [1, 4, 5]),
    ],
)
def test_the_end_of_thinking_is_found_across_tokens(
    end: str, token_ids: list[int], positions: list[int]
) -> None:
    vocabulary = ["a", "b\n\n", "</", "think", "c\n\n", ">\n\n", "<a", "x</think>\n\n"]
    vocabulary += ["\n\n</", "[/", "THI", "NK]\n\n"]
    rule = BoundaryRule.for_tokenizer(WordTokenizer(vocabulary), think_end=end)
    assert rule.think_end_id is None
    assert rule.positions(token_ids) == positions


def test_an_end_that_begins_like_itself_is_found() -> None:
    vocabulary = ["a", "b", "ab", "aa", "b.\n\n", "<unk>"]
    tokenizer = WordTokenizer(vocabulary)
    tokenizer.unk_token_id = 5
    rule = BoundaryRule.for_tokenizer(tokenizer, think_end="aabaab")
    for token_ids in ([3, 1, 3, 1, 4, 0], [0, 0, 2, 0, 2, 4, 0], [3, 1, 3, 1, 3, 1, 4, 0]):
        assert rule.positions(token_ids) == []
    # "aab" "aaab": of the first part only "aa" may count again.
    assert rule.positions([3, 1, 3, 2, 4, 0]) == [4]
    assert rule.positions([3, 1, 3, 2, 2, 1, 0, 2, 4, 0]) == [8]


@pytest.mark.parametrize(
    ("end", "start"),
    [
        ("</think>", "<think>"),
        ("[/THINK]", "[THINK]"),
        ("<channel|>", "<|channel>"),
        ("<|end|>", None),
        ("done", None),
    ],
)
def test_what_opens_the_thinking_follows_from_what_ends_it(end: str, start: str | None) -> None:
    assert think_start(end) == start


@pytest.mark.parametrize(
    ("prompt", "text", "end", "unfinished"),
    [
        ("<user>2+2<think>\n", "so \\boxed{4}", "</think>", True),
        ("<user>2+2", "<think>so \\boxed{4}", "</think>", True),
        ("<user>2+2<think>\n", "so</think>\\boxed{4}", "</think>", False),
        ("<user>2+2<think>\n\n</think>\n", "so \\boxed{4}", "</think>", False),
        ("<user>what is <think>?", "\\boxed{4} so", "</think>", False),
        ("[INST]2+2", "[THINK]\\boxed{4}", "[/THINK]", True),
        ("2+2<|channel>", "\\boxed{4}", "<channel|>", True),
        ("2+2", "\\boxed{4}", "<|end of thought|>", True),  # nothing says how it was opened
    ],
)
def test_a_response_may_stop_inside_its_thinking(
    prompt: str, text: str, end: str, unfinished: bool
) -> None:
    assert is_unfinished(prompt, text, end) is unfinished


@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        BoundaryRule("stride", frozenset(), None, None, 5),
        BoundaryRule.for_tokenizer(WordTokenizer(), "sentence", think_end=None),
    ],
)
def test_round_trip_through_json_data(rule: BoundaryRule) -> None:
    assert BoundaryRule.from_dict(rule.to_dict()) == rule


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("paragraph", {}, "Expected a boundary rule out of blank_line"),
        ("stride", {}, "Expected a stride of at least 1 token, found 0"),
        ("regex", {}, "Expected a pattern"),
        ("regex", {"pattern": "("}, "Expected a regular expression"),
        ("regex", {"pattern": "zzz"}, "found none in the vocabulary.* the rule sentence fits"),
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
        (RULE.to_dict() | {"line_ends": {"x\n": ["y"]}}, "invalid literal"),
        (RULE.to_dict() | {"line_ends": [1]}, "no attribute 'items'"),
        (RULE.to_dict() | {"kind": "regex"}, "line_ends with the kind regex"),
        (RULE.to_dict() | {"think_end": None}, "tokens that end thinking, and no think_end"),
        (RULE.to_dict() | {"think_steps": [[0, 9, [4]]]}, "from 0 to 9 of 8 characters"),
        (RULE.to_dict() | {"think_steps": [[0, 8]]}, "not enough values"),
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
