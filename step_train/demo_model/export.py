"""The demo model's architecture, and its export as a Hugging Face folder."""

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data_gen.ledger.tokenizer import IM_END_ID, PAD_ID, VOCABULARY, build_tokenizer
from step_infer.storage.files import write_json

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

MAX_POSITIONS = 4096
"""Context of the demo model, tokens; the world's longest traces have about 2,500."""

HEAD_SIZE = 64
"""The smallest that vLLM's CUDA attention kernels take."""


def new_model(layers: int, hidden_size: int, intermediate_size: int) -> "Qwen3ForCausalLM":
    """Return a Qwen3 model with fresh float32 weights from torch's current seed."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    heads = hidden_size // HEAD_SIZE
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=HEAD_SIZE,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=IM_END_ID,
        pad_token_id=PAD_ID,
        attn_implementation="sdpa",
    )
    return Qwen3ForCausalLM(config)


def export_model(net: "Qwen3ForCausalLM", folder: Path) -> None:
    """Write a model as bfloat16 with its tokenizer; `folder` is there whole, or as it was.

    The sampling settings in generation_config.json are the demo's own: temperature 1, nothing
    cut off, so that the model errs as often as the reasoner it learned from.
    """
    from transformers import GenerationConfig, Qwen3ForCausalLM

    new, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    config = type(net.config).from_dict(net.config.to_dict())
    with torch.device("meta"):
        copy = Qwen3ForCausalLM(config)
    weights = {k: v.detach().to("cpu", torch.bfloat16) for k, v in net.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    copy.tie_weights()
    copy.config.dtype = torch.bfloat16
    copy.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        eos_token_id=IM_END_ID,
        pad_token_id=PAD_ID,
    )
    copy.save_pretrained(new)
    build_tokenizer(MAX_POSITIONS).save_pretrained(new)
    _name_tokenizer_class(new / "tokenizer_config.json")
    for path in new.iterdir():
        path.chmod(0o644)  # safetensors makes its file readable to the owner only
        with path.open("rb") as file:
            os.fsync(file.fileno())
    # A folder cannot be replaced in one step: the old one is moved away, then removed.
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _name_tokenizer_class(path: Path) -> None:
    """Name the class as every version of transformers knows it; version 5 writes a new name."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, settings)
