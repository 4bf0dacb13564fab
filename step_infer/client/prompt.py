"""Tokenizers and chat prompts."""

import inspect
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from step_infer.errors import InputError
from step_infer.scorer.identity import model_file
from step_infer.storage.files import read_json

SYSTEM_PROMPT = r"Please reason step by step, and put your final answer within \boxed{}."
"""The paper's system text (arXiv 2601.09093, section 4.1)."""


_CLOCK = "strftime_now"
"""The function by which templates ask for the date."""


def chat_prompt(
    tokenizer: Any,
    question: str,
    system: str = SYSTEM_PROMPT,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the token ids of a question in the model's chat template, ready for generation.

    A template that takes no system turn gets the system text at the head of the user's turn.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        question: the user's turn.
        system: the system turn; an empty text leaves it out.
        template_kwargs: more arguments of the template, such as enable_thinking.

    Raises:
        InputError: the tokenizer has no chat template, or one that refuses the turns, loses the
            question or does not know an argument; or a text is no Unicode text.
    """
    text, _ = _render(tokenizer, question, system, template_kwargs or {})
    return list(tokenizer.encode(text, add_special_tokens=False))


def system_note(
    tokenizer: Any,
    question: str,
    system: str,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str | None:
    """Return what to tell a user whose system text does not stand in a turn of its own, or None.

    Raises:
        InputError: as `chat_prompt`.
    """
    _, moved = _render(tokenizer, question, system, template_kwargs or {})
    if not moved:
        return None
    return (
        "the chat template takes no system turn: the system text stands at the head of the "
        "question (an empty --system leaves it out)"
    )


def dated_kwargs(template_kwargs: Mapping[str, Any], date: str) -> dict[str, Any]:
    """Return template arguments with which a template that asks for the date gets this one.

    A run that goes on another day then asks the same prompts.

    Args:
        template_kwargs: the arguments.
        date: the date and time, in the ISO form.
    """
    return {**template_kwargs, _CLOCK: datetime.fromisoformat(date).strftime}


def _render(
    tokenizer: Any, question: str, system: str, template_kwargs: Mapping[str, Any]
) -> tuple[str, bool]:
    """Return a question's prompt, and whether the system text went into the user's turn."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise InputError(
            "Expected a tokenizer with a chat template, found none. "
            "Hint: use an instruction-tuned model, or add chat_template to its tokenizer."
        )
    for text in (system, question):
        found = lone_surrogate(text)
        if found is not None:
            raise InputError(
                f"Expected text without lone surrogates, found {found!a} in the prompt. "
                "Hint: decode the text anew, or leave the question out."
            )
    _check_arguments(tokenizer, template_kwargs)
    user = {"role": "user", "content": question}
    moved = False
    try:
        if not system:
            text = _apply(tokenizer, [user], template_kwargs)
        else:
            try:
                turns = [{"role": "system", "content": system}, user]
                text = _apply(tokenizer, turns, template_kwargs)
                moved = system.strip() not in text
            except TemplateError:
                moved = True
            if moved:
                user = {"role": "user", "content": f"{system}\n\n{question}"}
                text = _apply(tokenizer, [user], template_kwargs)
    except (TemplateError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"Expected a chat template that takes a question, found one that refuses it: {error}. "
            "Hint: mend the template's arguments (--chat-template-kwargs), or the chat_template of "
            "the model's tokenizer."
        ) from error
    for name, part in (("system text", system), ("question", question)):
        if part.strip() not in text:
            hint = "leave it out with --system=" if part is system else "mend the chat_template"
            raise InputError(
                f"Expected a chat template that keeps the {name}, found one that drops or changes "
                f"it: {part.strip()!r:.80} does not stand in the prompt. Hint: {hint}."
            )
    return text, moved


def _apply(tokenizer: Any, turns: list[dict[str, str]], template_kwargs: Mapping[str, Any]) -> str:
    return str(
        tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **template_kwargs
        )
    )


def _check_arguments(tokenizer: Any, template_kwargs: Mapping[str, Any]) -> None:
    """Refuse arguments that the chat template does not know: it would ignore them silently."""
    template = str(tokenizer.chat_template)
    own = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
    for name in template_kwargs:
        if name == _CLOCK:
            continue
        if name in own or not re.search(rf"\b{re.escape(name)}\b", template):
            raise InputError(
                "Expected arguments of the model's chat template as --chat-template-kwargs, found "
                f"{name!r}, which it does not know. Hint: look it up in the model's chat template."
            )


def lone_surrogate(text: str) -> str | None:
    """Return the first half of a surrogate pair that stands alone; None without one.

    JSON can write such a half, and no file or tokenizer takes it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def load_tokenizer(model: str, revision: str | None = None) -> Any:
    """Load a model's Hugging Face tokenizer.

    Args:
        model: model folder or Hugging Face id.
        revision: branch, tag or commit of a hub id; None is the main one.

    Raises:
        InputError: the model has none that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, revision=revision or "main")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"Expected a tokenizer in {model}, found: {reason.rstrip('.')}. "
            "Hint: check the path, or download the model first."
        ) from error


def context_length(model: str, limit: int | None = None, revision: str | None = None) -> int | None:
    """Return a model's longest prompt and response together, in tokens; None where unknown.

    Args:
        model: model folder or Hugging Face id.
        limit: the engine's own limit, which wins.
        revision: branch, tag or commit of a hub id; None is the main one.
    """
    config = read_json(model_file(model, "config.json", revision))
    text_config = config.get("text_config") or config
    found = limit or text_config.get("max_position_embeddings")
    return found if isinstance(found, int) else None


def prompt_lengths(
    tokenizer: Any,
    questions: Mapping[str, str],
    system: str,
    context: int | None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return each question's prompt length in tokens.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        questions: each question's text by its id.
        system: the system turn; an empty text leaves it out.
        context: longest prompt and response together, in tokens; None where unknown.
        template_kwargs: more arguments of the chat template.

    Raises:
        InputError: a question cannot be asked, or a prompt leaves no room for a response in the
            context.
    """
    lengths = []
    for name, question in questions.items():
        length = len(chat_prompt(tokenizer, question, system, template_kwargs))
        if context is not None and length >= context:
            raise InputError(
                f"Expected prompts shorter than the context ({context} tokens), "
                f"found {length} tokens for question {name}. Hint: shorten or remove it."
            )
        lengths.append(length)
    return lengths
