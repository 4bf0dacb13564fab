"""Step boundaries: the one rule that training and the engine share.

A boundary is a generated token that ends a step of the reasoning (STEP, arXiv 2601.09093, section
3.1: a token whose text contains a blank line). It lies before the end of thinking, and a further
token follows it: only then has the model read it and made the hidden state that the scorer sees.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from step_infer.errors import InputError
from step_infer.storage.files import check_types

TOKEN_PATTERNS = {
    "blank_line": r"\n\n",
    "newline": r"\n",
    "sentence": r"[.!?][\"')\]]*(\s|$)",
}
"""Rules that look at the text of one token: name -> regular expression."""

THINK_END = "</think>"

_NO_TEXT = "\ufffd"
"""What a tokenizer makes of bytes that are only a part of a character."""


@dataclass(frozen=True)
class BoundaryOptions:
    """What ends a step; the commands that need a rule share these options."""

    kind: str = "blank_line"
    """blank_line, newline, sentence, regex or stride."""
    pattern: str | None = None
    """For the kind regex: expression that a token's text is searched for."""
    stride: int = 0
    """For the kind stride: tokens in a step."""

    kinds: ClassVar[tuple[str, ...]] = (*TOKEN_PATTERNS, "regex", "stride")

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
            _compiled(self.pattern)
        if self.stride < 0:
            raise InputError(f"Expected --boundary.stride of at least 1, found {self.stride}.")

    def rule(self, tokenizer: "TokenizerLike") -> "BoundaryRule":
        """Return the rule for a tokenizer; see `BoundaryRule.for_tokenizer`."""
        return BoundaryRule.for_tokenizer(
            tokenizer, self.kind, pattern=self.pattern, stride=self.stride
        )


class TokenizerLike(Protocol):
    """The part of a Hugging Face tokenizer that the rule needs."""

    def __len__(self) -> int: ...

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        """Return the text of some tokens."""

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a token given by its text."""


@dataclass(frozen=True)
class BoundaryRule:
    r"""Which generated tokens end a step.

    Either a set of token ids, found once from each token's own text, or every `stride` tokens.
    Both cost one look-up a token, and give the same boundaries token by token and all at once.
    A token's text may hold more than the mark (".\n\n"); a blank line that two tokens make
    together is none, and bytes that are only a part of a character are no text.
    """

    kind: str
    """"blank_line", "newline", "sentence", "regex" or "stride"."""
    token_ids: frozenset[int]
    """Ids of the tokens that are boundaries; empty for "stride"."""
    think_end_id: int | None
    """Id of the token that ends the reasoning; None where the model has none."""
    pattern: str | None = None
    """Regular expression that a token's text is searched for; None for "stride"."""
    stride: int = 0
    """For "stride": a boundary after every so many generated tokens; otherwise 0."""

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
        """Find a rule's token ids in a tokenizer's vocabulary.

        Raises:
            InputError: unknown kind, bad expression or stride, or no token of the vocabulary fits.
        """
        think_end_id = _single_token_id(tokenizer, think_end) if think_end else None
        if kind == "stride":
            if stride < 1:
                raise InputError(f"Expected a stride of at least 1 token, found {stride}.")
            return cls(kind, frozenset(), think_end_id, None, stride)
        if kind == "regex":
            if not pattern:
                raise InputError("Expected a pattern for the boundary rule 'regex', found none.")
        elif kind in TOKEN_PATTERNS:
            pattern = TOKEN_PATTERNS[kind]
        else:
            known = ", ".join([*TOKEN_PATTERNS, "regex", "stride"])
            raise InputError(f"Expected a boundary rule out of {known}, found {kind!r}.")
        search = _compiled(pattern).search
        texts = (tokenizer.decode([i]).replace(_NO_TEXT, "") for i in range(len(tokenizer)))
        ids = frozenset(
            i for i, text in enumerate(texts) if text and i != think_end_id and search(text)
        )
        if not ids:
            raise InputError(
                f"Expected tokens whose text matches {pattern!r}, found none in the vocabulary. "
                "Hint: choose another boundary rule."
            )
        return cls(kind, ids, think_end_id, pattern, 0)

    def is_boundary(self, token_id: int, position: int) -> bool:
        """Return whether a token generated while thinking, at `position` (from 0), ends a step."""
        if self.stride:
            return (position + 1) % self.stride == 0 and token_id != self.think_end_id
        return token_id in self.token_ids

    def positions(self, token_ids: Sequence[int]) -> list[int]:
        """Return the boundaries of a whole response: indices into its T generated tokens.

        The last token never counts: no further token was made from it, so the engine has not
        computed its hidden state.
        """
        end = len(token_ids) - 1
        if self.think_end_id is not None and self.think_end_id in token_ids:
            end = min(end, list(token_ids).index(self.think_end_id))
        return [i for i in range(end) if self.is_boundary(token_ids[i], i)]

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as JSON-ready data, for manifests and scorer cards."""
        return {
            "kind": self.kind,
            "pattern": self.pattern,
            "stride": self.stride,
            "think_end_id": self.think_end_id,
            "token_ids": sorted(self.token_ids),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "BoundaryRule":
        """Make a rule from `to_dict`'s data.

        Raises:
            InputError: a field is missing, unknown or of another type.
        """
        try:
            fields = dict(value)
            ids: Iterable[int] = fields.pop("token_ids")
            rule = cls(token_ids=frozenset(int(i) for i in ids), **fields)
            check_types(rule)
            return rule
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"Expected a boundary rule, found {value!r} ({error}).") from error


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(
            f"Expected a regular expression as --boundary.pattern, found {pattern!r} ({error}). "
            "Hint: a backslash before a character stands for the character itself."
        ) from error


def _single_token_id(tokenizer: TokenizerLike, text: str) -> int | None:
    token_id = tokenizer.convert_tokens_to_ids(text)
    unknown = getattr(tokenizer, "unk_token_id", None)
    return None if token_id is None or token_id == unknown else int(token_id)
