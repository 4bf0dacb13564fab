"""What a tokenizer's tokens are as text, one by one."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

from step_infer.errors import InputError

_NO_TEXT = "\ufffd"
"""What a tokenizer makes of bytes that are only a part of a character."""


class TokenizerLike(Protocol):
    """The part of a Hugging Face tokenizer that the rule needs."""

    def __len__(self) -> int: ...

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        """Return the text of some tokens."""

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a token given by its text."""


def token_texts(tokenizer: TokenizerLike) -> list[str]:
    """Return the text of each token of a vocabulary, in the order of the ids."""

    def text(*token_ids: int) -> str:
        return tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)

    count = len(tokenizer)
    # SentencePiece drops a text's first space, so that a token alone seems to have none.
    some = range(0, count, max(1, count // 500))
    drops_space = any(text(i, i) != 2 * text(i) for i in some if _NO_TEXT not in text(i))
    if not drops_space:
        return [text(i) for i in range(count)]
    return [text(i, i)[len(text(i)) :] for i in range(count)]


def matching_tokens(pattern: str, texts: Sequence[str], think_end: str | None) -> frozenset[int]:
    """Return the tokens whose text a pattern is found in, but for those with the end of thinking.

    Raises:
        InputError: the pattern is no regular expression.
    """
    search = compiled(pattern).search
    shown = (text.replace(_NO_TEXT, "") for text in texts)
    return frozenset(
        i
        for i, text in enumerate(shown)
        if text and search(text) and not (think_end and think_end in text)
    )


def compiled(pattern: str) -> re.Pattern[str]:
    """Return a regular expression of the user's, ready for use.

    Raises:
        InputError: it is none.
    """
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(
            f"Expected a regular expression as --boundary.pattern, found {pattern!r} ({error}). "
            "Hint: a backslash before a character stands for the character itself."
        ) from error


def single_token_id(tokenizer: TokenizerLike, text: str) -> int | None:
    """Return the token whose name is a text; None where the vocabulary has none."""
    token_id = tokenizer.convert_tokens_to_ids(text)
    unknown = getattr(tokenizer, "unk_token_id", None)
    return None if token_id is None or token_id == unknown else int(token_id)
