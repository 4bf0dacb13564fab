r"""Splits answers into tokens: LaTeX, and the plain forms that models mix with it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from step_infer.client.canonical.field import NotExact
from step_infer.client.canonical.markup import group_end
from step_infer.client.canonical.units import is_unit

FUNCTION_NAMES = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "lg", "exp", "sinh", "cosh", "cis")
    + ("arcsin", "arccos", "arctan", "asin", "acos", "atan")
)
OF_SEVERAL = frozenset(("gcd", "lcm", "max", "min"))
"""Functions of a list of numbers."""


@dataclass(frozen=True)
class Token:
    """A piece of an expression."""

    kind: str
    """number, symbol, command, text, or mark (a character that is itself)."""
    text: str
    start: int
    end: int
    number: Fraction | None = None

    def __repr__(self) -> str:
        return f"{self.kind}:{self.text}"


_ELLIPSIS = r"(?:\.\.\.|\\(?:l|c)?dots[a-z]?)"
_NUMBER = re.compile(
    rf"""
    (?P<thousands>\d{{1,3}}(?:,\d{{3}})+(?!\d)(?:\.\d+)?(?!,\d)
        |\d{{1,2}}(?:,\d{{2}})+,\d{{3}}(?!\d)(?:\.\d+)?(?!,\d))
    |(?P<spaced>\d{{1,3}}(?:[\ ']\d{{3}})+(?!\d)(?:\.\d+)?(?!\ *[/\d]))
    |(?P<dotted>\d{{1,3}}(?:\.\d{{3}}){{2,}}(?![\d.]))
    |(?P<whole>\d*)\.(?P<fixed>\d*)
        (?:\\(?:overline|bar|overbar|dot)\s*\{{(?P<period>\d+)\}}
            (?:(?P<inner>\d*)\\dot\s*\{{(?P<last>\d)\}})?
        |\\(?:overline|bar)\s*(?P<digit>\d)
        |\((?P<bracket>\d+)\))
    |(?P<cut>\d*\.\d+)\s*{_ELLIPSIS}
    |(?P<decimal>(?:\d+\.\d+|\d+\.(?!\d)(?!\.)|\.\d+|\d+))(?:[eE](?P<exponent>[+-]?\d{{1,6}})(?![A-Za-z\d]))?
    """,
    re.VERBOSE,
)
_POINT = re.compile(r"\.(?:\d|\\(?:overline|bar|dot)|\(\d+\))")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_LETTERS = re.compile(r"[A-Za-z]+")
_MARKS = {**dict.fromkeys(("le", "leq", "leqslant", "leqq"), "<="),
          **dict.fromkeys(("ge", "geq", "geqslant", "geqq"), ">="),
          "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "cdot": "*", "times": "*", "div": "/",
          "ast": "*", "lbrace": r"\{", "rbrace": r"\}", "vert": "|", "lvert": "|", "rvert": "|",
          "mid": "|", "langle": "(", "rangle": ")", "lbrack": "[", "rbrack": "]", "colon": ":",
          "lparen": "(", "rparen": ")", "implies": "=>", "Rightarrow": "=>", "lor": "or",
          "land": "and", "vee": "or", "wedge": "and", "equiv": "=="}  # fmt: skip
_WORDS = frozenset((
    "yes", "no", "not", "red", "odd", "all", "any", "and", "or", "the", "one", "two", "six",
    "ten", "day", "may", "sun", "mon", "tue", "wed", "thu", "fri", "sat", "for", "are", "is",
    "it", "of", "if", "in", "to", "an", "at", "by", "on", "as", "up", "so", "we", "he", "she",
    "her", "his", "boy", "dog", "cat", "cow", "pen", "box", "cup", "hat", "out", "low", "hot",
    "few", "new", "old", "top", "true", "sq", "cu", "per", "st", "nd", "rd", "th",
))  # fmt: skip
_UNITS_OR_FUNCTIONS = ("sec", "min")
"""Behind a number, at the end, they are units."""
_SPELLED_COMMANDS = {"pi", "sqrt", "infty", "infinity", "inf", "theta"}


def _tokenise_word(word: str, after_number: bool) -> str:
    """Return what a run of letters is: a command, text, or symbols side by side."""
    if word in FUNCTION_NAMES or word in _SPELLED_COMMANDS or word in OF_SEVERAL or word == "mod":
        return "command"
    if len(word) == 1:
        return "symbol"
    if len(word) > 3 or word.lower() in _WORDS or (after_number and is_unit(word)):
        return "text"
    if len(word) > 1 and word[0].isupper() and (word[1:].islower() or word.isupper()):
        return "text"
    return "symbols"


def tokenise(text: str) -> list[Token]:
    r"""Split an expression into tokens.

    Raises:
        NotExact: a character that means nothing here.
    """
    tokens: list[Token] = []
    position, depth = 0, 0
    while position < len(text):
        character = text[position]
        start = position
        if character.isspace():
            position += 1
            continue
        if character.isdigit() or _POINT.match(text, position):
            token = _number(text, position, depth == 0, _digit_only(tokens))
            tokens.append(token)
            position = token.end
            continue
        if text.startswith(r"\text{", position):
            end = group_end(text, position + 5)
            if end < 0:
                raise NotExact("an open text")
            content = text[position + 6 : end].strip()
            position = end + 1
            if content in _UNITS_OR_FUNCTIONS and tokens and not text[position:].strip():
                tokens.append(Token("text", content, start, position))
            else:
                tokens += _text_tokens(content, start, position)
            continue
        command = _COMMAND.match(text, position)
        if command is not None:
            position = command.end()
            name = command[1]
            mark = _MARKS.get(name)
            tokens.append(Token("mark" if mark else "command", mark or name, start, position))
            depth += (mark in ("(", "[", r"\{")) - (mark in (")", "]", r"\}"))
            continue
        if character.isascii() and character.isalpha():
            word = _LETTERS.match(text, position)
            assert word is not None
            kind = _tokenise_word(word[0], _ends_value(tokens, text[:position]))
            if word[0] in _UNITS_OR_FUNCTIONS and not text[word.end() :].strip():
                kind = "text" if tokens else kind
            if kind == "symbols":
                for offset, letter in enumerate(word[0]):
                    at = position + offset
                    tokens.append(Token("symbol", letter, at, at + 1))
            elif word[0] in ("and", "or"):
                tokens.append(Token("mark", word[0], start, word.end()))
            else:
                tokens.append(Token(kind, word[0], start, word.end()))
            position = word.end()
            continue
        pair = text[position : position + 2]
        if pair == "!=" and tokens and tokens[-1].kind == "number":
            pair = ""  # "7!=5040"
        if pair in (r"\{", r"\}", r"\|", r"\$", r"\\", "<=", ">=", "!=", "=>", "==", "**"):
            position += 2
            mark = {r"\|": "||", "**": "^", r"\\": "newline"}.get(pair, pair)
        elif character in "+-*/^_=<>()[]{}|,;:!'%&." or character in "$£€¥₹¢":
            position += 1
            mark = character
        else:
            raise NotExact(f"the character {character!r}")
        depth += (mark in ("(", "[", r"\{")) - (mark in (")", "]", r"\}"))
        tokens.append(Token("mark", mark, start, position))
    return tokens


def _ends_value(tokens: Sequence[Token], before: str) -> bool:
    """Return whether a unit may follow: a number, or any value and a space."""
    if not tokens:
        return False
    last = tokens[-1]
    if last.kind == "number":
        return True
    ends = last.kind == "symbol" or last.text in (")", "}", "pi")
    return ends and before[-1:].isspace()


def _text_tokens(content: str, start: int, end: int) -> list[Token]:
    r"""Return the tokens of a \text{}: its words or, where it holds a number or symbol, that."""
    if content == "":
        return []
    if content in ("and", "or", ",", ";", "but", "&", ", and", ", or", "and/or"):
        mark = {"but": "and", "&": "and"}.get(content, content.strip(", ") or ",")
        return [Token("mark", "or" if mark == "and/or" else mark, start, end)]
    if content in ("£", "€", "¥", "₹", "¢", "%", r"\$"):
        return [Token("mark", content, start, end)]
    if content in FUNCTION_NAMES or content in OF_SEVERAL or content in ("mod", "pi"):
        return [Token("command", content, start, end)]
    if len(content) == 1 and content.isascii() and content.isalpha():
        # Behind a number a letter of text is a unit: "5 \text{ m}".
        return [Token("letter", content, start, end)]
    if re.fullmatch(r"[-\d.,]+", content) and any(map(str.isdigit, content)):
        return [
            Token(token.kind, token.text, start, end, token.number) for token in tokenise(content)
        ]
    return [Token("text", content, start, end)]


def _digit_only(tokens: Sequence[Token]) -> bool:
    r"""Return whether the next number is an argument of \frac without braces: "\frac12"."""
    if not tokens:
        return False
    last = tokens[-1]
    if last.kind == "command":
        return last.text in ("frac", "dfrac", "tfrac", "cfrac")
    before = tokens[-2] if len(tokens) > 1 else None
    return (
        last.kind == "number"
        and before is not None
        and before.kind == "command"
        and before.text in ("frac", "dfrac", "tfrac", "cfrac")
        and len(last.text) == 1
    )


def _number(text: str, position: int, top: bool, digit_only: bool) -> Token:
    if digit_only:
        return Token(
            "number", text[position], position, position + 1, Fraction(int(text[position]))
        )
    found = _NUMBER.match(text, position)
    if found is None:
        raise NotExact("an odd number")
    if (found["thousands"] and not top) or (
        found["thousands"] and len(found["thousands"].partition(",")[0]) and found[0][0] == "0"
    ):
        plain = re.compile(r"\d+").match(text, position)
        assert plain is not None
        return Token("number", plain[0], position, plain.end(), Fraction(int(plain[0])))
    written = found[0]
    if len(written) > 1500:
        raise NotExact("a number of too many digits")
    if found["thousands"] or found["spaced"] or found["dotted"]:
        number = Fraction(re.sub("[, '.]" if found["dotted"] else "[, ']", "", written))
    elif found["cut"]:
        number = _repeated(found["cut"])
    elif found["decimal"]:
        number = Fraction(found["decimal"].rstrip(".") or "0")
        if found["exponent"]:
            exponent = int(found["exponent"])
            if abs(exponent) > 1500:
                raise NotExact("a number of too many digits")
            number *= Fraction(10) ** exponent
    else:
        period = found["period"] or found["digit"] or found["bracket"]
        if found["last"]:
            period += (found["inner"] or "") + found["last"]
        number = _repeating(found["whole"] or "0", found["fixed"] or "", period)
    return Token("number", written, position, found.end(), number)


def _repeating(whole_part: str, fixed: str, period: str) -> Fraction:
    scale = 10 ** len(fixed)
    start = Fraction(int(whole_part + fixed), scale)
    return start + Fraction(int(period), (10 ** len(period) - 1) * scale)


def _repeated(written: str) -> Fraction:
    """Return what "0.1666..." means: the shortest period that stands twice at its end goes on."""
    whole_part, _, digits = written.partition(".")
    for length in range(1, len(digits) // 2 + 1):
        period = digits[-length:]
        if digits.endswith(period * 2):
            while digits.endswith(period):
                digits = digits[:-length]
            return _repeating(whole_part or "0", digits, period)
    raise NotExact("a number that goes on unknown")
