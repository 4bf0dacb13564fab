"""Boundaries in real vocabularies, one token at a time, all at once, and in the text as a whole.

The first is what the scheduler does, the second what training does.
"""

import functools
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CHECKPOINT
from vocabularies import MERGED, VOCABULARIES, vocabulary

from step_infer.errors import InputError
from step_infer.live_traces import LiveTraces
from step_infer.scorer.boundary import BoundaryOptions, BoundaryRule
from step_infer.scorer.card import read_card
from step_infer.settings import RequestOptions, StepSettings
from step_infer.wire import StepRows

RULES = {
    "blank_line": BoundaryOptions(),
    "newline": BoundaryOptions("newline"),
    "sentence": BoundaryOptions("sentence"),
    "regex": BoundaryOptions("regex", pattern=r"^Wait$|\)"),
    "stride": BoundaryOptions("stride", stride=7),
}


TOKENIZER = vocabulary("byte_level")
THINK_END_ID = TOKENIZER.convert_tokens_to_ids("</think>")
BUILT = {name: options.rule(TOKENIZER) for name, options in RULES.items()}


def live_positions(rule: BoundaryRule, token_ids: list[int]) -> list[int]:
    """Return the boundaries of a trace that the scheduler follows token by token."""
    live = LiveTraces(rule, "mean", StepSettings(scorer="x"))
    live.add("a", RequestOptions("g"))
    trace = live.traces["a"]
    for token_id in token_ids:
        live.take_scores(StepRows(np.array([0.5], np.float32)), {"a": 0}, [[token_id]])
        if live.may_end(token_id, trace.num_tokens + 1):
            live.take_tokens(trace, [token_id])
        else:  # what the scheduler does with all other tokens
            trace.num_tokens += 1
    return trace.positions


def texts(rule: BoundaryRule) -> set[str]:
    return {TOKENIZER.decode([token_id]) for token_id in rule.token_ids}


def test_merged_tokens_are_single_tokens_with_their_text() -> None:
    for text in MERGED:
        assert len(TOKENIZER.encode(text)) == 1, text
    assert [TOKENIZER.decode([i]) for i in TOKENIZER.encode("€")] == ["\ufffd"] * 3


def test_blank_lines_are_found_in_merged_tokens() -> None:
    token_ids = TOKENIZER.encode("So x = 2.\n\nThen (a)\n\nb\n\n\nWait\n\nc.\nd€\n\n</think>\n\nx")
    found = BUILT["blank_line"].positions(token_ids)
    assert [TOKENIZER.decode([token_ids[i]]) for i in found] == [
        ".\n\n",
        ")\n\n",
        "\n\n\n",
        "\n\n",
        "\n\n",
    ]


def test_newlines_and_sentence_ends_are_found_in_merged_tokens() -> None:
    shapes = BUILT["newline"].line_ends
    assert {TOKENIZER.decode([i]) for shape in shapes if shape for i in shapes[shape]} == {
        *(t for t in MERGED if "\n" in t),
        "\n",
    }
    assert texts(BUILT["sentence"]) == {".", "!", "?", ".\n", ".\n\n", "?\n\n"}


def test_parts_of_a_character_are_no_text() -> None:
    # Every single byte above 127 decodes to U+FFFD, which is outside ASCII, but no character.
    wide = r"[^\x00-\x7f]"
    assert texts(BoundaryOptions("regex", pattern=f"{wide}|Wait").rule(TOKENIZER)) == {"Wait"}
    with pytest.raises(InputError, match="found none in the vocabulary"):
        BoundaryOptions("regex", pattern=wide).rule(TOKENIZER)


@pytest.mark.parametrize("name", RULES)
@given(
    pieces=st.lists(
        st.one_of(st.sampled_from([*MERGED, "\n", " ", "€", "</think>", "a)", "b. "]), st.text()),
        max_size=30,
    )
)
def test_token_by_token_and_all_at_once_agree_on_text(name: str, pieces: list[str]) -> None:
    token_ids = TOKENIZER.encode("".join(pieces), add_special_tokens=False)
    assert live_positions(BUILT[name], token_ids) == BUILT[name].positions(token_ids)


@pytest.mark.parametrize("name", RULES)
@given(token_ids=st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60))
def test_token_by_token_and_all_at_once_agree_on_any_tokens(
    name: str, token_ids: list[int]
) -> None:
    # Sampled tokens need not be those that the tokenizer makes of their text.
    assert live_positions(BUILT[name], token_ids) == BUILT[name].positions(token_ids)


ENDS = {"blank_line": r"\n[ \t\r]*\n[ \t\r\n]*", "newline": r"\n[ \t\r\n]*"}
"""Each match is one end of a step, in the text."""


def positions_in_text(tokenizer: Any, kind: str, end: str, token_ids: list[int]) -> list[int]:
    """Return the tokens with which the text so far has one more end of a step."""
    positions, before = [], 0
    for position in range(len(token_ids) - 1):
        text = tokenizer.decode(token_ids[: position + 1])
        if end in text:
            break
        now = len(re.findall(ENDS[kind], text))
        if now > before:
            positions.append(position)
        before = now
    return positions


def rule_of(name: str, kind: str, end: str) -> BoundaryRule:
    """Return a rule as the engine reads it from a card."""
    rule = BoundaryRule.for_tokenizer(vocabulary(name), kind, think_end=end)
    return BoundaryRule.from_dict(json.loads(json.dumps(rule.to_dict())))


cached_rule = functools.cache(rule_of)

WORDS = ["a", ".", " b", "x = 2.", ")", "{", "€", "7", "\t", " ", "  ", "think", "in", ">", "<"]
LINES = ["\n", "\n\n", "\n \n", "\r\n", "\r\n\r\n", ".\n\n", "\n\n\n", "\n  ", " \n"]
THINK_ENDS = ["</think>", "[/THINK]", "<channel|>"]
PARTS = ["</", "think>", "</ think>", "[/", "THINK", "]\n\n", "<channel", "|>", *THINK_ENDS]


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("kind", ENDS)
@settings(max_examples=30)
@given(
    end=st.sampled_from(THINK_ENDS),
    pieces=st.lists(st.sampled_from([*WORDS, *LINES, *LINES, *PARTS]), max_size=25),
)
def test_boundaries_are_those_of_the_text_in_every_vocabulary(
    name: str, kind: str, end: str, pieces: list[str]
) -> None:
    tokenizer, rule = vocabulary(name), cached_rule(name, kind, end)
    token_ids = tokenizer.encode("".join(pieces), add_special_tokens=False)
    expected = positions_in_text(tokenizer, kind, end, token_ids)
    assert rule.positions(token_ids) == expected
    assert live_positions(rule, token_ids) == expected


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("kind", ENDS)
@settings(max_examples=30)
@given(data=st.data())
def test_tokens_in_any_order_have_the_boundaries_of_their_text(
    name: str, kind: str, data: Any
) -> None:
    tokenizer, rule = vocabulary(name), cached_rule(name, kind, "</think>")
    token = st.one_of(st.sampled_from(sorted(rule.marks)), st.integers(0, len(tokenizer) - 1))
    token_ids = data.draw(st.lists(token, max_size=25))
    expected = positions_in_text(tokenizer, kind, "</think>", token_ids)
    assert rule.positions(token_ids) == expected
    assert live_positions(rule, token_ids) == expected


def test_a_text_with_82_blank_lines_has_82_boundaries_in_every_vocabulary() -> None:
    text = "".join(f"S{i} = {i}.\n\n" for i in range(82)) + "</think>\n\nSo \\boxed{82}\n\nDone"
    for name in VOCABULARIES:
        token_ids = vocabulary(name).encode(text, add_special_tokens=False)
        assert len(cached_rule(name, "blank_line", "</think>").positions(token_ids)) == 82, name


def test_the_shipped_scorer_has_the_rule_of_its_models_vocabulary() -> None:
    rule = read_card(CHECKPOINT / "scorer" / "scorer.safetensors").boundary_rule
    assert rule == BoundaryRule.for_tokenizer(vocabulary("demo"))


def test_most_tokens_of_a_text_are_only_counted() -> None:
    text = (
        "First I look at the case n = 4, which I think is the easiest one. There x > 2, so in the "
        "next line 2x + 1 = 7 holds.\n\nThen the sum of all terms is \\frac{n(n+1)}{2} < 12.\n"
    )
    for name in ("qwen2", "qwen3.6", "deepseek", "tekken", "mistral_sp1"):
        token_ids = vocabulary(name).encode(text, add_special_tokens=False)
        marks = cached_rule(name, "blank_line", "</think>").marks
        marked = sum(token_id in marks for token_id in token_ids)
        assert marked <= 0.2 * len(token_ids), (name, marked, len(token_ids))
