"""Vectors of texts whose dot product says how alike two texts are."""

import functools
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from step_infer.errors import InputError

Encoder = Callable[[Sequence[str]], NDArray[np.float32]]
"""From N texts to unit vectors [N, D]."""

_BUCKETS = 4096
_MOST_WORDS = 3
_WORD = re.compile(r"\w+|[^\w\s]")
_BATCH = 32


def hashed_ngrams(texts: Sequence[str]) -> NDArray[np.float32]:
    """Return counts of hashed runs of 1 to 3 words or marks, as unit vectors [N, D].

    A text without words is the zero vector.
    """
    vectors_ND = np.stack([_counts(_WORD.findall(text.lower())) for text in texts])
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.maximum(lengths_N1, 1e-9)


def _counts(words: list[str]) -> NDArray[np.float32]:
    buckets = [
        zlib.crc32(" ".join(words[start : start + size]).encode()) % _BUCKETS
        for size in range(1, _MOST_WORDS + 1)
        for start in range(len(words) - size + 1)
    ]
    return np.bincount(np.array(buckets, int), minlength=_BUCKETS).astype(np.float32)


@functools.cache
def load_encoder(path: str) -> Encoder:
    """Return the encoder that an embedding model makes by the mean over a text's tokens.

    Args:
        path: folder of a Hugging Face model that `transformers.AutoModel` can read.

    Raises:
        InputError: there is no such model.
    """
    check_encoder(path)
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModel.from_pretrained(path, local_files_only=True).eval()
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"Expected an embedding model at {path}, found: {reason:.200}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    longest = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        found = []
        for start in range(0, len(texts), _BATCH):
            batch = tokenizer(
                list(texts[start : start + _BATCH]),
                padding=True,
                truncation=True,
                max_length=min(longest, 512),
                return_tensors="pt",
            ).to(device)
            batch.pop("token_type_ids", None)
            hidden_BTH = model(**batch).last_hidden_state.float()
            mask_BT1 = batch["attention_mask"].unsqueeze(-1)
            mean_BH = (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
            found.append(torch.nn.functional.normalize(mean_BH, dim=-1).cpu().numpy())
        return np.concatenate(found)

    return encode


def check_encoder(path: str) -> None:
    """Check that a folder may hold an embedding model, without reading it.

    Raises:
        InputError: it holds none.
    """
    if not (Path(path) / "config.json").is_file():
        raise InputError(
            f"Expected the folder of an embedding model (with config.json), found {path!r}. "
            "Hint: without --slim.encoder, hashed n-grams are compared."
        )
