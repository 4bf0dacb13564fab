"""Exact values of closed expressions."""

import cmath
import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache

from step_infer.client.canonical.field import (
    ORDER,
    POINTS,
    Element,
    Image,
    NotExact,
    P,
    element_power,
    element_root,
    factors,
    hashed,
    inverse,
    is_square,
    multiply,
    square,
)

_MOST_BITS = 6000
"""Rational numbers are written out up to this size."""
_HIGHEST_ROOT = 60
Numbers = tuple[complex, ...] | None


class Value:
    """An exact value; see the module.

    Attributes:
        exact: the value itself, where it is rational and not too long.
        free: the names of its symbols.
        loose: it holds functions or nested roots, of which not all rules are known here: equal
            images still mean equal values, but different ones may be equal too.
        heavy: it holds numbers that were not written out, which no other library should be given.
        power: base and exponent of an integer that was not written out.
        positive: it is a product of roots of positive numbers, so that its image's roots are
            those of its own.
        log: its logarithm, where that is known.
        log_of: the rational number or symbol, and its power, that it is the logarithm of.
        surd: p, q and d of p + q sqrt(d), where it is known to be that, all rational.
    """

    __slots__ = (
        "_image", "_numbers", "_ring", "exact", "free", "heavy", "log", "log_of", "loose",
        "positive", "power", "surd",
    )  # fmt: skip

    def __init__(
        self,
        exact: Fraction | None,
        image: Image | None = None,
        ring: Image | None = None,
        numbers: Numbers = None,
        *,
        free: frozenset[str] = frozenset(),
        loose: bool = False,
        heavy: bool = False,
    ) -> None:
        if exact is not None and _bits(exact) > _MOST_BITS:
            image, ring, heavy, exact = _rational_image(exact), _rational_ring(exact), True, None
        if exact is None and image is not None:
            if free and image.count(image[0]) == POINTS:
                free = frozenset()  # the symbols cancel
            if not free:
                exact = _recognised(image, numbers)
        self.exact = exact
        self._image, self._ring, self._numbers = image, ring, numbers
        self.free, self.loose, self.heavy = free, loose, heavy
        self.power: tuple[Value, Value] | None = None
        self.positive = exact is not None and exact > 0
        self.log: Value | None = None
        self.log_of: tuple[Value, Value] | None = None
        self.surd: tuple[Fraction, ...] | None = None

    @property
    def image(self) -> Image:
        """The value's images, one a point."""
        if self._image is None:
            assert self.exact is not None
            self._image = _rational_image(self.exact)
        return self._image

    @property
    def ring(self) -> Image:
        """The value as an exponent: real and imaginary part modulo the number of squares."""
        if self._ring is None:
            if self.exact is not None:
                self._ring = _rational_ring(self.exact)
            else:  # an exponent of its own
                self._ring = tuple((hashed("ring", part) % ORDER, 0) for part in self.image)
        return self._ring

    @property
    def numbers(self) -> Numbers:
        """Approximations, one a point; None where they cannot be had."""
        if self.exact is not None:
            try:
                return (complex(float(self.exact)),) * POINTS
            except OverflowError:
                return None
        return self._numbers

    @property
    def real(self) -> float | None:
        """The approximation of a real constant."""
        numbers = self.numbers
        if self.free or numbers is None or abs(numbers[0].imag) > 1e-12 * (1 + abs(numbers[0])):
            return None
        return numbers[0].real

    @property
    def key(self) -> tuple[Element, ...]:
        """What equal values have in common."""
        image = self.image
        return image if self.free else image[:1]

    def __add__(self, other: "Value") -> "Value":
        if self.exact is not None and other.exact is not None:
            return Value(self.exact + other.exact)
        total = self._joined(
            other,
            tuple(
                ((a[0] + b[0]) % P, (a[1] + b[1]) % P)
                for a, b in zip(self.image, other.image, strict=True)
            ),
            tuple(
                ((a[0] + b[0]) % ORDER, (a[1] + b[1]) % ORDER)
                for a, b in zip(self.ring, other.ring, strict=True)
            ),
            lambda a, b: a + b,
        )
        for one, two in ((self, other), (other, self)):
            if one.surd is not None and two.exact is not None:
                total.surd = _bounded(one.surd[0] + two.exact, *one.surd[1:])
        return total

    def __mul__(self, other: "Value") -> "Value":
        if self.exact is not None and other.exact is not None:
            return Value(self.exact * other.exact)
        product = self._joined(
            other,
            tuple(multiply(a, b) for a, b in zip(self.image, other.image, strict=True)),
            tuple(
                ((a[0] * b[0] - a[1] * b[1]) % ORDER, (a[0] * b[1] + a[1] * b[0]) % ORDER)
                for a, b in zip(self.ring, other.ring, strict=True)
            ),
            lambda a, b: a * b,
        )
        logs = [
            part.log or (log(part) if (part.exact or 0) > 0 else None) for part in (self, other)
        ]
        if logs[0] is not None and logs[1] is not None:
            product.log = logs[0] + logs[1]
        product.positive = product.positive or (self.positive and other.positive)
        for one, two in ((self, other), (other, self)):
            if one.surd is not None and two.exact is not None:
                p, q, d = one.surd
                product.surd = _bounded(p * two.exact, q * two.exact, d)
            if one.log_of is not None and two.exact is not None:
                product.log_of = (one.log_of[0], one.log_of[1] * two)
        return product

    def __neg__(self) -> "Value":
        return self * Value(Fraction(-1))

    def __sub__(self, other: "Value") -> "Value":
        return self + -other

    def __truediv__(self, other: "Value") -> "Value":
        return self * power(other, Value(Fraction(-1)))

    def _joined(
        self,
        other: "Value",
        image: Image,
        ring: Image,
        join: Callable[[complex, complex], complex],
    ) -> "Value":
        return Value(
            None,
            image,
            ring,
            approximate(join, self, other),
            free=self.free | other.free,
            loose=self.loose or other.loose,
            heavy=self.heavy or other.heavy,
        )


def whole(n: int) -> Value:
    """Return a whole number."""
    return Value(Fraction(n))


def _bounded(*parts: Fraction) -> tuple[Fraction, ...] | None:
    return parts if max(map(_bits, parts)) <= _MOST_BITS else None


def _bits(exact: Fraction) -> int:
    return max(exact.numerator.bit_length(), exact.denominator.bit_length())


def _rational_image(exact: Fraction) -> Image:
    inverse = 1 if exact.denominator == 1 else pow(exact.denominator, -1, P)
    return ((exact.numerator * inverse % P, 0),) * POINTS


def _rational_ring(exact: Fraction) -> Image:
    try:
        inverse = pow(exact.denominator, -1, ORDER)
    except ValueError as error:
        raise NotExact("a denominator without an inverse") from error
    return ((exact.numerator * inverse % ORDER, 0),) * POINTS


def _recognised(image: Image, numbers: Numbers) -> Fraction | None:
    """Return the simple fraction that a value is, proved by its image."""
    if numbers is None or abs(numbers[0].imag) > 1e-9 or not abs(numbers[0]) < 1e9:
        return None
    guess = Fraction(numbers[0].real).limit_denominator(10_000)
    if abs(float(guess) - numbers[0].real) > 1e-9 * (1 + abs(numbers[0].real)):
        return None
    return guess if _rational_image(guess)[0] == image[0] else None


def approximate(join: Callable[..., complex], *parts: Value) -> Numbers:
    """Return what a function makes of approximations; None where that cannot be had."""
    columns = [part.numbers for part in parts]
    if any(column is None for column in columns):
        return None
    try:
        found = tuple(complex(join(*row)) for row in zip(*columns, strict=True))  # type: ignore[arg-type]
    except (ArithmeticError, ValueError):
        return None
    return found if all(map(cmath.isfinite, found)) else None


def same_numbers(a: Value, b: Value) -> bool | None:
    """Return whether approximations agree; None where they cannot be had."""
    if a.numbers is None or b.numbers is None:
        return None
    pairs = zip(a.numbers, b.numbers, strict=True)
    return all(abs(x - y) <= 1e-9 * max(abs(x), abs(y)) for x, y in pairs)


@cache
def symbol(name: str) -> Value:
    """Return a symbol; it may stand for any number."""
    image = []
    for point in range(POINTS):
        element = hashed("symbol", name, point) % P
        if point < 2 and is_square(element) != (point == 0):
            element = P - element
        image.append((element, 0))
    ring = tuple((hashed("exponent", name, point) % ORDER, 0) for point in range(POINTS))
    size = [0.5 + hashed("number", name, point) % 10**9 / 10**9 for point in range(POINTS)]
    numbers = (complex(size[0]), complex(-size[1]), complex(1 + size[2]))
    found = Value(None, tuple(image), ring, numbers, free=frozenset([name]))
    found.log = atom("log", found, number=cmath.log)
    found.log.log_of = (found, whole(1))
    return found


def _constant(name: str, number: float) -> Value:
    image = ((square("constant", name), 0),) * POINTS
    ring = ((hashed("constant ring", name) % ORDER, 0),) * POINTS
    return Value(None, image, ring, (complex(number),) * POINTS)


PI = _constant("pi", math.pi)
E = _constant("e", math.e)
PI.positive = E.positive = True
E.log = whole(1)
I = Value(None, ((0, 1),) * POINTS, ((0, 1),) * POINTS, (1j,) * POINTS)  # noqa: E741


def atom(name: str, *parts: Value, number: Callable[..., complex] | None = None) -> Value:
    """Return a function's value where its rules are not known here."""
    image = tuple(
        (hashed(name, *(part.image[point] for part in parts)) % P, 0) for point in range(POINTS)
    )
    return Value(
        None,
        image,
        None,
        None if number is None else approximate(number, *parts),
        free=frozenset().union(*(part.free for part in parts)),
        loose=True,
        heavy=any(part.heavy for part in parts),
    )


def huge(*name: object) -> Value:
    """Return a number that is too large to write out; it equals only what has the same name."""
    return Value(None, ((hashed(*name) % P, 0),) * POINTS, loose=True, heavy=True)


def power(a: Value, b: Value) -> Value:
    """Return a to the b; odd roots of negative numbers are negative.

    Raises:
        NotExact: it divides by zero.
    """
    if b.exact is not None:
        n, degree = b.exact.numerator, b.exact.denominator
        result = _whole_power(a if degree == 1 else root(a, degree), n)
    elif a.exact == 1:
        return whole(1)
    elif a.exact == 0:
        raise NotExact("a power of 0")
    elif a is E and b.log_of is not None:
        return b.log_of[0] if b.log_of[1].exact == 1 else power(*b.log_of)
    else:
        result = _general_power(a, b)
    if result.exact is None:
        base = whole(1) if a is E else a.log or (log(a) if (a.exact or 0) > 0 else None)
        if base is not None:
            result.log = base * b
        result.power = (a, b)
    return result


def _whole_power(a: Value, n: int) -> Value:
    if n == 1:
        return a
    if n < 0 and all(part == (0, 0) for part in a.image):
        raise NotExact("a division by zero")
    if a.exact is not None:
        if _bits(a.exact) * abs(n) <= _MOST_BITS or abs(a.exact) in (0, 1):
            # Powers of 1 and 0 are short, whatever the exponent.
            return Value(a.exact ** (n if abs(a.exact) not in (0, 1) else _small(n)))
        ring = ((pow(_rational_ring(a.exact)[0][0], n, ORDER), 0),) * POINTS
    elif a._ring is not None and n > 0 and not any(part[1] for part in a._ring):
        ring = tuple((pow(part[0], n, ORDER), 0) for part in a._ring)
    else:
        ring = None
    found = Value(
        None,
        tuple(element_power(part, n) for part in a.image),
        ring,
        approximate(lambda x: x**n, a),
        free=a.free,
        loose=a.loose,
        heavy=a.heavy or a.exact is not None,
    )
    found.positive = found.positive or a.positive
    return found


def _small(n: int) -> int:
    return 0 if n == 0 else (2 if n % 2 == 0 else 1)


def root(a: Value, degree: int) -> Value:
    """Return the principal root; the negative one of a negative number, for odd degrees.

    Raises:
        NotExact: there is none here.
    """
    if not 2 <= degree <= _HIGHEST_ROOT:
        return atom(f"root {degree}", a)

    def number(x: complex) -> complex:
        if abs(x.imag) <= 1e-12 * abs(x) and x.real < 0 and degree % 2:
            return complex(-((-x.real) ** (1 / degree)))
        return complex(x ** (1 / degree))

    if a.exact is not None:
        if a.exact < 0:
            if degree % 2:
                return -root(-a, degree)
            if degree == 2:
                return I * root(-a, 2)
            return atom(f"root {degree}", a, number=number)
        parts = a.exact.numerator, a.exact.denominator
        whole_roots = [_whole_root(part, degree) for part in parts]
        if whole_roots[0] is not None and whole_roots[1] is not None:
            return Value(Fraction(whole_roots[0], whole_roots[1]))
        images = [_root_image(part, degree) for part in parts]
        if images[0] is None or images[1] is None:
            return atom(f"root {degree}", a, number=number)
        image = multiply(images[0], inverse(images[1]))
        found = Value(None, (image,) * POINTS, None, approximate(number, a), heavy=a.heavy)
        found.positive = True
        found.surd = (Fraction(0), Fraction(1), a.exact) if degree == 2 else None
        return found
    if a.surd is not None and degree == 2:
        # sqrt(p + q sqrt(d)) = sqrt(x) + sqrt(y), where x + y = p and 4xy = q^2 d.
        p, q, d = a.surd
        difference = root(Value(p * p - q * q * d), 2).exact
        if difference is not None and p > 0:
            x, y = (root(Value((p + sign * difference) / 2), 2) for sign in (1, -1))
            return x + y if q > 0 else x - y
    # Which root of another constant is the positive one, its image does not tell.
    if not (a.positive or a.free):
        return atom(f"root {degree}", a, number=number)
    elements = [element_root(part, degree) for part in a.image]
    if any(element is None for element in elements):
        return atom(f"root {degree}", a, number=number)
    found = Value(
        None,
        tuple(element for element in elements if element is not None),
        None,
        approximate(number, a),
        free=a.free,
        loose=a.loose or not a.positive,
        heavy=a.heavy,
    )
    found.positive = found.positive or a.positive
    return found


def _whole_root(n: int, degree: int) -> int | None:
    if n < 2:
        return n
    low = 1 << (n.bit_length() - 1) // degree
    high = low * 2
    while low < high:
        middle = (low + high + 1) // 2
        if middle**degree <= n:
            low = middle
        else:
            high = middle - 1
    return low if low**degree == n else None


def _root_image(n: int, degree: int) -> Element | None:
    image: Element = (1, 0)
    for prime, count in factors(n):
        part = element_root((prime % P, 0), degree)
        if part is None:
            return None
        image = multiply(image, element_power(part, count))
    return image


def _general_power(a: Value, b: Value) -> Value:
    bases = a.image
    if not all(base[1] == 0 and is_square(base[0]) for base in bases):
        return atom("power", a, b, number=lambda x, y: x**y)
    if any(part[1] for part in b.ring):
        return atom("power", a, b, number=lambda x, y: x**y)
    image = tuple(
        (pow(base[0], exponent, P), 0) for base, (exponent, _) in zip(bases, b.ring, strict=True)
    )
    loose = a.loose or b.loose or b._ring is None or a.exact is None
    return Value(
        None,
        image,
        None,
        approximate(lambda x, y: x**y, a, b),
        free=a.free | b.free,
        loose=loose,
        heavy=a.heavy or b.heavy,
    )


def log(a: Value, base: Value = E) -> Value:
    """Return a logarithm; by prime factors where the value is rational.

    Raises:
        NotExact: of 0, or to the base 1.
    """
    if base is not E:
        return log(a) / log(base)
    if a.exact is not None and a.exact == 0:
        raise NotExact("the logarithm of 0")
    if a.log is not None:
        return a.log
    if a.exact is None or a.exact < 0:
        return atom("log", a, number=cmath.log)
    total = whole(0)
    for part, sign in ((a.exact.numerator, 1), (a.exact.denominator, -1)):
        for prime, times in factors(part):
            number = (complex(math.log(prime)),) * POINTS
            image = ((hashed("log", prime) % P, 0),) * POINTS
            ring = ((hashed("log ring", prime) % ORDER, 0),) * POINTS
            total = total + Value(None, image, ring, number) * whole(sign * times)
    total.log_of = (a, whole(1))
    return total
