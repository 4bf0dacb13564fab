"""Reads tokens as an expression, into an exact value."""

import re
from collections.abc import Sequence
from fractions import Fraction

from step_infer.client.canonical import exact, functions
from step_infer.client.canonical.exact import Value, whole
from step_infer.client.canonical.field import NotExact
from step_infer.client.canonical.named_functions import FUNCTIONS, OF_SEVERAL
from step_infer.client.canonical.tokens import Token

_GREEK = frozenset((
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta",
    "vartheta", "iota", "kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon",
    "phi", "varphi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi",
    "Sigma", "Phi", "Psi", "Omega", "ell", "hbar",
))  # fmt: skip


_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_TAKES_ANGLE = frozenset(("sin", "cos", "tan", "cot", "sec", "csc", "cis"))
_CLOSING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
_PROPER = re.compile(
    r"(?:[dtc]?frac (?:\{ (\d+) \}|(\d+)) (?:\{ (\d+) \}|(\d+))|(\d+) / (\d+))(?![^ ])(?! \^)"
)
"""A fraction behind a whole number, as the texts of its tokens."""
_DEEPEST = 50
_MOST_TERMS = 100
_MOST_STEPS = 3000
"""Tokens read for one expression; a sum reads its term many times."""


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
                if value.free or modulus.free:
                    value = functions.symbolic_remainder(value, modulus)
                elif modulus.exact is None or modulus.exact.denominator != 1:
                    raise NotExact("an unknown modulus")
                else:
                    value = functions.remainder(value, int(modulus.exact))
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
                value = functions.factorial(value)
            elif self.at("^"):
                self.take()
                if self.is_degree():
                    if self.angle:
                        value = value * exact.PI / whole(180)
                    else:
                        self.degrees = True
                else:
                    value = functions.power(value, self.exponent())
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
        value = self.single()
        while self.at("!"):
            self.take()
            value = functions.factorial(value)
        if self.at("^"):  # written without braces: 2^3^4
            self.take()
            value = functions.power(value, self.exponent())
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
        return self.single()

    def single(self) -> Value:
        r"""Read one token's value: a fraction behind it makes no mixed number of it."""
        token = self.peek()
        if token is None or token.number is None:
            return self.base()
        self.take()
        return Value(token.number)

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
                return functions.absolute(value)
        if token.kind == "command":
            return self.command(token.text)
        raise NotExact(f"{token.text!r} in an expression")

    def mixed(self, token: Token) -> Value | None:
        """Return a mixed number, where a proper fraction follows a whole number."""
        number = token.number
        if number is None or number.denominator != 1 or not token.text.isdigit():
            return None
        written = " ".join(token.text for token in self.tokens[self.position :][:7])
        found = _PROPER.match(written)
        if found is None:
            return None
        above, below = (int(part) for part in found.groups() if part)
        if not 0 < above < below:
            return None
        self.position += found[0].count(" ") + 1
        return Value(number + Fraction(above, below))

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
        if name == "f" and self.at("("):
            return functions.unknown(self.group("("))
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
            return functions.power(self.argument(), Value(Fraction(1, degree)))
        if name in ("binom", "dbinom", "tbinom"):
            above = self.argument()
            return functions.binomial(above, self.argument())
        if name in ("sum", "prod"):
            return self.repeated(name)
        if name in OF_SEVERAL:
            return self.of_several(name)
        if name in ("lfloor", "lceil"):
            value = self.sum()
            if not self.at_command(name.replace("l", "r", 1)):
                raise NotExact("an open floor")
            self.take()
            return functions.floor(value) if name == "lfloor" else -functions.floor(-value)
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
        assert start is not None
        assert end is not None
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
        opening = "(" if self.at("(") else r"\{"
        self.expect(opening)
        numbers: list[Fraction] = []
        while True:
            number = self.sum().exact
            if number is None:
                raise NotExact(f"{name} of an unknown number")
            numbers.append(number)
            if not self.at(","):
                break
            self.take()
        self.expect(_CLOSING[opening])
        if name in ("gcd", "lcm"):
            if any(number.denominator != 1 for number in numbers):
                raise NotExact(f"{name} of a fraction")
            return whole(OF_SEVERAL[name](*map(int, numbers)))
        return Value(OF_SEVERAL[name](*numbers))

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
        return result if power is None else functions.power(result, power)

    def function_ahead(self) -> bool:
        token = self.peek()
        return token is not None and token.kind == "command" and token.text in FUNCTIONS
