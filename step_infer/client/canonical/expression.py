r"""Reads expressions in LaTeX, and in the plain forms that models mix with it, into exact values."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb, gcd, lcm
from typing import Any

from step_infer.client.canonical import exact
from step_infer.client.canonical.exact import NotExact, Value, whole
from step_infer.client.canonical.markup import group_end
from step_infer.client.canonical.units import is_unit


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
_MARKS = {"le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=",
          "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "cdot": "*", "times": "*", "div": "/",
          "ast": "*", "lbrace": r"\{", "rbrace": r"\}", "vert": "|", "lvert": "|", "rvert": "|",
          "mid": "|", "langle": "(", "rangle": ")", "lbrack": "[", "rbrack": "]", "colon": ":",
          "lparen": "(", "rparen": ")", "implies": "=>", "Rightarrow": "=>", "lor": "or",
          "land": "and", "vee": "or", "wedge": "and", "equiv": "=="}  # fmt: skip
_GREEK = frozenset(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "vartheta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "rho",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "varphi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Phi",
        "Psi",
        "Omega",
        "ell",
        "hbar",
    ]
)
_WORDS = frozenset(
    [
        "yes",
        "no",
        "not",
        "red",
        "odd",
        "all",
        "any",
        "and",
        "or",
        "the",
        "one",
        "two",
        "six",
        "ten",
        "day",
        "may",
        "sun",
        "mon",
        "tue",
        "wed",
        "thu",
        "fri",
        "sat",
        "for",
        "are",
        "is",
        "it",
        "of",
        "if",
        "in",
        "to",
        "an",
        "at",
        "by",
        "on",
        "as",
        "up",
        "so",
        "we",
        "he",
        "she",
        "her",
        "his",
        "boy",
        "dog",
        "cat",
        "cow",
        "pen",
        "box",
        "cup",
        "hat",
        "out",
        "low",
        "hot",
        "few",
        "new",
        "old",
        "top",
        "true",
        "sq",
        "cu",
    ]
)
_SPELLED_COMMANDS = {"pi", "sqrt", "infty", "infinity", "inf", "theta"}


def _tokenise_word(word: str, after_number: bool) -> str:
    """Return what a run of letters is: a command, text, or symbols side by side."""
    if word in FUNCTIONS or word in _SPELLED_COMMANDS or word in _OF_SEVERAL or word == "mod":
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
    """Return the tokens of a \\text{}: a word's or, where it holds a number or symbol, that."""
    if content == "":
        return []
    if content in ("and", "or", ",", ";", "but", "&", ", and", ", or", "and/or"):
        mark = {"but": "and", "&": "and"}.get(content, content.strip(", ") or ",")
        return [Token("mark", "or" if mark == "and/or" else mark, start, end)]
    if content in ("£", "€", "¥", "₹", "¢", "%", r"\$"):
        return [Token("mark", content, start, end)]
    if content in FUNCTIONS or content in _OF_SEVERAL or content in ("mod", "pi"):
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
    if found["thousands"] or found["spaced"]:
        number = Fraction(re.sub("[, ']", "", written))
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
    """Return the number that "0.1666..." means: the shortest period that stands twice at its end."""
    whole_part, _, digits = written.partition(".")
    for length in range(1, len(digits) // 2 + 1):
        period = digits[-length:]
        if digits.endswith(period * 2):
            while digits.endswith(period):
                digits = digits[:-length]
            return _repeating(whole_part or "0", digits, period)
    raise NotExact("a number that goes on unknown")


def _log(value: Value) -> Value:
    return exact.log(value)


def _hyperbolic(sign: int) -> Callable[[Value], Value]:
    def function(x: Value) -> Value:
        up, down = exact.power(exact.E, x), exact.power(exact.E, -x)
        return (up + whole(sign) * down) / whole(2)

    return function


def _unknown(name: str) -> Callable[[Value], Value]:
    import cmath

    number = {
        "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan,
        "asin": cmath.asin, "acos": cmath.acos, "atan": cmath.atan,
    }.get(name)  # fmt: skip
    short = name.replace("arc", "a")
    return lambda x: exact.atom(short, x, number=number)


def _tangent(x: Value) -> Value:
    return exact.sine(x) / exact.cosine(x)


FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    "sin": exact.sine,
    "cos": exact.cosine,
    "tan": _tangent,
    "cot": lambda x: exact.cosine(x) / exact.sine(x),
    "sec": lambda x: whole(1) / exact.cosine(x),
    "csc": lambda x: whole(1) / exact.sine(x),
    "ln": _log,
    "log": _log,
    "lg": lambda x: exact.log(x, whole(10)),
    "exp": lambda x: exact.power(exact.E, x),
    "sinh": _hyperbolic(-1),
    "cosh": _hyperbolic(1),
    "cis": lambda x: exact.cosine(x) + exact.I * exact.sine(x),
    **{name: _unknown(name) for name in ("arcsin", "arccos", "arctan", "asin", "acos", "atan")},
}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_TAKES_ANGLE = frozenset(("sin", "cos", "tan", "cot", "sec", "csc", "cis"))
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_DEEPEST = 50
_MOST_TERMS = 100
_MOST_STEPS = 3000
"""Tokens read for one expression; a sum reads its term many times."""
_OF_SEVERAL: dict[str, Callable[..., Any]] = {"gcd": gcd, "lcm": lcm, "max": max, "min": min}


def read_value(tokens: Sequence[Token], plus: int = 1) -> tuple[Value, bool]:
    """Return the value of an expression, and whether it is written in degrees.

    Args:
        tokens: the expression, all of it.
        plus: 1 or -1, the sign that stands for "plus or minus".

    Raises:
        NotExact: it is no expression, or one that is not understood.
    """
    parser = _Parser(tokens, plus)
    value = parser.sum()
    if parser.position < len(tokens):
        raise NotExact("more than an expression")
    return value, parser.degrees


class _Parser:
    def __init__(self, tokens: Sequence[Token], plus: int) -> None:
        self.tokens, self.plus = tokens, plus
        self.position, self.depth, self.steps = 0, 0, 0
        self.angle = False
        self.degrees = False
        self.bound: dict[str, Value] = {}

    def peek(self, ahead: int = 0) -> Token | None:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else None

    def at(self, *marks: str) -> bool:
        token = self.peek()
        return token is not None and token.kind == "mark" and token.text in marks

    def at_command(self, *names: str) -> bool:
        token = self.peek()
        return token is not None and token.kind == "command" and token.text in names

    def take(self) -> Token:
        token = self.peek()
        if token is None:
            raise NotExact("an expression that ends too early")
        self.position += 1
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise NotExact("too long")
        return token

    def expect(self, mark: str) -> None:
        if not self.at(mark):
            raise NotExact(f"no {mark}")
        self.position += 1

    def sign(self) -> int | None:
        if self.at("+", "-"):
            return 1 if self.take().text == "+" else -1
        if self.at_command("pm", "mp"):
            return self.plus if self.take().text == "pm" else -self.plus
        return None

    def sum(self) -> Value:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NotExact("too deep")
        sign = self.sign()
        total = self.term()
        if sign == -1:
            total = -total
        while (sign := self.sign()) is not None:
            term = self.term()
            total = total + term if sign > 0 else total - term
        self.depth -= 1
        return total

    def term(self) -> Value:
        value = self.signed_factor()
        while True:
            if self.at("*"):
                self.take()
                value = value * self.signed_factor()
            elif self.at("/"):
                self.take()
                value = value / self.signed_factor()
            elif self.at_command("bmod", "mod"):
                self.take()
                modulus = self.signed_factor()
                if modulus.exact is None or modulus.exact.denominator != 1:
                    raise NotExact("an unknown modulus")
                value = exact.remainder(value, int(modulus.exact))
            elif self.starts_factor():
                value = value * self.factor()
            else:
                return value

    def signed_factor(self) -> Value:
        sign = self.sign()
        value = self.factor()
        return -value if sign == -1 else value

    def starts_factor(self) -> bool:
        token = self.peek()
        if token is None or token.kind == "text":
            return False
        if token.kind == "mark":
            return token.text in ("(", "[", "{")
        if token.kind == "number":
            # Two numbers side by side are no product.
            before = self.tokens[self.position - 1]
            return before.kind != "number" or before.text == ""
        return token.kind != "command" or token.text not in (
            "pm", "mp", "bmod", "mod", "rfloor", "rceil", "cup", "cap", "in", "infty",
        )  # fmt: skip

    def factor(self) -> Value:
        value = self.base()
        while True:
            if self.at("!"):
                self.take()
                if self.at("!"):
                    raise NotExact("a double factorial")
                value = exact.factorial(value)
            elif self.at("^"):
                self.take()
                if self.is_degree():
                    if self.angle:
                        value = value * exact.PI / whole(180)
                    else:
                        self.degrees = True
                else:
                    value = exact.power(value, self.exponent())
            else:
                return value

    def is_degree(self) -> bool:
        for length in (1, 3):
            texts = [token.text for token in self.tokens[self.position : self.position + length]]
            if texts in (["circ"], ["{", "circ", "}"]):
                self.position += length
                return True
        return False

    def exponent(self) -> Value:
        sign = self.sign()
        value = self.base()
        while self.at("!"):
            self.take()
            value = exact.factorial(value)
        if self.at("^"):  # written without braces: 2^3^4
            self.take()
            value = exact.power(value, self.exponent())
        return -value if sign == -1 else value

    def group(self, opening: str = "{") -> Value:
        self.expect(opening)
        value = self.sum()
        self.expect(_CLOSING[opening])
        return value

    def argument(self) -> Value:
        r"""Read what a command such as \frac takes: a group or one token."""
        if self.at("{"):
            return self.group()
        if self.at("("):
            return self.group("(")
        return self.base()

    def base(self) -> Value:
        token = self.take()
        if token.kind == "number":
            assert token.number is not None
            return self.mixed(token) or Value(token.number)
        if token.kind in ("symbol", "letter"):
            return self.symbol(token.text)
        if token.kind == "mark":
            if token.text in ("(", "[", "{"):
                value = self.sum()
                self.expect(_CLOSING[token.text])
                return value
            if token.text == "|":
                value = self.sum()
                self.expect("|")
                return exact.absolute(value)
        if token.kind == "command":
            return self.command(token.text)
        raise NotExact(f"{token.text!r} in an expression")

    def mixed(self, token: Token) -> Value | None:
        """Return a mixed number, where a proper fraction follows a whole number."""
        number = token.number
        if number is None or number.denominator != 1 or not token.text.isdigit():
            return None
        start = self.position
        parts: list[int] = []
        if self.at_command("frac", "dfrac", "tfrac", "cfrac"):
            self.take()
            for _ in range(2):
                braced = self.at("{")
                if braced:
                    self.take()
                part = self.peek()
                if part is None or part.kind != "number" or not part.text.isdigit():
                    break
                self.take()
                if braced:
                    if not self.at("}"):
                        break
                    self.take()
                parts.append(int(part.text))
        else:
            pieces = self.tokens[start : start + 3]
            if (
                len(pieces) == 3
                and pieces[0].kind == pieces[2].kind == "number"
                and pieces[1].text == "/"
                and pieces[0].text.isdigit()
                and pieces[2].text.isdigit()
            ):
                parts = [int(pieces[0].text), int(pieces[2].text)]
                self.position += 3
        if len(parts) == 2 and 0 < parts[0] < parts[1] and not self.at("^"):
            return Value(number + Fraction(parts[0], parts[1]))
        self.position = start
        return None

    def symbol(self, name: str) -> Value:
        if name in self.bound:
            return self.bound[name]
        if self.at("_"):
            self.take()
            name += "_" + self.subscript()
        elif name == "e":
            return exact.E
        elif name == "i":
            return exact.I
        if self.at("'"):
            raise NotExact("a derivative")
        return exact.symbol(name)

    def subscript(self) -> str:
        if not self.at("{"):
            return self.take().text
        self.take()
        parts = []
        while not self.at("}"):
            parts.append(self.take().text)
        self.take()
        return "".join(parts)

    def command(self, name: str) -> Value:
        if name in FUNCTIONS:
            return self.function(name)
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            above = self.argument()
            return above / self.argument()
        if name == "sqrt":
            degree = 2
            if self.at("["):
                index = self.group("[")
                if index.exact is None or index.exact.denominator != 1:
                    raise NotExact("a root of unknown degree")
                degree = int(index.exact)
            if degree < 2:
                raise NotExact("a root of no degree")
            return exact.power(self.argument(), Value(Fraction(1, degree)))
        if name in ("binom", "dbinom", "tbinom"):
            pair = [self.argument().exact for _ in range(2)]
            n, k = (part if part is not None and part.denominator == 1 else None for part in pair)
            if n is None or k is None or not 0 <= k <= n:
                raise NotExact("an unknown binomial")
            if n > 2000:
                return exact.huge("binomial", n, k)
            return whole(comb(int(n), int(k)))
        if name in ("sum", "prod"):
            return self.repeated(name)
        if name in _OF_SEVERAL:
            return self.of_several(name)
        if name in ("lfloor", "lceil"):
            value = self.sum()
            if not self.at_command(name.replace("l", "r", 1)):
                raise NotExact("an open floor")
            self.take()
            return exact.floor(value) if name == "lfloor" else -exact.floor(-value)
        if name == "pi":
            return exact.PI
        if name in _GREEK:
            return self.symbol(f"\\{name}")
        raise NotExact(f"the command {name}")

    def repeated(self, name: str) -> Value:
        """Read a sum or product over a short range of whole numbers."""
        self.expect("_")
        self.expect("{")
        variable = self.take().text
        self.expect("=")
        start = self.sum().exact
        self.expect("}")
        self.expect("^")
        end = self.argument().exact
        bounds = (start, end)
        if self.bound or any(x is None or x.denominator != 1 for x in bounds):
            raise NotExact("an unknown range")
        assert start is not None and end is not None
        first, last, body = int(start), int(end), self.position
        if last - first >= _MOST_TERMS:
            self.bound[variable] = exact.symbol(f"bound {variable}")
            result = exact.huge(name, first, last, self.term().key)
        else:
            result = whole(0) if name == "sum" else whole(1)
            for number in range(first, max(last, first) + 1):
                self.position = body
                self.bound[variable] = whole(number)
                term = self.term()
                if last >= first:
                    result = result + term if name == "sum" else result * term
        del self.bound[variable]
        return result

    def of_several(self, name: str) -> Value:
        self.expect("(")
        numbers: list[Fraction] = []
        while True:
            number = self.sum().exact
            if number is None:
                raise NotExact(f"{name} of an unknown number")
            numbers.append(number)
            if not self.at(","):
                break
            self.take()
        self.expect(")")
        if name in ("gcd", "lcm"):
            if any(number.denominator != 1 for number in numbers):
                raise NotExact(f"{name} of a fraction")
            return whole(_OF_SEVERAL[name](*map(int, numbers)))
        return Value(_OF_SEVERAL[name](*numbers))

    def function(self, name: str) -> Value:
        base, power = None, None
        for _ in range(2):
            if name == "log" and self.at("_") and base is None:
                self.take()
                base = self.argument()
            elif self.at("^") and power is None:
                self.take()
                power = self.exponent()
        outer, self.angle = self.angle, name in _TAKES_ANGLE
        if self.at("(", "{", "["):
            opening = self.take().text
            value = self.sum()
            self.expect(_CLOSING[opening])
        else:
            sign = self.sign()
            value = self.factor()
            while self.starts_factor() and not self.at("(", "[") and not self.function_ahead():
                value = value * self.factor()
            # A slash still belongs to a number's angle: "\sin \pi/3", but not "\sin x/2".
            if self.at("/") and name in _TAKES_ANGLE and not value.free:
                self.take()
                value = value / self.factor()
            value = -value if sign == -1 else value
        self.angle = outer
        if base is not None:
            result = exact.log(value, base)
        elif power is not None and power.exact == -1 and name in _INVERSE:
            return FUNCTIONS[_INVERSE[name]](value)
        else:
            result = FUNCTIONS[name](value)
        return result if power is None else exact.power(result, power)

    def function_ahead(self) -> bool:
        token = self.peek()
        return token is not None and token.kind == "command" and token.text in FUNCTIONS
