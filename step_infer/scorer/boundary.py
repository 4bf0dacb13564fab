r"""Step boundaries: the one rule that training and the engine share.

A boundary is a generated token that ends a step of the reasoning (STEP, arXiv 2601.09093, section
3.1: a blank line). It lies before the end of thinking, and a further token follows it: only then
has the model read it and made the hidden state that the scorer sees.

Blank lines, line ends and the end of thinking are properties of the generated text: it does not
matter how a tokenizer cuts them into tokens. The rule says once for each token of the vocabulary
what its text does; then it reads a trace one token at a time and remembers a few small numbers.
"""

import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar

from step_infer.errors import InputError
from step_infer.scorer.line_ends import LINE_RULES, WORD_END, Moves, group_by_shape, shape_moves
from step_infer.scorer.think_end import THINK_END, Steps, end_steps
from step_infer.scorer.vocabulary import (
    TokenizerLike,
    compiled,
    matching_tokens,
    single_token_id,
    token_texts,
)
from step_infer.storage.files import check_types

SENTENCE_END = r"[.!?][\"')\]]*(\s|$)"
"""The rule "sentence": a token whose own text matches it ends a step."""

NO_BOUNDARY = (
    "no trace of the first part has a step boundary, so that none can be scored or learnt from. "
    "Hint: choose what ends a step with --boundary.kind, such as newline, sentence or stride; a "
    "scorer brings its own rule."
)
"""What the commands that find boundaries say of a first part without any."""

KINDS = (*LINE_RULES, "sentence", "regex", "stride")


@dataclass(frozen=True)
class BoundaryOptions:
    """What ends a step; the commands that need a rule share these options."""

    kind: str = "blank_line"
    """blank_line, newline, sentence, regex or stride."""
    pattern: str | None = None
    """For the kind regex: expression that a token's text is searched for."""
    stride: int = 0
    """For the kind stride: tokens in a step."""
    think_end: str = THINK_END
    """Text that ends the thinking, such as [/THINK]; no step ends after it. An empty text: steps
    end everywhere."""

    kinds: ClassVar[tuple[str, ...]] = KINDS

    def __post_init__(self) -> None:
        if self.kind not in self.kinds:
            raise InputError(
                f"Expected --boundary.kind out of {', '.join(self.kinds)}, found {self.kind!r}."
            )
        for option, kind in (("pattern", "regex"), ("stride", "stride")):
            if bool(getattr(self, option)) != (self.kind == kind):
                raise InputError(
                    f"Expected --boundary.{option} with --boundary.kind {kind} and only there, "
                    f"found {getattr(self, option)!r} with the kind {self.kind}."
                )
        if self.pattern:
            compiled(self.pattern)
        if self.stride < 0:
            raise InputError(f"Expected --boundary.stride of at least 1, found {self.stride}.")

    def rule(self, tokenizer: TokenizerLike) -> "BoundaryRule":
        """Return the rule for a tokenizer; see `BoundaryRule.for_tokenizer`."""
        return BoundaryRule.for_tokenizer(
            tokenizer,
            self.kind,
            pattern=self.pattern,
            stride=self.stride,
            think_end=self.think_end or None,
        )

    def check_scorer(self, rule: "BoundaryRule") -> None:
        """Refuse options that a scorer's own rule contradicts; one that was not given agrees.

        Raises:
            InputError: an option is not what the scorer was trained with.
        """
        for option in fields(self):
            given, own = getattr(self, option.name), getattr(rule, option.name)
            if option.name == "think_end":
                own = own or ""
            if given not in (option.default, own):
                raise InputError(
                    f"Expected --boundary.{option.name.replace('_', '-')} {own!r} beside a scorer "
                    f"that was trained with it, found {given!r}. Hint: leave it out; a scorer "
                    "brings its own rule."
                )


class BoundaryState:
    """What a rule remembers of a trace between two tokens."""

    __slots__ = ("line", "matched", "position", "thinking")

    def __init__(self) -> None:
        self.thinking = True
        """Whether the end of thinking has not come."""
        self.line = WORD_END
        """What the text ended in at `position` (`step_infer.scorer.line_ends`)."""
        self.matched = 0
        """Characters of the end of thinking that the text ended in at `position`."""
        self.position = -1
        """The last token that could change any of these; what comes later is words."""


@dataclass(frozen=True)
class BoundaryRule:
    r"""Which generated tokens end a step.

    Most tokens change nothing; those in `marks` can, and only they need be shown to `ends_step`.
    Token by token and all at once give the same boundaries. A trace's text begins with its first
    generated token: newlines at the end of the prompt are not counted.
    """

    kind: str
    """"blank_line", "newline", "sentence", "regex" or "stride"."""
    token_ids: frozenset[int]
    """Tokens that end a step wherever they stand ("sentence", "regex")."""
    think_end_id: int | None
    """The token whose whole text is the end of thinking; None where the vocabulary has none."""
    pattern: str | None = None
    """Regular expression that found `token_ids`; None for the other rules."""
    stride: int = 0
    """For "stride": a boundary after every so many generated tokens; otherwise 0."""
    line_ends: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """For "blank_line" and "newline": tokens with newlines, and those of blanks alone, by what they
    do to lines (`step_infer.scorer.line_ends.line_shape`). The token that holds the newline that
    counts is the boundary: of a run of newlines the second one, or the first one."""
    think_end: str | None = THINK_END
    """Text that ends the thinking; None where nothing does."""
    think_steps: Steps = ()
    """How far each token gets in that text."""

    @classmethod
    def for_tokenizer(
        cls,
        tokenizer: TokenizerLike,
        kind: str = "blank_line",
        *,
        pattern: str | None = None,
        stride: int = 0,
        think_end: str | None = THINK_END,
    ) -> "BoundaryRule":
        """Find what each token of a tokenizer's vocabulary does.

        Raises:
            InputError: unknown kind, bad expression or stride, or no token of the vocabulary fits.
        """
        if kind not in KINDS:
            raise InputError(f"Expected a boundary rule out of {', '.join(KINDS)}, found {kind!r}.")
        if kind == "stride" and stride < 1:
            raise InputError(f"Expected a stride of at least 1 token, found {stride}.")
        if kind == "regex" and not pattern:
            raise InputError(
                "Expected a pattern for the boundary rule 'regex', found none. "
                "Hint: give pattern, such as pattern='wait|hence'."
            )
        if kind != "regex":
            pattern = SENTENCE_END if kind == "sentence" else None
        texts = token_texts(tokenizer)
        rule = cls(
            kind,
            matching_tokens(pattern, texts, think_end) if pattern else frozenset(),
            single_token_id(tokenizer, think_end) if think_end else None,
            pattern,
            stride if kind == "stride" else 0,
            group_by_shape(texts) if kind in LINE_RULES else {},
            think_end or None,
            end_steps(think_end, texts) if think_end else (),
        )
        if not (rule.stride or rule.token_ids or any("\n" in shape for shape in rule.line_ends)):
            wanted = f"whose text matches {pattern!r}" if pattern else "with a newline"
            others = "the rule stride needs no such tokens"
            if matching_tokens(SENTENCE_END, texts, think_end):
                others = f"the rule sentence fits this vocabulary, {others}"
            raise InputError(
                f"Expected tokens {wanted} for the boundary rule {kind!r}, found none in the "
                f"vocabulary. Hint: {others}."
            )
        return rule

    @cached_property
    def marks(self) -> Container[int]:
        """Token ids that `ends_step` must see; a trace without them has no boundary and no end."""
        if self.stride:
            return range(sys.maxsize)  # every token
        return self.token_ids.union(self.think_marks, *self.line_ends.values())

    @cached_property
    def think_marks(self) -> frozenset[int]:
        """Those of them that may be a part of the end of thinking."""
        own = () if self.think_end_id is None else (self.think_end_id,)
        return frozenset().union(*(ids for *_, ids in self.think_steps), own)

    @cached_property
    def _moves(self) -> dict[int, Moves]:
        return {
            token_id: moves
            for shape, ids in self.line_ends.items()
            for moves in [shape_moves(shape, self.kind)]
            for token_id in ids
        }

    @cached_property
    def _matched_after(self) -> list[dict[int, int]]:
        """For each number of matched characters: how many there are after a token."""
        tables: list[dict[int, int]] = [{} for _ in self.think_end or ()]
        for before, after, ids in self.think_steps:
            tables[before].update(dict.fromkeys(ids, after))
        if self.think_end_id is not None:
            tables[0][self.think_end_id] = len(tables)
        return tables

    def ends_step(self, state: BoundaryState, token_id: int, position: int) -> bool:
        """Return whether a generated token, at `position` (from 0), ends a step.

        Args:
            state: the trace's, which takes the token in.
            token_id: the token; those that are not in `marks` may be left out.
            position: its index among the generated tokens.
        """
        if not state.thinking:
            return False
        if position != state.position + 1:  # there were words in between
            state.line, state.matched = WORD_END, 0
        state.position = position
        if self.think_end is not None:
            tables = self._matched_after
            after = tables[state.matched].get(token_id)
            state.matched = tables[0].get(token_id, 0) if after is None else after
            if state.matched == len(tables):
                state.thinking = False
                return False
        if self.stride:
            return (position + 1) % self.stride == 0
        moves = self._moves.get(token_id)
        if moves is None:
            state.line = WORD_END
            return token_id in self.token_ids
        state.line, ends = moves[state.line]
        return ends or token_id in self.token_ids

    def positions(self, token_ids: Sequence[int]) -> list[int]:
        """Return the boundaries of a whole response: indices into its T generated tokens.

        The last token never counts: no further token was made from it, so the engine has not
        computed its hidden state.
        """
        state, marks = BoundaryState(), self.marks
        found = [
            position
            for position, token_id in enumerate(token_ids)
            if token_id in marks and self.ends_step(state, token_id, position)
        ]
        return found[:-1] if found and found[-1] == len(token_ids) - 1 else found

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as JSON-ready data, for manifests and scorer cards."""
        return {
            "kind": self.kind,
            "pattern": self.pattern,
            "stride": self.stride,
            "think_end": self.think_end,
            "think_end_id": self.think_end_id,
            "think_steps": [[*key, sorted(ids)] for *key, ids in self.think_steps],
            "token_ids": sorted(self.token_ids),
            "line_ends": {shape: sorted(ids) for shape, ids in self.line_ends.items()},
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "BoundaryRule":
        """Make a rule from `to_dict`'s data.

        Raises:
            InputError: a field is missing, unknown or of another type.
        """
        try:
            fields = dict(value)
            ids, shapes, steps = (
                fields.pop("token_ids"),
                fields.pop("line_ends", {}),
                fields.pop("think_steps", ()),
            )
            rule = cls(
                token_ids=_ids(ids),
                line_ends={str(shape): _ids(found) for shape, found in shapes.items()},
                think_steps=tuple((int(b), int(a), _ids(found)) for b, a, found in steps),
                **fields,
            )
            check_types(rule)
            rule._check()
            return rule
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"Expected a boundary rule, found {value!r:.60} ({error}). "
                "Hint: make the file that holds it again."
            ) from error

    def _check(self) -> None:
        """Refuse what the tables of `ends_step` cannot be made of."""
        if self.line_ends and self.kind not in LINE_RULES:
            raise ValueError(f"line_ends with the kind {self.kind}")
        length = len(self.think_end or "")
        if not length and (self.think_steps or self.think_end_id is not None):
            raise ValueError("tokens that end thinking, and no think_end")
        for before, after, _ in self.think_steps:
            if not (0 <= before < length and 0 <= after <= length):
                raise ValueError(f"think_steps from {before} to {after} of {length} characters")


def _ids(values: Iterable[int]) -> frozenset[int]:
    return frozenset(int(value) for value in values)
