"""Functions of exact values: circular ones, factorials, remainders."""

import cmath
import math
from fractions import Fraction
from functools import cache

from step_infer.client.canonical import exact
from step_infer.client.canonical.exact import PI, E, I, Value, approximate, atom, huge, root, whole
from step_infer.client.canonical.field import (
    POINTS,
    Element,
    NotExact,
    P,
    factors,
    is_square,
    square,
)

_MOST_FACTORS = 3000
"""Factorials are multiplied out up to this number."""
_MOST_SYMBOLIC = 6
_TURN = square("e^i")
"""The image of e^i: sine and cosine follow from its powers."""


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


def power(a: Value, b: Value) -> Value:
    """Return a to the b, powers of e to complex exponents included.

    Raises:
        NotExact: it divides by zero.
    """
    if a is not E or b.exact is not None or not any(part[1] for part in b.ring):
        return exact.power(a, b)
    angle = b / I
    if _turns(angle) is not None:
        return cosine(angle) + I * sine(angle)
    image = tuple(
        (pow(base[0], real, P) * pow(_TURN, turn, P) % P, 0)
        for base, (real, turn) in zip(a.image, b.ring, strict=True)
    )
    return Value(
        None,
        image,
        None,
        approximate(lambda x, y: x**y, a, b),
        free=b.free,
        loose=True,
        heavy=b.heavy,
    )


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
        approximate(number, angle),
        free=angle.free,
        loose=True,
        heavy=angle.heavy,
    )


def unknown(x: Value) -> Value:
    """Return f(x), where f may be any function; for its approximations it is an odd one."""
    return atom("f", x, number=lambda z: cmath.exp(z * z / 9) + 2)


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
    return Value(None, ((product, 0),) * POINTS, heavy=True)


def binomial(a: Value, b: Value) -> Value:
    """Return a binomial coefficient; of symbols, by factors or factorials.

    Raises:
        NotExact: of numbers that are not whole, or negative.
    """
    n, k = a.exact, b.exact
    if k is not None and 0 <= k <= _MOST_SYMBOLIC and k.denominator == 1 and a.free:
        product = whole(1)
        for step in range(int(k)):
            product = product * (a - whole(step))
        return product / whole(math.factorial(int(k)))
    if a.free or b.free:
        return factorial(a) / (factorial(b) * factorial(a - b))
    if n is None or k is None or n.denominator * k.denominator != 1 or not 0 <= k <= n:
        raise NotExact("an unknown binomial")
    return huge("binomial", n, k) if n > 2000 else whole(math.comb(int(n), int(k)))


def remainder(a: Value, modulus: int) -> Value:
    """Return a whole number's remainder, towers of powers included.

    Raises:
        NotExact: the number is not whole.
    """
    if modulus < 1:
        raise NotExact("a modulus below 1")
    return whole(_remainder(a, modulus, 0))


def symbolic_remainder(a: Value, modulus: Value) -> Value:
    """Return a remainder that depends on symbols."""
    return atom("mod", a, modulus, number=lambda x, y: x.real % y.real)


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
        # The image of a sum of real roots and i times such has its conjugate's beside it.
        conjugate = tuple((x, -y % P) for x, y in a.image)
        norm = a * Value(None, conjugate, None, approximate(lambda z: z.conjugate(), a))
        known = norm.exact is not None and not (a.free or a.loose or a.heavy)
        return root(norm, 2) if known else atom("abs", a, number=abs)
    image = tuple(part if is_square(part[0]) else (P - part[0], 0) for part in a.image)
    return Value(None, image, None, approximate(abs, a), free=a.free, loose=True, heavy=a.heavy)


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
