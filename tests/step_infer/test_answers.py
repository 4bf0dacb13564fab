r"""Finding the last \boxed{} or \fbox{} of a response."""

import pytest

from step_infer.client.answers import extract_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \text{a {b} c} }", r"\text{a {b} c}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right\}} end", r"\left\{ x \right\}"),
        (r"\boxed 7$.", "7"),
        ("\\boxed\n{7}", "7"),
        (r"\boxed{7", None),
        (r"\boxed{5} and \boxed{7", "5"),
        (r"\boxed", None),
        ("\\boxed \n", None),
        (r"\boxed{}", None),
        (r"It is \fbox{9}.", "9"),
        (r"\boxed{1}, so \fbox{2}", "2"),
        (r"Its zeros: \boxed{-1} and \boxed{6}.", "-1, 6"),
        (r"$\boxed{a}$, $\boxed{b}$, and $\boxed{c}$", "a, b, c"),
        (r"$x = \boxed{2}$ or $x = \boxed{7}$", "2, 7"),
        (r"first \boxed{0}; then \boxed{2}, \boxed{3}", "2, 3"),
        (r"\boxed{\frac{1}{4}} or \boxed{0.25}", r"\frac{1}{4}"),
        (r"\boxed{1}. And \boxed{2}", "2"),
        (r"\boxed{5} and \boxed{}", None),
        (r"\boxed{x=\boxed{3}}", "3"),
        ("no box", None),
        ("", None),
    ],
)
def test_last_complete_box_is_the_answer(text: str, answer: str | None) -> None:
    assert extract_boxed(text) == answer


def test_box_inside_the_reasoning_is_a_draft() -> None:
    assert extract_boxed(r"maybe \boxed{1}</think>It is \boxed{2}") == "2"
    assert extract_boxed(r"maybe \boxed{1}</think>I do not know") is None


def test_another_text_can_end_the_thinking() -> None:
    text = r"maybe \boxed{1}[/THINK]It is \boxed{2}</think>"
    assert extract_boxed(text) is None
    assert extract_boxed(text, "[/THINK]") == "2"
    assert extract_boxed(r"\boxed{1}</think>", None) == "1"


def test_without_an_end_of_thinking_the_whole_text_counts() -> None:
    assert extract_boxed(r"It is \boxed{1}") == "1"


def test_deep_nesting_is_read_without_recursion() -> None:
    text = "\\boxed{" + "{" * 5000 + "x" + "}" * 5000 + "}"
    assert extract_boxed(text) == "{" * 5000 + "x" + "}" * 5000
