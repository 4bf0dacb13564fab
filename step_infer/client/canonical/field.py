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

import hashlib
import math

P = 36750752909783936687057528499939863949178512566329828118834245967018160397439
ORDER = (P - 1) // 2
"""How many squares there are; odd."""
POINTS = 3
"""Symbols are replaced by elements at so many points: all squares, all others, mixed."""
Element = tuple[int, int]
Image = tuple[Element, ...]


def hashed(*parts: object) -> int:
    """Return a number that follows from anything that can be written out."""
    return int.from_bytes(hashlib.sha512(repr(parts).encode()).digest(), "big")


def square(*parts: object) -> int:
    """Return a square that follows from a name."""
    return pow(hashed(*parts), 2, P)


def is_square(a: int) -> bool:
    """Return whether a number is a square in the prime field."""
    return pow(a, ORDER, P) == 1


def multiply(a: Element, b: Element) -> Element:
    """Return a product."""
    if not a[1] and not b[1]:
        return a[0] * b[0] % P, 0
    return (a[0] * b[0] - a[1] * b[1]) % P, (a[0] * b[1] + a[1] * b[0]) % P


def inverse(a: Element) -> Element:
    """Return an inverse."""
    if not a[1]:
        return pow(a[0], -1, P), 0
    norm = pow(a[0] * a[0] + a[1] * a[1], -1, P)
    return a[0] * norm % P, -a[1] * norm % P


def element_power(a: Element, n: int) -> Element:
    """Return a power with a whole exponent."""
    if n < 0:
        a, n = inverse(a), -n
    if not a[1]:
        return pow(a[0], n, P), 0
    n %= P * P - 1
    result = (1, 0)
    while n:
        if n & 1:
            result = multiply(result, a)
        a, n = multiply(a, a), n >> 1
    return result


def element_root(a: Element, degree: int) -> Element | None:
    """Return the principal root; None where there is none."""
    if a[1]:
        return None
    exponent = pow(degree, -1, ORDER)
    if a[0] == 0 or is_square(a[0]):
        return pow(a[0], exponent, P), 0
    positive = pow(P - a[0], exponent, P)
    if degree % 2:
        return P - positive, 0
    return (0, positive) if degree == 2 else None


_SMALL_PRIMES = [n for n in range(2, 2000) if all(n % d for d in range(2, math.isqrt(n) + 1))]


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


class NotExact(Exception):  # noqa: N818 - no error: math-verify may still read it
    """The expression has no value here: division by zero, or something not understood."""
