"""Units of measure behind a number: "cm^2", "miles per hour", "apples"."""

import re
from dataclasses import dataclass
from fractions import Fraction

_PREFIXES = {
    "k": 3, "h": 2, "d": -1, "c": -2, "m": -3, "u": -6, "μ": -6, "n": -9, "p": -12,
    "M": 6, "G": 9, "T": 12,
}  # fmt: skip
_LONG_PREFIXES = {
    "kilo": 3, "hecto": 2, "deci": -1, "centi": -2, "milli": -3, "micro": -6, "nano": -9,
    "mega": 6, "giga": 9, "tera": 12,
}  # fmt: skip
_BASE: dict[str, tuple[str, dict[str, int]]] = {
    # short name: long name and dimensions, for units that take prefixes
    "m": ("meter metre", {"m": 1}),
    "g": ("gram gramme", {"g": 1}),
    "s": ("second", {"s": 1}),
    "L": ("liter litre", {"m": 3}),
    "l": ("", {"m": 3}),
    "A": ("ampere amp", {"A": 1}),
    "V": ("volt", {"g": 1, "m": 2, "s": -3, "A": -1}),
    "W": ("watt", {"g": 1, "m": 2, "s": -3}),
    "J": ("joule", {"g": 1, "m": 2, "s": -2}),
    "N": ("newton", {"g": 1, "m": 1, "s": -2}),
    "Pa": ("pascal", {"g": 1, "m": -1, "s": -2}),
    "Hz": ("hertz", {"s": -1}),
    "C": ("coulomb", {"A": 1, "s": 1}),
    "K": ("kelvin", {"K": 1}),
    "mol": ("mole", {"mol": 1}),
    "eV": ("", {"eV": 1}),
    "cal": ("calorie", {"cal": 1}),
    "B": ("byte", {"byte": 1}),
    "Ω": ("ohm", {"g": 1, "m": 2, "s": -3, "A": -2}),
}
_LITRE = Fraction(1, 1000)
_SCALES: dict[str, Fraction | int] = {
    "L": _LITRE, "l": _LITRE, "V": 1000, "W": 1000, "J": 1000, "N": 1000, "Pa": 1000, "Ω": 1000,
}  # fmt: skip
_OTHER: dict[str, tuple[Fraction | int, dict[str, int]]] = {
    "min minute": (60, {"s": 1}),
    "h hr hour": (3600, {"s": 1}),
    "day": (86400, {"s": 1}),
    "week wk": (604800, {"s": 1}),
    "month": (1, {"month": 1}),
    "yr year": (12, {"month": 1}),
    "sec": (1, {"s": 1}),
    "decade": (120, {"month": 1}),
    "in inch inche": (Fraction(254, 10000), {"m": 1}),
    "ft foot feet": (Fraction(3048, 10000), {"m": 1}),
    "yd yard": (Fraction(9144, 10000), {"m": 1}),
    "mi mile": (Fraction(1609344, 1000), {"m": 1}),
    "kph kmh": (Fraction(1000, 3600), {"m": 1, "s": -1}),
    "mph": (Fraction(1609344, 3600000), {"m": 1, "s": -1}),
    "acre": (1, {"acre": 1}),
    "hectare ha": (10000, {"m": 2}),
    "lb pound": (16, {"ounce": 1}),
    "oz ounce": (1, {"ounce": 1}),
    "ton tonne": (10**6, {"g": 1}),
    "gallon gal": (8, {"pint": 1}),
    "quart qt": (2, {"pint": 1}),
    "pint pt": (1, {"pint": 1}),
    "dollar buck usd": (1, {"dollar": 1}),
    "cent ¢": (Fraction(1, 100), {"dollar": 1}),
    "euro eur €": (1, {"euro": 1}),
    "£ gbp": (1, {"gbp": 1}),
    "penny pence": (Fraction(1, 100), {"gbp": 1}),
    "yen jpy ¥": (1, {"yen": 1}),
    "rupee ₹ rs": (1, {"rupee": 1}),
    "percent % percentage": (Fraction(1, 100), {}),
    "° degree deg": (1, {"°": 1}),
    "°C celsius": (1, {"°C": 1}),
    "°F fahrenheit": (1, {"°F": 1}),
    "rad radian": (1, {"rad": 1}),
}
_NOTHING = {"unit", "u", "sq", "square", "cubic", "cu", "about", "approximately", "of", "a", "an",
            "the", "in", "total", "each", "exactly", "only"}  # fmt: skip
_NO_UNIT = {"or", "and", "not", "than", "least", "most", "except", "undefined", "greater", "less",
            "if", "when", "where", "no", "none", "plus", "minus", "but", "more", "fewer", "over",
            "mod", "base", "is", "are", "other", "half", "by", "x", "to", "through"}  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """A unit of measure."""

    factor: Fraction
    """What one of it is, in units of its dimensions."""
    dimensions: tuple[tuple[str, int], ...]
    """Names with their powers, sorted; of a counted thing, its own name."""
    counted: bool = False
    """Whether it is no unit of measure but a word for what is counted: "apple"."""


def _table() -> dict[str, Unit]:
    found = {}
    for short, (names, dimensions) in _BASE.items():
        scale = Fraction(_SCALES.get(short, 1))
        sorted_dimensions = tuple(sorted(dimensions.items()))
        for prefix, exponent in [("", 0), *_PREFIXES.items()]:
            if prefix + short not in ("cd", "ha", "PA"):
                found[prefix + short] = Unit(scale * Fraction(10) ** exponent, sorted_dimensions)
        for name in names.split():
            for prefix, exponent in [("", 0), *_LONG_PREFIXES.items()]:
                found[prefix + name] = Unit(scale * Fraction(10) ** exponent, sorted_dimensions)
    for aliases, (factor, dimensions) in _OTHER.items():
        for name in aliases.split():
            found[name] = Unit(Fraction(factor), tuple(sorted(dimensions.items())))
    found["kg"] = Unit(Fraction(1000), (("g", 1),))
    found["cc"] = Unit(Fraction(1, 10**6), (("m", 3),))
    return found


_UNITS = _table()
PERCENT = _UNITS["%"]
DEGREE = _UNITS["°"]
RADIAN = _UNITS["rad"]
DOLLAR = _UNITS["dollar"]
_PART = re.compile(
    r"(?P<per>/|\bper\b|\ba\b(?=\s+\w))?\s*(?P<name>°\s*[CF]?\b|[A-Za-zμΩ%¢€£¥₹°]+)"
    r"(?:(?:\s*\^\s*\{?\s*(?P<power>-?\d)\s*\}?|(?P<digit>\d))(?!\d))?[.\s*]*"
)


_PLURALS = {"ies": "y", "sses": "ss", "ches": "ch", "shes": "sh", "xes": "x", "s": ""}


def is_unit(name: str) -> bool:
    """Return whether a word is the name of a known unit."""
    return _known(name) is not None


def _known(name: str) -> Unit | None:
    for form in (name, name.lower()):
        for candidate in (form, form.removesuffix("s"), form.removesuffix("es")):
            if candidate in _UNITS and (candidate == form or len(candidate) > 1):
                return _UNITS[candidate]
    return None


def read_unit(text: str) -> Unit | None:
    """Return the unit that a text names; None where it cannot be one.

    Words that are no unit of measure are one by their last word, without its plural: "red apples".
    "units" and the like name none: a unit of factor 1 without dimensions would be a number's own.
    """
    text = text.replace(r"\text", " ").replace(r"\cdot", " ").replace(r"\circ", "°")
    text = text.replace("^°", "°").replace("^{°}", "°").replace("^{ °}", "°").replace("^{° }", "°")
    text = re.sub(
        r"(?i)\bdegrees?\s+(c|f)(?:elsius|ahrenheit)?\b", lambda x: "°" + x[1].upper(), text
    )
    text = re.sub(r"(?<!\^)[{}()]|(?<=[A-Za-z])[{}]", " ", text).strip(" .,")
    factor, dimensions = Fraction(1), dict[str, int]()
    position, sign, pending, known, words = 0, 1, 1, False, list[str]()
    while position < len(text):
        found = _PART.match(text, position)
        if found is None or found.end() == position:
            return None
        position = found.end()
        name = found["name"].replace(" ", "")
        if found["per"]:
            sign = -1
        times = int(found["power"] or found["digit"] or 1) * sign * pending
        lower = name.lower()
        if lower in _NO_UNIT:
            return None
        if lower in ("square", "sq", "cubic", "cu") and position < len(text):
            pending = 2 if lower.startswith("s") else 3
            continue
        if lower == "squared" or lower == "cubed":
            if words or not dimensions:
                return None
            last = list(dimensions)[-1]
            extra = 1 if lower == "squared" else 2
            dimensions[last] += sign * extra
            continue
        pending = 1
        unit = _known(name)
        if unit is None or (words and sign > 0):
            words.append(lower)
            continue
        known = True
        factor *= unit.factor**times
        for dimension, exponent in unit.dimensions:
            dimensions[dimension] = dimensions.get(dimension, 0) + exponent * times
    words = [word for word in words if word not in _NOTHING and word.rstrip("s") not in _NOTHING]
    if known:
        # "5 cm long": what follows a unit of measure only describes it.
        return Unit(factor, tuple(sorted(item for item in dimensions.items() if item[1])))
    if not words:
        return NONE
    last = "th" if words[-1] in ("st", "nd", "rd") else words[-1]
    for ending, singular in _PLURALS.items():
        if last.endswith(ending) and len(last) > len(ending) + 1:
            last = last.removesuffix(ending) + singular
            break
    return Unit(Fraction(1), ((last, 1),), counted=True)


NONE = Unit(Fraction(1), (("", 1),))
"""What "units" names: nothing to compare."""
