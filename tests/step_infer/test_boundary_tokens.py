"""Boundaries of a real byte-level tokenizer, one token at a time and all at once.

The first is what the scheduler does, the second what training does.
"""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from step_infer.errors import InputError
from step_infer.live_traces import LiveTraces
from step_infer.scorer.boundary import BoundaryOptions, BoundaryRule
from step_infer.settings import RequestOptions, StepSettings
from step_infer.wire import StepRows

PAIRS = (
    ("\n", "\n"),
    (".", "\n\n"),
    (")", "\n\n"),
    ("?", "\n\n"),
    ("\n\n", "\n\n"),
    ("\n\n", "\n"),
    (".", "\n"),
    ("W", "a"),
    ("Wa", "i"),
    ("Wai", "t"),
)
MERGED = [left + right for left, right in PAIRS if left + right not in ("Wa", "Wai")]
RULES = {
    "blank_line": BoundaryOptions(),
    "newline": BoundaryOptions("newline"),
    "sentence": BoundaryOptions("sentence"),
    "regex": BoundaryOptions("regex", pattern=r"^Wait$|\)"),
    "stride": BoundaryOptions("stride", stride=7),
}


def byte_level_tokenizer() -> Any:
    """A byte-level BPE, as models have it, with merges into tokens that hold a blank line."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    merges = []
    for pair in PAIRS:
        left, right = (byte_level.pre_tokenize_str(text)[0][0] for text in pair)
        vocabulary[left + right] = len(vocabulary)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("</think>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZER = byte_level_tokenizer()
THINK_END_ID = TOKENIZER.convert_tokens_to_ids("</think>")
BUILT = {name: options.rule(TOKENIZER) for name, options in RULES.items()}


def live_positions(rule: BoundaryRule, token_ids: list[int]) -> list[int]:
    """Return the boundaries of a trace that the scheduler follows token by token."""
    live = LiveTraces(rule, "mean", StepSettings(scorer="x"))
    live.add("a", RequestOptions("g"))
    trace = live.traces["a"]
    for token_id in token_ids:
        live.take_scores(StepRows(np.array([0.5], np.float32)), {"a": 0}, [[token_id]])
        if token_id in live.marks:
            live.see_tokens(trace, [token_id])
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
    assert texts(BUILT["blank_line"]) == {t for t in MERGED if "\n\n" in t}
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
    assert texts(BUILT["newline"]) == {t for t in MERGED if "\n" in t} | {"\n"}
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


@given(st.lists(st.sampled_from([*MERGED, "x", "€", " y"]), max_size=30))
def test_every_blank_line_within_a_token_is_a_boundary_and_nothing_else(pieces: list[str]) -> None:
    token_ids = TOKENIZER.encode("".join(pieces), add_special_tokens=False)
    expected = [
        index
        for index, token_id in enumerate(token_ids[:-1])
        if re.search("\n\n", TOKENIZER.decode([token_id]))
    ]
    assert BUILT["blank_line"].positions(token_ids) == expected
