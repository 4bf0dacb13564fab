"""Functions by the names that they have in LaTeX."""

import cmath
import math
from collections.abc import Callable
from fractions import Fraction
from math import gcd, lcm
from typing import Any

from step_infer.client.canonical import exact, functions
from step_infer.client.canonical.exact import Value, whole


def _log(value: Value) -> Value:
    return exact.log(value)


def _hyperbolic(sign: int) -> Callable[[Value], Value]:
    def function(x: Value) -> Value:
        up, down = functions.power(exact.E, x), functions.power(exact.E, -x)
        return (up + whole(sign) * down) / whole(2)

    return function


def _tangent(x: Value) -> Value:
    return functions.sine(x) / functions.cosine(x)


def _inverse(name: str) -> Callable[[Value], Value]:
    short = name.replace("arc", "a")
    number = getattr(cmath, short)
    forward = {"asin": functions.sine, "acos": functions.cosine, "atan": _tangent}[short]

    def function(x: Value) -> Value:
        found = exact.atom(short, x, number=number)
        if found.real is not None:
            turns = Fraction(found.real / math.pi).limit_denominator(12)
            angle = Value(turns) * exact.PI
            near = abs(float(turns) * math.pi - found.real) < 1e-9
            if near and (short != "atan" or turns.denominator != 2) and forward(angle).key == x.key:
                return angle
        return found

    return function


FUNCTIONS: dict[str, Callable[[Value], Value]] = {
    "sin": functions.sine,
    "cos": functions.cosine,
    "tan": _tangent,
    "cot": lambda x: functions.cosine(x) / functions.sine(x),
    "sec": lambda x: whole(1) / functions.cosine(x),
    "csc": lambda x: whole(1) / functions.sine(x),
    "ln": _log,
    "log": _log,
    "lg": lambda x: exact.log(x, whole(10)),
    "exp": lambda x: functions.power(exact.E, x),
    "sinh": _hyperbolic(-1),
    "cosh": _hyperbolic(1),
    "cis": lambda x: functions.cosine(x) + exact.I * functions.sine(x),
    **{name: _inverse(name) for name in ("arcsin", "arccos", "arctan", "asin", "acos", "atan")},
}
OF_SEVERAL: dict[str, Callable[..., Any]] = {"gcd": gcd, "lcm": lcm, "max": max, "min": min}
