"""Tokenizers and chat prompts."""

from collections.abc import Mapping
from typing import Any

from step_infer.errors import InputError
from step_infer.scorer.identity import model_file
from step_infer.storage.files import read_json

SYSTEM_PROMPT = r"Please reason step by step, and put your final answer within \boxed{}."
"""The paper's system text (arXiv 2601.09093, section 4.1)."""


def chat_prompt(tokenizer: Any, question: str, system: str = SYSTEM_PROMPT) -> list[int]:
    """Return the token ids of a question in the model's chat template, ready for generation.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        question: the user's turn.
        system: the system turn; an empty text leaves it out.

    Raises:
        InputError: the tokenizer has no chat template, or a text is no Unicode text.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            "Expected a tokenizer with a chat template, found none. "
            "Hint: use an instruction-tuned model, or add chat_template to its tokenizer."
        )
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    found = lone_surrogate(text)
    if found is not None:
        raise InputError(
            f"Expected text without lone surrogates, found {found!a} in the prompt. "
            "Hint: decode the text anew, or leave the question out."
        )
    return list(tokenizer.encode(text, add_special_tokens=False))


def lone_surrogate(text: str) -> str | None:
    """Return the first half of a surrogate pair that stands alone; None without one.

    JSON can write such a half, and no file or tokenizer takes it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


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


def context_length(model: str, limit: int | None = None) -> int | None:
    """Return a model's longest prompt and response together, in tokens; None where unknown.

    Args:
        model: model folder or Hugging Face id.
        limit: the engine's own limit, which wins.
    """
    config = read_json(model_file(model, "config.json"))
    text_config = config.get("text_config") or config
    found = limit or text_config.get("max_position_embeddings")
    return found if isinstance(found, int) else None


def prompt_lengths(
    tokenizer: Any, questions: Mapping[str, str], system: str, context: int | None
) -> list[int]:
    """Return each question's prompt length in tokens.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        questions: each question's text by its id.
        system: the system turn; an empty text leaves it out.
        context: longest prompt and response together, in tokens; None where unknown.

    Raises:
        InputError: a prompt leaves no room for a response in the context.
    """
    lengths = []
    for name, question in questions.items():
        length = len(chat_prompt(tokenizer, question, system))
        if context is not None and length >= context:
            raise InputError(
                f"Expected prompts shorter than the context ({context} tokens), "
                f"found {length} tokens for question {name}. Hint: shorten or remove it."
            )
        lengths.append(length)
    return lengths
