"""Chat prompts: templates of many kinds, and what each does to system text and question."""

import copy
from typing import Any

import pytest
from vocabularies import vocabulary

from step_infer.client.prompt import chat_prompt, dated_kwargs, prompt_lengths, system_note
from step_infer.errors import InputError

SYSTEM, QUESTION = "Think.", "1+2"
TURN = "'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n'"
GENERATION = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
REFUSING = "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('No system') }}{% endif %}"
ALTERNATING = (
    "{%- for m in messages %}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{- raise_exception('Roles must alternate') }}{%- endif %}{{- " + TURN + " }}{%- endfor %}"
)
ALL = "{%- for m in messages %}{{- " + TURN + " }}{%- endfor %}"
USERS = "{%- for m in messages if m['role'] == 'user' %}{{- " + TURN + " }}{%- endfor %}"
THINKING = (
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- else %}{{- '<think>\\n' }}{%- endif %}"
)
DATED = "{{- '<|im_start|>system\\n' + strftime_now('%d %b %Y') + '<|im_end|>\\n' }}" + ALL


def tokenizer_of(template: str) -> Any:
    tokenizer = copy.copy(vocabulary("demo"))
    tokenizer.chat_template = template
    return tokenizer


def prompt(template: str, question: str = QUESTION, system: str = SYSTEM, **options: Any) -> str:
    tokenizer = tokenizer_of(template)
    return str(tokenizer.decode(chat_prompt(tokenizer, question, system, **options)))


def test_a_system_turn_stands_alone() -> None:
    assert prompt(ALL + GENERATION) == (
        "<|im_start|>system\nThink.<|im_end|>\n<|im_start|>user\n1+2<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert system_note(tokenizer_of(ALL), QUESTION, SYSTEM) is None


@pytest.mark.parametrize("template", [REFUSING + ALL, ALTERNATING, USERS])
def test_without_a_system_turn_its_text_stands_in_the_users(template: str) -> None:
    expected = "<|im_start|>user\nThink.\n\n1+2<|im_end|>\n<|im_start|>assistant\n"
    assert prompt(template + GENERATION) == expected
    tokenizer = tokenizer_of(template)
    assert "takes no system turn" in (system_note(tokenizer, QUESTION, SYSTEM) or "")
    assert system_note(tokenizer, QUESTION, "") is None
    assert prompt(template, system="") == "<|im_start|>user\n1+2<|im_end|>\n"


def test_a_template_that_refuses_the_question_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="one that refuses it: Only tools.*Hint: mend"):
        prompt("{{ raise_exception('Only tools') }}")
    with pytest.raises(InputError, match="one that refuses it: .*Hint"):
        prompt("{{ messages[0]['parts'][0] }}")
    with pytest.raises(InputError, match="Expected a tokenizer with a chat template, found none"):
        chat_prompt(object(), QUESTION)


@pytest.mark.parametrize(
    "template",
    [
        "{{- 'Hello' }}",
        "{%- for m in messages %}{{- m['content'] | replace('1', '2') }}{%- endfor %}",
        "{%- for m in messages %}{{- m['content'][:8] }}{%- endfor %}",
    ],
)
def test_a_template_that_loses_the_question_is_noticed(template: str) -> None:
    with pytest.raises(InputError, match="keeps the question, found one that drops or changes it"):
        prompt(template, "1+1234567890", system="")


def test_a_template_that_changes_the_system_text_everywhere_names_the_way_out() -> None:
    shouting = "{%- for m in messages %}{{- m['content'] | replace('Th', 'TH') }}{%- endfor %}"
    with pytest.raises(InputError, match="keeps the system text, .*Hint: .*--system="):
        prompt(shouting)
    assert prompt(shouting, system="") == "1+2"


def test_a_template_may_trim_the_question() -> None:
    assert prompt("{{- messages[-1]['content'] | trim }}", " 1+2\n", system="") == "1+2"


def test_arguments_reach_the_template() -> None:
    template = ALL + GENERATION + THINKING
    assert prompt(template).endswith("assistant\n<think>\n")
    off = {"enable_thinking": False}
    assert prompt(template, template_kwargs=off).endswith("<think>\n\n</think>\n\n")
    tokenizer = tokenizer_of(template)
    lengths = [
        prompt_lengths(tokenizer, {"q": QUESTION}, SYSTEM, None, kwargs)[0] for kwargs in (off, {})
    ]
    assert lengths[0] > lengths[1]


@pytest.mark.parametrize(
    "name", ["enable_thinkin", "messages", "tokenize", "add_generation_prompt"]
)
def test_an_argument_that_the_template_does_not_know_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"as --chat-template-kwargs, found '{name}'"):
        prompt(ALL + GENERATION + THINKING, template_kwargs={name: False})


def test_a_date_can_be_fixed() -> None:
    for date in ("2024-07-26T23:59:00", "2031-01-02T00:00:00"):
        year = date[:4]
        found = prompt(DATED, template_kwargs=dated_kwargs({}, date))
        assert year in found
    fixed = dated_kwargs({}, "2024-07-26T23:59:00")
    assert prompt(DATED, template_kwargs=fixed).startswith("<|im_start|>system\n26 Jul 2024<")
    # A template that does not ask for it is the same.
    assert prompt(ALL, template_kwargs=fixed) == prompt(ALL)


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(InputError, match=r"without lone surrogates, found '\\ud83d'"):
        prompt(ALL, "\ud83d")
