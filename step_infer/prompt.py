"""Tokenizers and chat prompts."""

from typing import Any

from step_infer.errors import InputError

SYSTEM_PROMPT = r"Please reason step by step, and put your final answer within \boxed{}."
"""The paper's system text (arXiv 2601.09093, section 4.1)."""


def chat_prompt(tokenizer: Any, question: str, system: str = SYSTEM_PROMPT) -> list[int]:
    """Return the token ids of a question in the model's chat template, ready for generation.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        question: the user's turn.
        system: the system turn; an empty text leaves it out.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            "Expected a tokenizer with a chat template, found none. "
            "Hint: use an instruction-tuned model, or add chat_template to its tokenizer."
        )
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text, add_special_tokens=False))


def load_tokenizer(model: str) -> Any:
    """Load a model's Hugging Face tokenizer.

    Raises:
        InputError: the model has none that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"Expected a tokenizer in {model}, found: {reason}") from error
