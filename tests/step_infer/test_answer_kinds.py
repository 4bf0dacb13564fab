r"""Answer kinds: what each finds in responses as models write them, and what it takes for equal."""

from step_infer.client.grading import Grader
from step_infer.client.kinds import AnswerOptions
import pytest

_BOX = "So we get\n\n\\[ \\boxed{%s} \\]"

CHOICES = [
    ("The answer is (C).", "C"),
    ("The answer is C", "C"),
    ("**The answer is C.**", "C"),
    ("The correct answer is: **C) Paris**", "C"),
    ("The correct option is B, because A and D are wrong.", "B"),
    ("The best choice is (D) 42.", "D"),
    ("Answer: C", "C"),
    ("**Answer:** C", "C"),
    ("**Answer**: (C) 42", "C"),
    ("**Final Answer**\n\nC", "C"),
    ("### Final Answer\n**(C)**", "C"),
    ("#### C", "C"),
    ("ANSWER: c", "C"),
    ("answer: (c)", "C"),
    ("The final answer is \\(\\text{C}\\).", "C"),
    ("The answer is $C$.", "C"),
    ("The answer is Option C.", "C"),
    ("Therefore, the answer is option (C): a cell.", "C"),
    ("Reasoning first.\n\nC", "C"),
    ("Reasoning first.\n\n(C)", "C"),
    ("Reasoning first.\n\n**C. 42**", "C"),
    ("Reasoning first.\n\nOption C", "C"),
    ("Reasoning first.\n\nSo it has to be option (B).", "B"),
    ("Reasoning first.\n\nHence **(B)** fits.", "B"),
    (_BOX % "C", "C"),
    (_BOX % r"\text{C}", "C"),
    (_BOX % r"\textbf{(C)}", "C"),
    (_BOX % r"\textbf{(C)}\ 42", "C"),
    (_BOX % r"C. 42", "C"),
    (_BOX % r"\text{(C) 42}", "C"),
    (_BOX % r"\mathrm{C}", "C"),
    (_BOX % r"\textbf{Option C}", "C"),
    (_BOX % "A, C", "A, C"),
    (_BOX % r"\text{C and A}", "A, C"),
    (_BOX % "ACD", "A, C, D"),
    ("The answer is (A) and (C).", "A, C"),
    ("The answer is A. No wait.\n\nThe answer is B.", "B"),
    ("The answer is D. I hope this answer is helpful.", "D"),
    ("maybe (A)</think>The answer is (B).", "B"),
    # No choice.
    ("The answer is (A)</think>I do not know.", None),
    ("The answer is a number.", None),
    ("The answer is A or B.", None),
    ("The answer is (A) or (B).", None),
    ("The answer is I think unclear.", None),
    ("A. 1\nB. 2\nC. 3\nD. 4", None),
    ("It may be (A), it may be (B).", None),
    (_BOX % "42", None),
    ("", None),
]

STATED = [
    ("The answer is 42", "42"),
    ("The answer is 42.", "42"),
    ("#### 42", "42"),
    ("5 + 5 = 10\n#### 10", "10"),
    ("**Answer:** 42", "42"),
    ("**Answer**: 42", "42"),
    ("Answer: **42**", "42"),
    ("**Final Answer:** 42", "42"),
    ("**Final Answer**\n\n42", "42"),
    ("### Answer\n42", "42"),
    ("**Answer: 42**", "42"),
    ("The final answer is **42**.", "42"),
    ("The final answer is: $42$.", "42"),
    ("The final answer is $\\frac{1}{2}$.", "\\frac{1}{2}"),
    ("So the answer is \\(x = 5\\), since 5 is prime.", "x = 5"),
    ("The answer is:\n\n\\[\n42\n\\]", "42"),
    ("The answer is\n$$42$$", "42"),
    ("The answer is 3.5 because it is half of 7.", "3.5"),
    ("The answer is 5 cm.", "5 cm"),
    ("The answer is $18.", "$18"),
    ("The answer to the question is 7.", "7"),
    ("The answer is 7. I hope this answer is helpful.", "7"),
    ("First, the answer is 6. Wait, the answer is 7.", "7"),
    ("The answer is therefore 7, which is odd.", "7"),
    ("Answer: Evelyn", "Evelyn"),
    ("The answer is (C) 42.", "(C) 42"),
    ("Reasoning.\n\n(C)", "C"),
    ("The answer is 5. \\boxed{6}", "6"),
    ("The answer is 5</think>The answer is 6", "6"),
    # Nothing stated.
    ("The answer is not obvious.", None),
    ("The answer is that we need to look at all cases.", None),
    ("To answer this, we add 5 and 6.", None),
    ("The answer is 5</think>I am not sure", None),
    ("It is 42.", None),
    ("", None),
]

NUMBERS = [
    (_BOX % "42", "42"),
    (_BOX % r"x = 3.5\text{ cm}^2", "3.5"),
    (_BOX % r"\frac{1}{3}", r"\frac{1}{3}"),
    (_BOX % r"1{,}234.5", "1,234.5"),
    (_BOX % r"6.02\times10^{23}", r"6.02\times10^{23}"),
    ("The answer is -5.", "-5"),
    ("The answer is −5.", "-5"),
    ("#### 1,234", "1,234"),
    ("She pays $18.50 in all.", "$18.50"),
    ("It takes 3 hours and then 4, so 7 in all.", "7"),
    ("Of 10 - 5 there is left 5", "5"),
    ("in mid-2020", "2020"),
    ("It weighs 3.2e-5 kg.", "3.2e-5"),
    ("It weighs 3.2 × 10⁻⁵ kg.", "3.2 × 10^-5"),
    ("7</think>It is 8", "8"),
    ("7</think>I do not know", None),
    ("H2O", None),
    ("none at all", None),
]

JSONS = [
    ('```json\n{"a": 1}\n```', '{"a": 1}'),
    ('First\n```json\n{"a": 1}\n```\nthen\n```json\n{"a": 2}\n```\nSee [3].', '{"a": 2}'),
    ('The result is {"a": [1, 2]} as asked.', '{"a": [1, 2]}'),
    ('{"a": 1} or rather {"a": 2}', '{"a": 2}'),
    ("so [1, 2, 3]", "[1, 2, 3]"),
    ('```\n[{"x": "}"}]\n```', '[{"x": "}"}]'),
    ('It\'s {"quote": "he said \\"no\\""} then', '{"quote": "he said \\"no\\""}'),
    ('{"a": {"b": {"c": null}}}', '{"a": {"b": {"c": null}}}'),
    ('{"a": 1}</think>{"a": 2}', '{"a": 2}'),
    ('{"a": 1}</think>nothing', None),
    ("{a: 1}", None),
    ('{"a": NaN}', None),
    ("42", None),
]

EXACTS = [
    (r"\boxed{Paris}", "Paris"),
    ("The answer is Paris.", "Paris"),
    ("**Answer:** New York", "New York"),
    ("Positive.", "Positive."),
    ("thought</think>\n\npositive\n", "positive"),
    ("First line.\nSecond line.", None),
]


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        (kind, *row)
        for kind, rows in {
            "choice": CHOICES,
            "auto": STATED,
            "number": NUMBERS,
            "json": JSONS,
            "exact": EXACTS,
        }.items()
        for row in rows
    ],
)
def test_each_kind_finds_its_answer(kind: str, text: str, answer: str | None) -> None:
    assert Grader(answers=AnswerOptions(kind)).extract(text) == answer
