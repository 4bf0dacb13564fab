"""Which answer kind, and its settings."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from step_infer.client.kinds.choice import ChoiceKind
from step_infer.client.kinds.function import FunctionKind
from step_infer.client.kinds.json import JsonKind
from step_infer.client.kinds.kind import AnswerKind
from step_infer.client.kinds.math import AutoKind, MathKind
from step_infer.client.kinds.number import NumberKind
from step_infer.client.kinds.text import ExactKind, RegexKind
from step_infer.errors import InputError

MATH, CHOICE, EXACT, NUMBER = "math", "choice", "exact", "number"
JSON, REGEX, AUTO = "json", "regex", "auto"
KINDS = (MATH, AUTO, CHOICE, EXACT, NUMBER, JSON, REGEX)
_SETTINGS = "answers."


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are found in responses, and when two are the same.

    Raises:
        InputError: there is no such kind, or a setting is missing, bad, or of another kind.
    """

    kind: str | None = None
    r"""math: the last \boxed{}, equal as mathematics; auto: the same, or else what is stated as
    in "The answer is 42", "#### 42" and "Answer: (C)"; choice: letters; exact: text, but for case,
    spaces and punctuation at its ends; number: within --answers.tolerance; json: the last object or
    array; regex: what --answers.pattern finds; or the dotted path of a function of your own. None
    given, that of the benchmark, else math."""
    pattern: str | None = None
    r"""For regex: a pattern with one group, in the syntax of RE2, such as 'Total: (\d+)'; its last
    match counts."""
    tolerance: float | str | None = None
    """For number: how far apart equal numbers may be, such as 0.01, or, with a percent sign, in
    parts of the larger one, such as 1%; none given, 0.0001%."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            is_tolerance = name == "tolerance"
            kinds = str | float | int | None if is_tolerance else str | None
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise InputError(
                    f"Expected an answer kind with a text{' or a number' * is_tolerance} as "
                    f"{name}, found {value!r:.60}. "
                    "Hint: such as {'kind': 'number', 'tolerance': '1%'}."
                )
        kind = self.name
        if kind not in KINDS and not self.runs_code:
            raise InputError(
                f"Expected an answer kind out of {', '.join(KINDS)}, found {kind!r:.60}. "
                "Hint: the dotted path of a function of your own is one too."
            )
        if self.pattern is None and kind == REGEX:
            raise InputError(
                "Expected an answer pattern for the answer kind regex, found none. "
                r"Hint: such as 'Total: (\d+)'."
            )
        for setting, wanted in (("pattern", REGEX), ("tolerance", NUMBER)):
            if getattr(self, setting) is not None and kind != wanted:
                raise InputError(
                    f"Expected an answer kind {wanted} beside a {setting}, found {kind!r:.60}. "
                    f"Hint: choose that kind, or leave the {setting} out."
                )
        if not self.runs_code:
            find_kind(self)

    @property
    def name(self) -> str:
        """The kind; math where none is given."""
        return MATH if self.kind is None else self.kind

    @property
    def runs_code(self) -> bool:
        """Whether the kind is a user's own code, which no client may name."""
        parts = self.name.split(".")
        return len(parts) > 1 and all(part.isidentifier() for part in parts)

    def with_default(self, kind: str) -> Self:
        """Return the same, but for the kind where none is given.

        Raises:
            InputError: a setting is of another kind.
        """
        return self if self.kind is not None else replace(self, kind=kind)

    def settings(self) -> dict[str, Any]:
        """Return what a manifest keeps, flat and JSON-ready."""
        return {f"{_SETTINGS}{name}": value for name, value in asdict(self).items()} | {
            f"{_SETTINGS}kind": self.name
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Return the options that a manifest's settings hold; math where they hold none.

        A file may come from anyone: code that it names is not run, and answers that were found so
        are compared as text.
        """
        names = ("kind", "pattern", "tolerance")
        found = {name: settings.get(f"{_SETTINGS}{name}") for name in names}
        return cls(EXACT) if "." in str(found["kind"]) else cls(**found)

    @classmethod
    def from_values(cls, values: object, may_run_code: bool = False) -> Self:
        """Return the options that JSON holds: a kind's name, or an object.

        Args:
            values: what was read from it.
            may_run_code: whether it is from who runs the program, not from a client.

        Raises:
            InputError: they cannot be used, or name code that they may not.
        """
        given = {"kind": values} if isinstance(values, str) else values
        names = ("kind", "pattern", "tolerance")
        if not isinstance(given, Mapping) or not given.keys() <= set(names):
            raise InputError(
                f"Expected an answer kind as a text, or as an object of {', '.join(names)}, "
                f"found {given!r:.60}. Hint: such as {{'kind': 'number', 'tolerance': '1%'}}."
            )
        if not may_run_code and (given.get("kind") or MATH) not in KINDS:
            raise InputError(
                f"Expected an answer kind out of {', '.join(KINDS)}, found "
                f"{given['kind']!r:.60}. Hint: leave it out for the server's own."
            )
        return cls(**given)


def find_kind(options: AnswerOptions) -> AnswerKind:
    """Return the kind that options name.

    Raises:
        InputError: its pattern or tolerance cannot be used.
    """
    if options.runs_code:
        return FunctionKind(options.name)
    if options.name == REGEX:
        assert options.pattern is not None
        return RegexKind(options.pattern)
    if options.name == NUMBER:
        return NumberKind(options.tolerance)
    plain: dict[str, type[AnswerKind]] = {
        MATH: MathKind,
        AUTO: AutoKind,
        CHOICE: ChoiceKind,
        EXACT: ExactKind,
        JSON: JsonKind,
    }
    return plain[options.name]()
