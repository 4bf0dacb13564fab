"""Exact values of closed expressions, compared by their images in a finite field.

An expression is mapped, step by step, into the field of P squared elements (P a prime of 255 bits):
rational numbers go to themselves, i to a root of -1, and pi, e, logarithms and symbols to elements
that their names choose. The map keeps sums, products and quotients, so equal expressions have equal
images however they are written, and different ones differ but for a chance of 2^-250. An image has
a bounded size whatever the expression grows to: no number is ever written out.

P is chosen so that P = 7 modulo 8, every prime below 100 is a square modulo P, and (P - 1) / 2 has
no prime factor below 100. Within the squares each root of small degree is then unique, so that
sqrt(2) sqrt(3) and sqrt(6) have one image. Squares play the part of positive numbers.
"""

import cmath
import hashlib
import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache

P = 36750752909783936687057528499939863949178512566329828118834245967018160397439
_ORDER = (P - 1) // 2
"""How many squares there are; odd."""
_POINTS = 3
"""Symbols are replaced by elements at so many points: all squares, all others, mixed."""
_MOST_BITS = 6000
"""Rational numbers are written out up to this size."""
_MOST_FACTORS = 3000
"""Factorials are multiplied out up to this number."""
_SMALL_PRIMES = [n for n in range(2, 2000) if all(n % d for d in range(2, math.isqrt(n) + 1))]
_HIGHEST_ROOT = 60

Element = tuple[int, int]
Image = tuple[Element, ...]
Numbers = tuple[complex, ...] | None


class NotExact(Exception):  # noqa: N818 - no error: math-verify may still read it
    """The expression has no value here: division by zero, or something not understood."""


def _hashed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha512(repr(parts).encode()).digest(), "big")


def _square(*parts: object) -> int:
    return pow(_hashed(*parts), 2, P)


def _is_square(a: int) -> bool:
    return pow(a, _ORDER, P) == 1


def _times(a: Element, b: Element) -> Element:
    if not a[1] and not b[1]:
        return a[0] * b[0] % P, 0
    return (a[0] * b[0] - a[1] * b[1]) % P, (a[0] * b[1] + a[1] * b[0]) % P


def _inverse(a: Element) -> Element:
    if not a[1]:
        return pow(a[0], -1, P), 0
    norm = pow(a[0] * a[0] + a[1] * a[1], -1, P)
    return a[0] * norm % P, -a[1] * norm % P


def _element_power(a: Element, n: int) -> Element:
    if n < 0:
        a, n = _inverse(a), -n
    if not a[1]:
        return pow(a[0], n, P), 0
    n %= P * P - 1
    result = (1, 0)
    while n:
        if n & 1:
            result = _times(result, a)
        a, n = _times(a, a), n >> 1
    return result


class Value:
    """An exact value; see the module.

    Attributes:
        exact: the value itself, where it is rational and not too long.
        free: the names of its symbols.
        loose: it holds functions or nested roots, of which not all rules are known here: equal
            images still mean equal values, but different ones may be equal too.
        heavy: it holds numbers that were not written out, which no other library should be given.
        power: base and exponent of an integer that was not written out.
        log: its logarithm, where that is known.
    """

    __slots__ = ("_image", "_numbers", "_ring", "exact", "free", "heavy", "log", "loose", "power")

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
            if free and image.count(image[0]) == _POINTS:
                free = frozenset()  # the symbols cancel
            if not free:
                exact = _recognised(image, numbers)
        self.exact = exact
        self._image, self._ring, self._numbers = image, ring, numbers
        self.free, self.loose, self.heavy = free, loose, heavy
        self.power: tuple[Value, Value] | None = None
        self.log: Value | None = None

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
                self._ring = tuple((_hashed("ring", part) % _ORDER, 0) for part in self.image)
        return self._ring

    @property
    def numbers(self) -> Numbers:
        """Approximations, one a point; None where they cannot be had."""
        if self.exact is not None:
            try:
                return (complex(float(self.exact)),) * _POINTS
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
        return self._joined(
            other,
            tuple(
                ((a[0] + b[0]) % P, (a[1] + b[1]) % P)
                for a, b in zip(self.image, other.image, strict=True)
            ),
            tuple(
                ((a[0] + b[0]) % _ORDER, (a[1] + b[1]) % _ORDER)
                for a, b in zip(self.ring, other.ring, strict=True)
            ),
            lambda a, b: a + b,
        )

    def __mul__(self, other: "Value") -> "Value":
        if self.exact is not None and other.exact is not None:
            return Value(self.exact * other.exact)
        product = self._joined(
            other,
            tuple(_times(a, b) for a, b in zip(self.image, other.image, strict=True)),
            tuple(
                ((a[0] * b[0] - a[1] * b[1]) % _ORDER, (a[0] * b[1] + a[1] * b[0]) % _ORDER)
                for a, b in zip(self.ring, other.ring, strict=True)
            ),
            lambda a, b: a * b,
        )
        logs = [
            part.log or (log(part) if (part.exact or 0) > 0 else None) for part in (self, other)
        ]
        if logs[0] is not None and logs[1] is not None:
            product.log = logs[0] + logs[1]
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
            _approximate(join, self, other),
            free=self.free | other.free,
            loose=self.loose or other.loose,
            heavy=self.heavy or other.heavy,
        )


def whole(n: int) -> Value:
    """Return a whole number."""
    return Value(Fraction(n))


def _bits(exact: Fraction) -> int:
    return max(exact.numerator.bit_length(), exact.denominator.bit_length())


def _rational_image(exact: Fraction) -> Image:
    inverse = 1 if exact.denominator == 1 else pow(exact.denominator, -1, P)
    return ((exact.numerator * inverse % P, 0),) * _POINTS


def _rational_ring(exact: Fraction) -> Image:
    try:
        inverse = pow(exact.denominator, -1, _ORDER)
    except ValueError as error:
        raise NotExact("a denominator without an inverse") from error
    return ((exact.numerator * inverse % _ORDER, 0),) * _POINTS


def _recognised(image: Image, numbers: Numbers) -> Fraction | None:
    """Return the simple fraction that a value is, proved by its image."""
    if numbers is None or abs(numbers[0].imag) > 1e-9 or not abs(numbers[0]) < 1e9:
        return None
    guess = Fraction(numbers[0].real).limit_denominator(10_000)
    if abs(float(guess) - numbers[0].real) > 1e-9 * (1 + abs(numbers[0].real)):
        return None
    return guess if _rational_image(guess)[0] == image[0] else None


def _approximate(join: Callable[..., complex], *parts: Value) -> Numbers:
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
    for point in range(_POINTS):
        element = _hashed("symbol", name, point) % P
        if point < 2 and _is_square(element) != (point == 0):
            element = P - element
        image.append((element, 0))
    ring = tuple((_hashed("exponent", name, point) % _ORDER, 0) for point in range(_POINTS))
    size = [0.5 + _hashed("number", name, point) % 10**9 / 10**9 for point in range(_POINTS)]
    numbers = (complex(size[0]), complex(-size[1]), complex(1 + size[2]))
    found = Value(None, tuple(image), ring, numbers, free=frozenset([name]))
    found.log = atom("log", found, number=cmath.log)
    return found


def _constant(name: str, number: float) -> Value:
    image = ((_square("constant", name), 0),) * _POINTS
    ring = ((_hashed("constant ring", name) % _ORDER, 0),) * _POINTS
    return Value(None, image, ring, (complex(number),) * _POINTS)


PI = _constant("pi", math.pi)
E = _constant("e", math.e)
E.log = whole(1)
I = Value(None, ((0, 1),) * _POINTS, ((0, 1),) * _POINTS, (1j,) * _POINTS)  # noqa: E741
_TURN = _square("e^i")
"""The image of e^i: sine and cosine follow from its powers."""


def atom(name: str, *parts: Value, number: Callable[..., complex] | None = None) -> Value:
    """Return a function's value where its rules are not known here."""
    image = tuple(
        (_hashed(name, *(part.image[point] for part in parts)) % P, 0) for point in range(_POINTS)
    )
    return Value(
        None,
        image,
        None,
        None if number is None else _approximate(number, *parts),
        free=frozenset().union(*(part.free for part in parts)),
        loose=True,
        heavy=any(part.heavy for part in parts),
    )


def huge(*name: object) -> Value:
    """Return a number that is too large to write out; it equals only what has the same name."""
    return Value(None, ((_hashed(*name) % P, 0),) * _POINTS, loose=True, heavy=True)


def power(a: Value, b: Value) -> Value:
    """Return a to the b; odd roots of negative numbers are negative.

    Raises:
        NotExact: it divides by zero.
    """
    if b.exact is not None:
        n, degree = b.exact.numerator, b.exact.denominator
        if degree == 1:
            result = _whole_power(a, n)
        else:
            result = _whole_power(root(a, degree), n)
    elif a.exact == 1:
        return whole(1)
    elif a.exact == 0:
        raise NotExact("a power of 0")
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
        ring = ((pow(_rational_ring(a.exact)[0][0], n, _ORDER), 0),) * _POINTS
    elif a._ring is not None and n > 0 and not any(part[1] for part in a._ring):
        ring = tuple((pow(part[0], n, _ORDER), 0) for part in a._ring)
    else:
        ring = None
    return Value(
        None,
        tuple(_element_power(part, n) for part in a.image),
        ring,
        _approximate(lambda x: x**n, a),
        free=a.free,
        loose=a.loose,
        heavy=a.heavy or a.exact is not None,
    )


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
        image = _times(images[0], _inverse(images[1]))
        return Value(None, (image,) * _POINTS, None, _approximate(number, a), heavy=a.heavy)
    elements = [_element_root(part, degree) for part in a.image]
    if any(element is None for element in elements):
        return atom(f"root {degree}", a, number=number)
    # Which of two roots is the positive one, the image does not tell.
    surely = a.key in (PI.key, E.key)
    return Value(
        None,
        tuple(element for element in elements if element is not None),
        None,
        _approximate(number, a),
        free=a.free,
        loose=a.loose or not surely,
        heavy=a.heavy,
    )


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


def _element_root(a: Element, degree: int) -> Element | None:
    if a[1]:
        return None
    exponent = pow(degree, -1, _ORDER)
    if a[0] == 0 or _is_square(a[0]):
        return pow(a[0], exponent, P), 0
    positive = pow(P - a[0], exponent, P)
    if degree % 2:
        return P - positive, 0
    return (0, positive) if degree == 2 else None


def _root_image(n: int, degree: int) -> Element | None:
    if n < 100 or _is_square(n % P):
        smooth, rest = n, 1
    else:
        smooth, rest = 1, n
    image = _element_root((smooth % P, 0), degree)
    for prime, times in factors(rest) if rest > 1 else []:
        part = _element_root((prime % P, 0), degree)
        if part is None or image is None:
            return None
        image = _times(image, _element_power(part, times))
    return image


def factors(n: int) -> list[tuple[int, int]]:
    """Return prime factors with their powers; what small primes leave over counts as a prime."""
    found = []
    for prime in _SMALL_PRIMES:
        if prime * prime > n:
            break
        times = 0
        while n % prime == 0:
            n //= prime
            times += 1
        if times:
            found.append((prime, times))
    if n > 1:
        found.append((n, 1))
    return found


def _general_power(a: Value, b: Value) -> Value:
    bases = a.image
    if not all(base[1] == 0 and _is_square(base[0]) for base in bases):
        return atom("power", a, b, number=lambda x, y: x**y)
    if any(part[1] for part in b.ring) and a is not E:
        return atom("power", a, b, number=lambda x, y: x**y)
    if a is E:
        angle = b / I
        if _turns(angle) is not None:
            return cosine(angle) + I * sine(angle)
    image = tuple(
        (pow(base[0], real, P) * pow(_TURN, turn, P) % P, 0)
        for base, (real, turn) in zip(bases, b.ring, strict=True)
    )
    if a is E and any(part[1] for part in b.ring):
        # Powers of e^i lie off the real line: cosine and i times sine, of one image.
        loose = True
    else:
        loose = a.loose or b.loose or b._ring is None or a.exact is None
    ring = None
    if a.exact is not None and b.exact is not None:
        ring = ((pow(_rational_ring(a.exact)[0][0], int(b.exact), _ORDER), 0),) * _POINTS
    return Value(
        None,
        image,
        ring,
        _approximate(lambda x, y: x**y, a, b),
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
            number = (complex(math.log(prime)),) * _POINTS
            image = ((_hashed("log", prime) % P, 0),) * _POINTS
            ring = ((_hashed("log ring", prime) % _ORDER, 0),) * _POINTS
            total = total + Value(None, image, ring, number) * whole(sign * times)
    return total


@cache
def _known_angles() -> dict[Element, Fraction]:
    found = {}
    for degrees in (180, 24, 14, 22, 26):
        step = pow(degrees, -1, P) * PI.image[0][0] % P
        for n in range(-4 * degrees, 4 * degrees + 1):
            found[n * step % P, 0] = Fraction(n, degrees)
    return found


def _turns(angle: Value) -> Fraction | None:
    """Return an angle in units of pi, where it is a simple fraction of it."""
    if angle.free:
        return None
    return _known_angles().get(angle.image[0])


_COSINES: dict[Fraction, tuple[Fraction, Fraction, int]] = {
    # turns of pi: cos = first + second * sqrt(third)
    Fraction(0): (Fraction(1), Fraction(0), 1),
    Fraction(1, 6): (Fraction(0), Fraction(1, 2), 3),
    Fraction(1, 5): (Fraction(1, 4), Fraction(1, 4), 5),
    Fraction(1, 4): (Fraction(0), Fraction(1, 2), 2),
    Fraction(1, 3): (Fraction(1, 2), Fraction(0), 1),
    Fraction(2, 5): (Fraction(-1, 4), Fraction(1, 4), 5),
    Fraction(1, 2): (Fraction(0), Fraction(0), 1),
}


def _cosine_of_turns(turns: Fraction) -> Value:
    turns = abs(turns) % 2
    if turns > 1:
        turns = 2 - turns
    if turns > Fraction(1, 2):
        return -_cosine_of_turns(1 - turns)
    if turns in _COSINES:
        first, second, third = _COSINES[turns]
        return Value(first) + Value(second) * root(whole(third), 2)
    if turns.denominator == 12:
        sign = whole(1 if turns == Fraction(1, 12) else -1)
        return (root(whole(6), 2) + sign * root(whole(2), 2)) / whole(4)
    return atom("cos", Value(turns), number=lambda x: cmath.cos(x * math.pi))


def cosine(angle: Value) -> Value:
    """Return the cosine of an angle in radians."""
    turns = _turns(angle)
    return _cosine_of_turns(turns) if turns is not None else _circular(angle, 1)


def sine(angle: Value) -> Value:
    """Return the sine of an angle in radians."""
    turns = _turns(angle)
    if turns is not None:
        return _cosine_of_turns(Fraction(1, 2) - turns)
    return _circular(angle, -1) / I


def _circular(angle: Value, sign: int) -> Value:
    """Return (z + 1/z) / 2 or (z - 1/z) / 2 of z = e^(i angle)."""
    half = pow(2, -1, P)
    image = []
    for real, turn in angle.ring:
        if turn:
            name = "cos" if sign > 0 else "i sin"
            return atom(name, angle, number=cmath.cos if sign > 0 else lambda x: 1j * cmath.sin(x))
        z = pow(_TURN, real, P)
        image.append(((z + sign * pow(z, -1, P)) * half % P, 0))
    number = cmath.cos if sign > 0 else (lambda x: 1j * cmath.sin(x))
    return Value(
        None,
        tuple(image),
        None,
        _approximate(number, angle),
        free=angle.free,
        loose=True,
        heavy=angle.heavy,
    )


def factorial(n: Value) -> Value:
    """Return a factorial; it is multiplied out only where that is short.

    Raises:
        NotExact: of a number that is not whole.
    """
    if n.exact is None:
        return atom("factorial", n, number=lambda x: math.gamma(x.real + 1))
    if n.exact.denominator != 1 or n.exact < 0:
        raise NotExact("the factorial of a number that is not whole")
    count = int(n.exact)
    if count <= 600:
        return whole(math.factorial(count))
    if count > _MOST_FACTORS:
        return huge("factorial", count)
    product = 1
    for factor in range(2, count + 1):
        product = product * factor % P
    return Value(None, ((product, 0),) * _POINTS, heavy=True)


def remainder(a: Value, modulus: int) -> Value:
    """Return a whole number's remainder, towers of powers included.

    Raises:
        NotExact: the number is not whole.
    """
    if modulus < 1:
        raise NotExact("a modulus below 1")
    return whole(_remainder(a, modulus, 0))


def _remainder(a: Value, modulus: int, depth: int) -> int:
    if a.exact is not None:
        if a.exact.denominator != 1:
            raise NotExact("a remainder of a fraction")
        return int(a.exact) % modulus
    if a.power is None or depth > 20 or modulus > 10**6 or a.free:
        raise NotExact("a remainder of no power")
    base, exponent = a.power
    reduced = _remainder(base, modulus, depth + 1)
    if exponent.exact is not None:
        if exponent.exact.denominator != 1 or exponent.exact < 0:
            raise NotExact("a remainder of a fraction")
        return pow(reduced, int(exponent.exact), modulus)
    # Euler: exponents above the modulus's length repeat with the period phi.
    phi = modulus
    for prime, _ in factors(modulus):
        phi -= phi // prime
    return pow(reduced, _remainder(exponent, phi, depth + 1) + phi * modulus.bit_length(), modulus)


def absolute(a: Value) -> Value:
    """Return an absolute value."""
    if a.exact is not None:
        return Value(abs(a.exact))
    if a.real is not None:
        return a if a.real >= 0 else -a
    if any(part[1] for part in a.image):
        return atom("abs", a, number=abs)
    image = tuple(part if _is_square(part[0]) else (P - part[0], 0) for part in a.image)
    return Value(None, image, None, _approximate(abs, a), free=a.free, loose=True, heavy=a.heavy)


def floor(a: Value) -> Value:
    """Return the greatest whole number not above.

    Raises:
        NotExact: the number is not known well enough.
    """
    if a.exact is not None:
        return whole(math.floor(a.exact))
    if a.real is None or abs(a.real) > 1e9 or abs(a.real - round(a.real)) < 1e-6:
        raise NotExact("the floor of what is no known number")
    return whole(math.floor(a.real))
