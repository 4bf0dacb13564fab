r"""Answer kinds: what each finds in responses as models write them, and what it takes for equal."""

import json
import os
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from step_infer.client.answers import vote
from step_infer.client.deciding import Ballot, Open, StopRule, decide
from step_infer.client.grading import Grader
from step_infer.client.kinds import AnswerOptions
from step_infer.errors import InputError

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


EQUAL = [
    ("choice", "C", "(C) 42", True),
    ("choice", "C", "c)", True),
    ("choice", "C", "Option C", True),
    ("choice", "C", "D", False),
    ("choice", "C, A", "AC", True),
    ("choice", "C", "A, C", False),
    ("choice", "C", "42", None),
    ("auto", "C", "(C) 42", True),
    ("auto", "1/2", "0.5", True),
    ("exact", "New  York.", "new york", True),
    ("exact", "“Paris”", "paris", True),
    ("exact", "Straße", "STRASSE", True),
    ("exact", "ﬁne ２", "fine 2", True),
    ("exact", "-5", "5", False),
    ("exact", "C++", "C", False),
    ("exact", "?", "!", False),
    ("number", "0.3333333", "1/3", True),
    ("number", r"\frac{1}{3}", "1/3", True),
    ("number", "1999", "2000", False),
    ("number", "1,234", "1234.0", True),
    ("number", "5 km", "5", True),
    ("number", "-0", "0", True),
    ("number", "2 1/2", "2.5", True),
    ("number", "2½", "2.5", True),
    ("number", "3e5", r"3 \times 10^{5}", True),
    ("number", "3·10", "31", False),
    ("number", "4e-7", "1e-7", False),
    ("number", "3 and 5", "3", None),
    ("number", "1/0", "1", None),
    ("number", "five", "5", None),
    ("json", '{"a": 1, "b": 2}', '{"b": 2.0, "a": 1}', True),
    ("json", "[1, 2]", "[2, 1]", False),
    ("json", "[1e2]", "[100]", True),
    ("json", "[true]", "[1]", False),
    ("json", '["1"]', "[1]", False),
    ("json", '["a\\u00e9"]', '["aé"]', True),
    ("json", "[-0]", "[0.0]", True),
    ("json", "{", "[1]", None),
]


@pytest.mark.parametrize(("kind", "first", "second", "verdict"), EQUAL)
def test_each_kind_has_its_own_equality(
    kind: str, first: str, second: str, verdict: bool | None
) -> None:
    with Grader(answers=AnswerOptions(kind)) as grader:
        assert grader.equal(first, second) is verdict
        assert grader.equal(second, first) is verdict


@pytest.mark.parametrize(
    ("tolerance", "first", "second", "verdict"),
    [
        (0.01, "3.14", "3.15", True),
        ("0.01", "3.14", "3.1501", False),
        ("0.01", "100", "101", False),
        ("1%", "99", "100", True),
        ("1%", "98.9", "100", False),
        ("1%", "0", "0.001", False),
        (0, "0.1", "0.10", True),
        (0, "0.1", "0.1000000000000000000000001", False),
    ],
)
def test_a_tolerance_is_a_distance_or_a_part_of_the_larger(
    tolerance: float | str, first: str, second: str, verdict: bool
) -> None:
    grader = Grader(answers=AnswerOptions("number", tolerance=tolerance))
    assert grader.equal(first, second) is verdict
    assert grader.equal(second, first) is verdict


REGEX = [
    (r"Total: (\d+)", "Total: 4\nTotal: 5", "5"),
    (r"<answer>(.*?)</answer>", "<answer>4</answer> or <answer> 5</answer>", " 5"),
    (r"(?i)final\s+answer\W+(\pL+ \d)", "Final answer: **Größe 5**", "Größe 5"),
    (r"(?i)answer\s*(?:is|:)\s*\$?([-+]?[\d,]+(?:\.\d+)?)", "answer: $1,234.50", "1,234.50"),
    (r"\b([A-Z]{2,5}-\d{4})\b", "AB-1234 or ABC-9999", "ABC-9999"),
    (r"(.)", "x" * 251, None),
    (r"Total: (\d+)", "Total: 4</think>none", None),
    (r"a(b)?", "ab a", "b"),
]


@pytest.mark.parametrize(("pattern", "text", "answer"), REGEX)
def test_the_last_match_of_a_pattern_counts(pattern: str, text: str, answer: str | None) -> None:
    assert Grader(answers=AnswerOptions("regex", pattern)).extract(text) == answer


_ANSWERS = {
    AnswerOptions("choice"): ["C", "(C) 42", "c)", "D", "A, C", "AC", "42", ""],
    AnswerOptions("exact"): ["Paris", "paris.", " PARIS ", "Rome", "?", "", "..."],
    AnswerOptions("number", tolerance="10%"): [
        *("1", "1.0", "1.05", "1.1", "1.15", "1.2", "1.3", "0", "-1", "1/1", "1,000", "1e3"),
        *("x = 1.05", "none", ""),
    ],
    AnswerOptions("number", tolerance=0.5): ["1", "1.5", "2", "2.5", "3", "1.25", "15e-1", "-1"],
    AnswerOptions("json"): ["[1]", "[1.0]", "[ 1 ]", '{"a":1}', '{"a": 1e0}', "{", "[2]"],
    AnswerOptions("regex", "(x)"): ["a", "A.", "b", ""],
    AnswerOptions("auto"): ["C", "(C) 42", "5", "5 cm", "5 m", "50 mm", "1/2", "0.5", "Evelyn"],
}
_TWO_LISTS = st.sampled_from(list(_ANSWERS)).flatmap(
    lambda options: st.tuples(
        st.just(options),
        *2 * [st.lists(st.sampled_from(_ANSWERS[options]), max_size=10)],
    )
)


@settings(max_examples=300)
@given(_TWO_LISTS)
def test_bound_answers_are_in_one_group_whatever_others_come(
    drawn: tuple[AnswerOptions, list[str], list[str]],
) -> None:
    options, ended, later = drawn
    answers = ended + later
    grader = Grader(answers=options)
    groups = vote(answers, equal=grader.same(answers)).groups
    home = {voter: number for number, (_, _, voters) in enumerate(groups) for voter in voters}
    for first, second in combinations(range(len(answers)), 2):
        if grader.binding(answers[first]) == grader.binding(answers[second]):
            assert home[first] == home[second]
        if home[first] == home[second]:  # a chain of near numbers is no group
            assert grader.equal(answers[first], answers[second]) is True


@pytest.mark.parametrize("options", list(_ANSWERS))
def test_bound_answers_are_equal_to_the_same_others_both_ways_round(options: AnswerOptions) -> None:
    grader = Grader(answers=options)
    verdict = {pair: grader.equal(*pair) for pair in product(_ANSWERS[options], _ANSWERS[options])}
    for first, second in verdict:
        assert verdict[first, second] is verdict[second, first]
        if grader.binding(first) == grader.binding(second):
            assert verdict[first, second] is True
            for other in _ANSWERS[options]:
                if other not in (first, second):
                    assert verdict[first, other] is verdict[second, other]


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3)), min_size=1, max_size=8),
    st.lists(st.integers(0, 12), max_size=4),
)
def test_a_near_number_that_comes_late_takes_no_decided_vote_back(
    ended: list[tuple[int, int]], later: list[int]
) -> None:
    grader = Grader(answers=AnswerOptions("number", tolerance=1))

    def equal(first: str, second: str) -> bool:
        return grader.equal(first, second) is True

    ballots = [Ballot(n, str(value), float(weight)) for n, (value, weight) in enumerate(ended)]
    others = [Open(len(ended) + n, 1.0) for n in range(len(later))]
    decision = decide(ballots, others, StopRule(), equal, grader.binding)
    if decision is not None:
        answers = [ballot.answer for ballot in ballots] + [str(value) for value in later]
        weights = [ballot.weight for ballot in ballots] + [1.0] * len(later)
        outcome = vote(answers, weights, equal=grader.same(answers))
        assert outcome.answer is not None
        assert equal(outcome.answer, decision.answer)


def test_kinds_without_workers_start_no_process() -> None:
    for options, answers in _ANSWERS.items():
        if options.name != "auto":
            with Grader(answers=options) as grader:
                grader.warm_up()
                grader.submit(answers[0], answers)
                grader.poll()
                assert grader.pending(answers) == set()
                assert grader._pool is None


_DEEP = 50_000
"""Where something grows with the square of its length, this takes minutes."""
HOSTILE = [
    "[" * _DEEP,
    "[" * _DEEP + "]" * _DEEP,
    '{"a":' * _DEEP,
    '{"a":' * 150 + "1" + "}" * 150,
    "[" * 900 + "1," * _DEEP,
    "[[1,[2,[3," * 10_000,
    '["' + "x" * 2 * _DEEP,
    "[" + "9" * 2 * _DEEP + "]",
    "[1e" + "9" * 2 * _DEEP + "]",
    "9" * 2 * _DEEP,
    "1,000" * 20_000,
    "1/" * _DEEP,
    "1e999999 " * 10_000,
    "1e" + "9" * _DEEP,
    r"\frac{1}{" * 10_000,
    "answer" * 20_000,
    "the answer is " * 8_000,
    "the answer is\n" * 8_000,
    "answer to " * 10_000,
    "answer" + " " * 2 * _DEEP,
    "#### " * 20_000,
    "**answer**\n" * 10_000,
    "answer: $" * 10_000,
    "answer: (" * 10_000,
    "(A) " * 20_000,
    "A, " * 30_000,
    r"\boxed{" * 10_000,
    "`" * _DEEP,
    "```json\n" * 10_000,
    "*" * 2 * _DEEP,
    "\n" * 2 * _DEEP,
    "é½⁵" * 30_000,
    "\ud800 answer: \ud800",
    "\x00answer: \x00",
]


@pytest.mark.parametrize("kind", ["auto", "choice", "exact", "number", "json"])
def test_hostile_texts_are_read_and_compared_without_failing(kind: str) -> None:
    # What does not end is stopped by the time limit of a test.
    grader = Grader(answers=AnswerOptions(kind))
    for text in HOSTILE:
        answer = grader.extract(text, None)
        assert answer is None or isinstance(answer, str)
        key = grader.binding(text)
        assert key == grader.binding(f" {text}\n")


def test_json_that_lies_too_deep_or_is_no_finite_number_is_no_answer() -> None:
    grader = Grader(answers=AnswerOptions("json"))
    assert grader.extract('{"ok": 1} then ' + "[" * 200 + "]" * 200) is not None
    assert grader.equal("[" * 200 + "]" * 200, "[]") is None
    assert grader.equal("[" * 90 + "]" * 90, "[]") is False
    digits = "[" + "9" * 5000 + "]"
    assert grader.equal(digits, digits.replace("]", ".0]")) is True


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(?:a|aa)+(b)",
        r"((?:a?){200}a{200}x)|.",
        r"(?:[a-c]{1,30}[ab]{1,30}c?){1,3}x|(.)",
        r"a.*b|(a)",
        r"(?:(?:a|b|c)*a(?:a|b|c){15}d)|(.)",
    ],
)
def test_a_pattern_that_would_stop_a_backtracking_engine_ends(pattern: str) -> None:
    found = Grader(answers=AnswerOptions("regex", pattern)).extract("a" * 100_000, None)
    assert found is None or set(found) == {"a"}


OWN = '''
import os, sys, time

class Last:
    """The last word; equal whatever its first letter's case."""

    def extract(self, text):
        print("noise on standard output")
        if "hang" in text:
            time.sleep(600)
        if "die" in text:
            os._exit(1)
        if "raise" in text:
            raise ValueError(text)
        if "ask" in text:
            return input()
        if "half" in text:
            return "\\ud800 7"
        return text.split()[-1] if text.split() else None

    def equal(self, first, second):
        if "slow" in first + second:
            time.sleep(600)
        return first.lower() == second.lower() or (first, second) == ("a", "b")

def count(text):
    return len(text.split())

nothing = 5
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_answers.py").write_text(OWN)
    (tmp_path / "broken_answers.py").write_text("import nothing_of_that_name")
    (tmp_path / "dying_answers.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))


@pytest.mark.usefixtures("own")
def test_a_users_own_functions_find_and_compare_answers() -> None:
    with Grader(answers=AnswerOptions("own_answers.Last")) as grader:
        assert grader.extract("no</think>it is Yes") == "Yes"
        assert grader.extract("") is None
        assert grader.extract("ask") is None  # there is nobody to be asked
        assert grader.extract("half a surrogate pair") == "? 7"
        assert grader.equal("Yes", "yes") is True
        assert grader.equal("a", "b") is False  # only one way round
        answers = ["yes", "YES", "no", "Yes"]
        assert vote(answers, equal=grader.same(answers)).groups[0] == ("YES", 3.0, (0, 1, 3))
    with Grader(answers=AnswerOptions("own_answers.count")) as grader:
        assert grader.extract("one two three") == "3"
        assert grader.equal("3", "3.0") is False


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("bad", ["hang", "die", "raise"])
def test_a_users_function_that_hangs_or_dies_costs_one_answer(bad: str) -> None:
    with Grader(timeout_s=300.0, answers=AnswerOptions("own_answers.Last")) as grader:
        # What is right has all the time that a slow machine needs; what hangs has not.
        patience = grader._pool._timeout_s
        grader._pool._timeout_s = 0.5 if bad == "hang" else patience
        assert grader.extract(f"so {bad}") is None
        grader._pool._timeout_s = patience
        assert grader.extract("so fine") == "fine"
        grader._pool._timeout_s = 0.5
        assert grader.equal("slow", "fine") is None
        grader._pool._timeout_s = patience
        assert grader.equal("Fine", "fine") is True


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no_such_module.extract", "No module named 'no_such_module'"),
        ("own_answers.no_such_name", "no attribute 'no_such_name'"),
        ("own_answers.nothing", "has no function extract"),
        ("broken_answers.extract", "No module named 'nothing_of_that_name'"),
        ("dying_answers.extract", "ended at its start"),
    ],
)
def test_a_users_function_that_cannot_be_loaded_is_refused_first(path: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"answer kind at {path}.*found .*{reason}.*Hint: "):
        Grader(answers=AnswerOptions(path)).__enter__()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "numbr"}, "answer kind out of math, .*found 'numbr'"),
        ({"kind": "a..b"}, "answer kind out of math, .*found 'a..b'"),
        ({"kind": "regex"}, "pattern for the answer kind regex, found none"),
        ({"kind": "math", "pattern": "(a)"}, "answer kind regex beside a pattern, found 'math'"),
        ({"pattern": "(a)"}, "answer kind regex beside a pattern, found 'math'"),
        ({"kind": "regex", "pattern": "(a"}, r"in the syntax of RE2, found '\(a': missing"),
        ({"kind": "regex", "pattern": "(?=a)(b)"}, "syntax of RE2.*look-around"),
        ({"kind": "regex", "pattern": "a"}, "pattern with one group, found 0 in 'a'"),
        ({"kind": "regex", "pattern": "(a)(b)"}, "pattern with one group, found 2"),
        ({"kind": "regex", "pattern": "(a)" + "b" * 200}, "at most 200 characters, found 203"),
        ({"kind": "regex", "pattern": "((?:[a-c]{1,200}[ab]{1,99}c?){1,3})"}, "pattern too large"),
        ({"kind": "choice", "tolerance": 1}, "answer kind number beside a tolerance"),
        ({"kind": "number", "tolerance": -1}, "tolerance as a number from 0 on.*found '-1'"),
        ({"kind": "number", "tolerance": "100%"}, "below 100%, found '100%'"),
        ({"kind": "number", "tolerance": "nan"}, "found 'nan'"),
        ({"kind": "number", "tolerance": "one"}, "found 'one'"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AnswerOptions(**options)


def test_a_manifest_keeps_the_options_but_never_names_code_that_is_run() -> None:
    for options in _ANSWERS:
        kept = json.loads(json.dumps(options.settings()))
        assert AnswerOptions.from_settings(kept) == options
    assert AnswerOptions.from_settings({}).name == "math"
    assert AnswerOptions().settings() == AnswerOptions("math").settings()
    own = AnswerOptions("os.system").settings()
    assert AnswerOptions.from_settings(own) == AnswerOptions("exact")


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ("choice", AnswerOptions("choice")),
        ({}, AnswerOptions()),
        ({"kind": "number", "tolerance": 0.1}, AnswerOptions("number", tolerance=0.1)),
        ({"kind": "regex", "pattern": "(a)"}, AnswerOptions("regex", "(a)")),
    ],
)
def test_a_client_names_a_kind_or_its_options(values: object, options: AnswerOptions) -> None:
    assert AnswerOptions.from_values(values) == options


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("os.system", "answer kind out of math, .*found 'os.system'"),
        ({"kind": "os.system"}, "found 'os.system'"),
        ({"kind": 5}, "an answer kind out of math, .*, found 5"),
        ({"kind": "number", "tolerance": True}, "with a text or a number as tolerance, found True"),
        ({"kind": "number", "tolerance": [1]}, "as tolerance"),
        ({"kind": "regex", "pattern": "(a"}, "syntax of RE2"),
        ({"kinds": "math"}, "an object of kind, pattern, tolerance, found"),
        (["math"], "found \\['math'\\]"),
        (None, "found None"),
    ],
)
def test_a_client_that_asks_for_anything_else_is_refused(values: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AnswerOptions.from_values(values)
