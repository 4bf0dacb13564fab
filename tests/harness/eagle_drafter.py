"""A small EAGLE drafter for the demo model: one linear map, found by least squares."""

import itertools
from pathlib import Path

import torch
from places import CHECKPOINT
from safetensors.torch import save_file
from server_harness import PROMPT
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from data_gen.ledger.questions import iter_questions

QUESTIONS = 12
NEW_TOKENS = 300


def write_eagle(folder: Path) -> str:
    """Write an EAGLE head for the demo model, and return its path.

    An EAGLE head reads a token's embedding and the model's state before it, and says which state
    comes next. Here that is linear; its decoder layer, which vLLM wants, adds nothing.
    """
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    questions = itertools.islice(iter_questions("scorer-train", 0), QUESTIONS)
    prompts = [tokenizer(PROMPT.format(question.text))["input_ids"] for question in questions]
    with torch.inference_mode():
        ids_NT = model.generate(torch.tensor(prompts), do_sample=False, max_new_tokens=NEW_TOKENS)
        state_NTH = model.model(ids_NT).last_hidden_state
    embedded_NTH = model.get_input_embeddings().weight.detach()[ids_NT]
    read_RI = torch.cat([embedded_NTH[:, 1:], state_NTH[:, :-1]], -1).flatten(0, 1)
    next_RH = state_NTH[:, 1:].flatten(0, 1)
    eye_II = torch.eye(read_RI.shape[1])
    map_IH = torch.linalg.solve(read_RI.T @ read_RI + 0.01 * eye_II, read_RI.T @ next_RH)
    size = next_RH.shape[1]
    zeros, layer = torch.zeros(size, size), "layers.0."
    save_file(
        {
            "fc.weight": map_IH.T.contiguous(),
            **{f"{layer}self_attn.{name}_proj.weight": zeros.clone() for name in "qkvo"},
            **{f"{layer}mlp.{name}_proj.weight": zeros.clone() for name in ("gate", "up", "down")},
            f"{layer}post_attention_layernorm.weight": torch.ones(size),
        },
        folder / "model.safetensors",
    )
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=model.config.vocab_size,
        hidden_size=size,
        intermediate_size=size,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=model.config.max_position_embeddings,
        dtype="float32",
    ).save_pretrained(folder)
    return str(folder)
