r"""The demo model's character tokenizer, twice: for Hugging Face and vLLM, and fast for training.

Tokens are the printable ASCII characters, the newline, the blank line "\n\n" (so a step boundary
is one token, as in real reasoning models) and the chat and thinking marks. Anything else is
<unk>. Both forms give the same ids; a test compares them.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
UNKNOWN = "<unk>"

THINK_MARKS = ("<think>", "</think>")

MARKS = (END_OF_TEXT, IM_START, IM_END, *THINK_MARKS, UNKNOWN)
"""Tokens 0 to 5: the marks. The thinking marks are ordinary text, the others are special."""

VOCABULARY = (*MARKS, "\n\n", "\n", *map(chr, range(32, 127)), "<|reserved|>")
"""Every token by id; 104 of them, a multiple of 8 as GPU kernels like it."""

PAD_ID = 0
IM_END_ID = 2
UNKNOWN_ID = 5

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.role != 'system' or message.content %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)
"""As Qwen3-Thinking: the generation prompt opens the thinking part."""

_LONG_TOKENS = [token for token in VOCABULARY if len(token) > 1]
# While a text is looked up, each long token stands as one control byte, 1 to 8.
_STAND_INS = [(token.encode(), bytes([i])) for i, token in enumerate(_LONG_TOKENS, start=1)]
# Other control bytes become 127 first: unknown.
_CLEAN = bytes(b if 32 <= b < 127 or b == ord("\n") else 127 for b in range(256))


def _lookup() -> npt.NDArray[np.uint8]:
    table = np.full(256, UNKNOWN_ID, dtype=np.uint8)
    for token_id, token in enumerate(VOCABULARY):
        byte = _LONG_TOKENS.index(token) + 1 if len(token) > 1 else ord(token)
        table[byte] = token_id
    return table


_TABLE = _lookup()


def encode_array(text: str) -> npt.NDArray[np.uint8]:
    """Return the token ids of a text, [T] uint8; some 5 microseconds for a whole trace."""
    if not text.isascii():
        text = "".join(c if c.isascii() else "\x7f" for c in text)
    raw = text.encode("ascii").translate(_CLEAN)
    for token, stand_in in _STAND_INS:
        raw = raw.replace(token, stand_in)
    return _TABLE[np.frombuffer(raw, dtype=np.uint8)]


def prompt_text(question: str, system: str = "") -> str:
    """Return what the chat template makes of a question: the prompt, up to the open thinking."""
    head = f"{IM_START}system\n{system}{IM_END}\n" if system else ""
    return f"{head}{IM_START}user\n{question}{IM_END}\n{IM_START}assistant\n<think>\n"


def build_tokenizer(max_length: int = 4096) -> "PreTrainedTokenizerFast":
    """Return the Hugging Face tokenizer; `max_length` is the model's context, tokens."""
    # Imported here: question making and the training's workers do without them.
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(VOCABULARY)}
    # One merge only: two newlines make a blank line.
    core = Tokenizer(BPE(vocab, [("\n", "\n")], unk_token=UNKNOWN, fuse_unk=False))
    core.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        additional_special_tokens=[IM_START, VOCABULARY[-1]],
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        padding_side="right",
    )
    # Ordinary text to a decoder: skip_special_tokens must not drop them.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in THINK_MARKS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
