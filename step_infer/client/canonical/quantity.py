"""Numbers with what belongs to them: a unit of measure, a base, a percent sign, a ratio."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import replace
from fractions import Fraction

from step_infer.client.canonical import exact
from step_infer.client.canonical.brackets import depth_change
from step_infer.client.canonical.exact import Value, whole
from step_infer.client.canonical.expression import read_value
from step_infer.client.canonical.field import NotExact
from step_infer.client.canonical.form import Canonical, number_form
from step_infer.client.canonical.spelled import number_in_words
from step_infer.client.canonical.tokens import Token, tokenise
from step_infer.client.canonical.units import DEGREE, DOLLAR, Unit, is_unit, read_unit
from step_infer.client.canonical.words import TEXT_GROUP, known_words, words_form

_BASE_WORDS = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "sixteen": 16,
    "binary": 2, "octal": 8, "decimal": 10, "hex": 16,
}  # fmt: skip
_IN_BASE = re.compile(
    r"\s*(-?)\s*\(?\s*([0-9A-F](?:[0-9A-Fa-f ,]*[0-9A-Fa-f])?)\s*\)?\s*"
    r"(?:_\s*\{?\s*\(?\s*(?:base\s*)?([a-z]+|\d+)\s*\)?\s*\}?\s*\)?"
    r"|\(?(?:in\s+)?base[\s-]+([a-z]+|\d+)\s*\)?)\s*"
)
_PREFIXED = re.compile("(-?)0([xbo])([0-9A-Fa-f]+)")


def _in_base(text: str) -> Canonical | None:
    text = TEXT_GROUP.sub(r"\1", text)
    found = _PREFIXED.fullmatch(text)
    if found is not None:
        base, digits = {"x": 16, "b": 2, "o": 8}[found[2]], found[3]
    else:
        found = _IN_BASE.fullmatch(text)
        if found is None:
            return None
        written = found[3] or found[4]
        base = int(written) if written.isdigit() else _BASE_WORDS.get(written, 0)
        digits = re.sub("[ ,]", "", found[2])
    if not 2 <= base <= 36 or (not digits.isdigit() and base < 11):
        return None
    sign = -1 if found[1] else 1
    bare = sign * int(digits) if digits.isdigit() else None
    try:
        value: Hashable = sign * int(digits, base)
    except ValueError:  # no number in that base
        value, bare = ("no number", digits, base), None
    shown = exact.symbol(f"digits {digits}") if bare is None else whole(bare)
    return number_form(shown, base=("base", value))


_PORTION = re.compile(
    r"\s*(?:and\s+)?(\d+(?:\.\d+)?)\s*([A-Za-z]+)\.?\s*(?:,(?=\s*(?:and\b|\d+\s*[A-Za-z])))?"
)


def compound_form(text: str) -> Canonical | None:
    """Return a quantity of several parts: "2 hours and 30 minutes"."""
    shown = " ".join(TEXT_GROUP.sub(r" \1 ", text).split())
    portions: list[tuple[Value, Unit]] = []
    position = 0
    while position < len(shown):
        found = _PORTION.match(shown, position)
        unit = read_unit(found[2]) if found is not None and is_unit(found[2]) else None
        if found is None or unit is None or not unit.dimensions:
            return None
        portions.append((Value(Fraction(found[1])), unit))
        position = found.end()
    factors = [unit.factor for _, unit in portions]
    if len(portions) < 2 or len({unit.dimensions for _, unit in portions}) > 1:
        return None
    if factors != sorted(set(factors), reverse=True):
        return None
    total = whole(0)
    for value, unit in portions:
        total = total + value * Value(unit.factor / factors[0])
    return number_form(total, portions[0][1])


_PREFIX_UNITS = {r"\$": "dollar", "$": "dollar", "£": "£", "€": "€", "¥": "¥", "₹": "₹"}


def read_quantity(tokens: Sequence[Token], text: str, plus: int) -> Canonical:
    """Read a number with its unit, or the words that stand in its place."""
    written = text[tokens[0].start : tokens[-1].end]
    based = _in_base(written)
    if based is not None:
        return based
    unit: Unit | None = None
    rest = list(tokens)
    for index, token in enumerate(rest[:2]):
        if token.kind == "mark" and token.text in _PREFIX_UNITS:
            unit = read_unit(_PREFIX_UNITS[token.text])
            del rest[index]
            break
    else:
        if rest[0].text in ("USD", "US", "Rs", "EUR", "about", "approximately"):
            rest = rest[1:]
    if not rest:
        raise NotExact("a unit of nothing")
    value_tokens, suffix = _before_unit(rest, text)
    if not value_tokens:
        return _only_words(tokens, text)
    scale = 0
    if suffix:
        scale, suffix = _magnitude(suffix)
        found = read_unit(suffix)
        if found is None:
            raise NotExact("a number followed by what is no unit")
        if unit is None or unit == DOLLAR:
            unit = found if unit is None else unit
    value, degrees = read_value(value_tokens, plus)
    size = [token.kind if token.kind == "number" else token.text for token in value_tokens]
    if unit is not None and unit.counted and set(size) == {"number", "*"}:
        raise NotExact("a size")  # "a 2 x 3 matrix"
    if suffix and len(value_tokens) == 1 and value.free and unit is not None and unit.counted:
        raise NotExact("words behind a letter")  # "a circle"
    if scale:
        value = value * whole(scale)
    if degrees:
        temperature = re.search(r"([CF])\W*$", written)
        unit = read_unit(f"°{temperature[1]}") if temperature else (unit or DEGREE)
    spelled = None
    if unit is None and re.fullmatch("[A-Za-z]{2,3}", written):
        spelled = written.lower()
    side = _SIDE.search(suffix)
    return replace(number_form(value, unit, spelled=spelled), name=side and side[0].lower())


_SIDE = re.compile(
    r"(?i)\b(?:north|south|east|west|left|right|up|down|above|below|increase|decrease|profit|loss"
    r"|gain|rise|fall|forward|backward|deposit|withdrawal|ago|from now|faster|slower|earlier|later)"
)
"""What a number's opposite is called as well."""
_MAGNITUDES = {
    "dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
_MAGNITUDE = re.compile(rf"\s*(?:\\text\s*\{{\s*)?({'|'.join(_MAGNITUDES)})s?\b", re.I)


def _magnitude(suffix: str) -> tuple[int, str]:
    """Return the number that begins a unit's text, and the rest: "million dollars"."""
    found = _MAGNITUDE.match(suffix)
    if found is None:
        return 0, suffix
    return _MAGNITUDES[found[1].lower()], suffix[found.end() :]


def _before_unit(tokens: list[Token], text: str) -> tuple[list[Token], str]:
    """Split a quantity into the tokens of its number and the text of its unit."""
    signed = 1 if tokens[0].text in ("+", "-") else 0
    if len(tokens) > signed + 1 and tokens[signed].kind == "number":
        after = tokens[signed + 1]
        suffix = text[after.start : tokens[-1].end]
        if after.start > tokens[signed].end and _LETTER_UNITS.fullmatch(suffix):
            return tokens[: signed + 1], suffix
    depth = 0
    for index, token in enumerate(tokens):
        depth += depth_change(token)
        if depth:
            continue
        unit_letter = index > 0 and token.kind == "letter" and token.text in _UNIT_LETTERS
        if index > 0 and token.text == "Omega" and index == len(tokens) - 1:
            return tokens[:index], "Ω"
        is_text = token.kind == "text"
        if is_text or unit_letter or (token.kind == "mark" and token.text in ("%", "¢", "€", "£")):
            return tokens[:index], text[token.start : tokens[-1].end]
        if (
            token.text == "circ"
            and index + 1 < len(tokens)
            and tokens[index + 1].kind in ("letter", "symbol", "text")
            and tokens[index + 1].text in ("C", "F")
            and index + 2 == len(tokens)
        ):
            return tokens[: index - 1], "°" + tokens[index + 1].text
    return tokens, ""


_LETTER_UNIT = (
    r"(?:[kcmMGdn]?[msghlLNJWVAKFC]|mol|kg|Hz|Pa|in|ft|mi|min)(?:\^\{?-?\d\}?|[23](?!\d))?"
)
_LETTER_UNITS = re.compile(rf"{_LETTER_UNIT}(?:\s*[/*]?\s*{_LETTER_UNIT})*")
"""Units written in letters, behind a number and a space: "5 m/s^2"."""
_UNIT_LETTERS = frozenset("msghlLNJWVAKCF")


def _only_words(tokens: Sequence[Token], text: str) -> Canonical:
    shown = text[tokens[0].start : tokens[-1].end]
    number = number_in_words(TEXT_GROUP.sub(r"\1", shown))
    if number is not None:
        return read_quantity(tokenise("".join(number)), "".join(number), 1)
    form = known_words(shown) or words_form(shown)
    if form is None:
        raise NotExact("words that are not understood")
    return form


def read_ratio(parts: list[Sequence[Token]], text: str, plus: int) -> Canonical:
    """Read a ratio; one of two numbers is their quotient."""
    values = [read_value(part, plus)[0] for part in parts]
    if any(value.exact is None or value.exact == 0 for value in values[:1]):
        # Nothing to scale by.
        return Canonical("ratio", ("ratio", tuple(value.key for value in values)))
    if len(values) == 2 and values[1].exact != 0:
        return number_form(values[0] / values[1])
    return Canonical("ratio", ("ratio", tuple((value / values[0]).key for value in values)))
