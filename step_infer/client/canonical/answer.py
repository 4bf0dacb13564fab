"""The canonical form of an answer: what it says, without how it is written."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from step_infer.client.canonical import exact
from step_infer.client.canonical.exact import NotExact, Value, same_numbers, whole
from step_infer.client.canonical.expression import FUNCTIONS, Token, read_value, tokenise
from step_infer.client.canonical.markup import plain
from step_infer.client.canonical.units import (
    DEGREE,
    DOLLAR,
    NONE,
    PERCENT,
    Unit,
    is_unit,
    read_unit,
)

LONGEST_ANSWER = 2000
"""Characters in an answer that is still read."""
_MOST_ITEMS = 200


@dataclass(frozen=True)
class Canonical:
    """What an answer says; equal keys mean equal answers.

    Equality is more than that of keys: a number without a unit equals the same number with one.
    `equal` compares two forms.
    """

    kind: str
    """number, words, choice, list, tuple, intervals, relation or matrix."""
    key: Hashable
    """What it says, but for the attributes below."""
    value: Value | None = field(default=None, compare=False, repr=False)
    """Of a number: its value, without its unit."""
    items: tuple["Canonical", ...] = field(default=(), compare=False, repr=False)
    """Of a list, tuple or matrix: its parts."""
    unit: Unit | None = None
    """Unit of measure of a number."""
    name: str | None = None
    """What it is said to be: "x" of "x = 5"."""
    base: Hashable = None
    """The value that a number's digits have in the base that is given with them."""
    choice: str | None = None
    """The letter, where it may be an option of a multiple-choice question."""
    described: bool = False
    """The option's letter may just as well begin an expression: "C - 42"."""
    spelled: str | None = None
    """The letters of a product that may just as well be a word: "odd"."""
    relation: Hashable = None
    """Of an equation of the form y = ...: what it says as an equation between all its symbols."""
    loose: bool = False
    """Another form may be equal though the keys differ: not all rules are known here."""
    heavy: bool = False
    """It holds numbers too large to write out; no other library should be given it."""


def canonical(text: str) -> Canonical | None:
    """Return the canonical form of an answer; None where it is not understood.

    It takes a bounded time and never fails.
    """
    if len(text) > LONGEST_ANSWER:
        return None
    text = plain(text)
    if len(text) > 2 * LONGEST_ANSWER or not text:
        return None
    try:
        form = _choice(text) or _known_words(text) or _compound(text) or _read(text)
    except (NotExact, RecursionError, OverflowError, ZeroDivisionError, ValueError):
        form = _words(text)
    described = _DESCRIBED.fullmatch(_TEXT.sub(r"\1", text).strip())
    if described is not None:
        form = form or Canonical("words", ("words", text))
        form = replace(form, choice=described[1], described=True)
    return form


def equal(a: Canonical, b: Canonical) -> bool | None:
    """Return whether two answers are the same; None where only another library may know.

    It does not depend on the order of the two.
    """
    if a == b:
        return True
    if a.choice and b.choice and not (a.described and b.described):
        if a.choice == b.choice:
            return True
    if "choice" in (a.kind, b.kind):
        return False
    if a.relation is not None and a.relation == b.relation:
        return True
    if a.name and b.name and a.name != b.name:
        return False
    for one, other in ((a, b), (b, a)):
        if one.spelled and other.kind == "words":
            return other.key == ("words", (one.spelled,))
        if one.kind == "assignments" and other.kind in ("tuple", "intervals") and other.items:
            return _all_equal(one.items, other.items)
        if one.relation is not None and other.kind == "relation":
            return one.relation == other.key or (None if one.loose or other.loose else False)
    if a.kind != b.kind:
        unknown = (a.kind == "relation" and b.kind == "intervals") or (
            b.kind == "relation" and a.kind == "intervals"
        )
        return None if unknown else False
    if a.kind == "number":
        return _equal_numbers(a, b)
    if a.key == b.key:
        return True
    if a.kind in ("tuple", "matrix", "assignments") and len(a.items) == len(b.items):
        if _shape(a) != _shape(b):
            return False
        return _all_equal(a.items, b.items)
    if a.kind == "list" and len(a.items) == len(b.items):
        return _same_items(a.items, b.items)
    return None if a.loose or b.loose else False


def _shape(form: Canonical) -> Hashable:
    return form.key[1] if isinstance(form.key, tuple) else None


def _all_equal(a: Sequence[Canonical], b: Sequence[Canonical]) -> bool | None:
    if len(a) != len(b):
        return False
    verdicts = [equal(x, y) for x, y in zip(a, b, strict=True)]
    return False if False in verdicts else None if None in verdicts else True


def _same_items(a: Sequence[Canonical], b: Sequence[Canonical]) -> bool | None:
    rest = list(b)
    unknown = False
    for item in a:
        verdicts = [equal(item, other) for other in rest]
        if True in verdicts:
            del rest[verdicts.index(True)]
        elif None in verdicts:
            unknown = True
        else:
            return False
    return None if unknown else True


def _equal_numbers(a: Canonical, b: Canonical) -> bool | None:
    x, y = a.value, b.value
    assert x is not None and y is not None
    if a.base is not None and b.base is not None:
        return a.base == b.base
    if a.unit and b.unit and NONE not in (a.unit, b.unit):
        if a.unit.dimensions == b.unit.dimensions:
            if a.unit.factor != b.unit.factor:
                x, y = x * Value(a.unit.factor), y * Value(b.unit.factor)
        elif DEGREE not in (a.unit, b.unit) or not {a.unit, b.unit} <= _DEGREES:
            return False
    elif PERCENT in (a.unit, b.unit):
        percent, other = (x, y) if a.unit == PERCENT else (y, x)
        if (percent / whole(100)).key == other.key:
            return True
    if x.key == y.key:
        return True
    if not (x.loose or y.loose) or x.heavy or y.heavy:
        return False
    return None if same_numbers(x, y) is not False else False


_DEGREES = {DEGREE, *(unit for unit in (read_unit("°C"), read_unit("°F")) if unit)}

# What stands for an answer in words.

_LETTER = re.compile(r"[(\[]?\s*([A-Za-z])\s*[)\]]?\s*[.:]?")
_OPTION = re.compile(r"[(\[]?([A-Z]|[a-j](?=\)))[)\]]?([).:\]]+\s|[).:\]]+$)\s*(?![-+*/=^(])", re.S)
_NAMED = re.compile(
    r"(?:option|choice|answer|alternative)s?\s*:?\s*[(\[]?([A-Za-z])[)\]]?(?:[.:),].*|\s*\(.*|\s*-.*)?",
    re.I | re.S,
)
_DESCRIBED = re.compile(r"([A-J])\s+-+\s+(?=\S*\d|[A-Za-z]{3})\S.*", re.S)
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def _choice(text: str) -> Canonical | None:
    shown = _TEXT.sub(r"\1", text).strip()
    for pattern in (_LETTER, _NAMED):
        found = pattern.fullmatch(shown)
        if found is not None:
            letter = found[1].upper()
            if pattern is _NAMED:
                return Canonical("choice", ("choice", letter), choice=letter)
            value = read_value(tokenise(found[1]))[0]
            return Canonical("number", ("number", value.key), value, choice=letter)
    found = _OPTION.match(shown)
    if found is not None:
        letter = found[1].upper()
        return Canonical("choice", ("choice", letter), choice=letter)
    return None


_ALL = "all real numbers"
_SYNONYMS = {
    "dne": "does not exist",
    "nosolution": "no solution",
    "nosolutions": "no solution",
    "no real solutions": "no real solution",
    "real numbers": _ALL,
    "all reals": _ALL,
    "all real number": _ALL,
    "all real numbers": _ALL,
    "the set of all real numbers": _ALL,
    "every real number": _ALL,
    "any real number": _ALL,
    "empty set": "empty",
    "the empty set": "empty",
    "infinity": "infinity",
    "positive infinity": "infinity",
    "negative infinity": "minus infinity",
}
_NUMBER_WORDS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]


def _known_words(text: str) -> Canonical | None:
    bare = text.replace(" ", "")
    if bare in (r"\emptyset", r"\varnothing", r"\{\}", "{}", r"\{\emptyset\}"):
        return Canonical("intervals", ("intervals", ()))
    if bare in (r"\mathbb{R}", r"\mathbbR", r"\R", r"\Reals", r"\mathbf{R}", r"\Bbb{R}"):
        return _intervals([_EVERYTHING])
    if bare in (r"\infty", r"+\infty", r"-\infty", "infty", r"\infinity"):
        return _infinity(-1 if bare.startswith("-") else 1)
    if "\\" in _TEXT.sub("", text):
        return None
    words = " ".join(_TEXT.sub(r" \1 ", text).lower().split()).strip(" .!")
    meaning = _SYNONYMS.get(words)
    if words in _NUMBER_WORDS:
        value = whole(_NUMBER_WORDS.index(words))
        return Canonical("number", ("number", value.key), value)
    if meaning == _ALL:
        return _intervals([_EVERYTHING])
    if meaning == "empty":
        return Canonical("intervals", ("intervals", ()))
    if meaning in ("infinity", "minus infinity"):
        return _infinity(1 if meaning == "infinity" else -1)
    if meaning is not None:
        return Canonical("words", ("words", tuple(map(_singular, meaning.split()))))
    return None


def _infinity(sign: int) -> Canonical:
    return Canonical("words", ("infinity", sign))


_WORD = re.compile(r"[^\W_]+(?:[.'-][^\W_]+)*")
_ARTICLES = {"a", "an", "the", "is", "are", "it", "there", "they"}


def _words(text: str) -> Canonical | None:
    shown = _TEXT.sub(r" \1 ", text)
    if "\\" in shown or not re.search(r"[^\W\d_]{2,}", shown) or re.search(r"[=^_{}<>|&#~]", shown):
        return None
    words = [word.lower() for word in _WORD.findall(shown)]
    signs = tuple(re.findall(r"[-+*/%!$](?=\s|\d|$)", shown))
    kept = tuple(_singular(word) for word in words if word not in _ARTICLES) or tuple(words)
    return Canonical("words", ("words", kept) if not signs else ("words", kept, signs))


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


# The parts of an answer.

_RELATIONS = ("<=", ">=", "<", ">", "!=", "=")
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}
_SEPARATORS = (",", ";", "or", "and", "newline")


def _read(text: str) -> Canonical:
    text = re.sub(r"(?<=\d)\{,\}(?=\d{3})", ",", text)
    text = re.sub(r"(?<=\d),\s*\\!\s*(?=\d{3})", ",", text)
    tokens = tokenise(text)
    if not tokens:
        raise NotExact("nothing")
    return _answer(tokens, text)


def _answer(tokens: Sequence[Token], text: str) -> Canonical:
    while len(tokens) > 1 and tokens[-1].text in (",", ";", "newline"):
        tokens = tokens[:-1]
    parts, separators = _split(tokens, _SEPARATORS)
    if separators:
        return _several(parts, separators, text)
    return _one(tokens, text)


def _split(
    tokens: Sequence[Token], marks: Sequence[str]
) -> tuple[list[Sequence[Token]], list[str]]:
    """Split at marks outside of brackets."""
    parts: list[Sequence[Token]] = []
    found: list[str] = []
    depth, start = 0, 0
    environment = 0
    bars = sum(token.text == "|" for token in tokens) % 2 == 0
    within_bars = False
    for index, token in enumerate(tokens):
        if token.kind == "command" and token.text in ("begin", "end"):
            environment += 1 if token.text == "begin" else -1
        if token.kind != "mark":
            continue
        if token.text == "|" and bars and depth == 0:
            within_bars = not within_bars
        if token.text in ("(", "[", "{", r"\{"):
            depth += 1
        elif token.text in (")", "]", "}", r"\}"):
            depth -= 1
        elif token.text in marks and depth == 0 and not environment and not within_bars:
            parts.append(tokens[start:index])
            found.append(token.text)
            start = index + 1
    parts.append(tokens[start:])
    return parts, found


_DOTS = ("ldots", "dots", "cdots", "dotsc", "dotsb")


def _several(parts: list[Sequence[Token]], separators: list[str], text: str) -> Canonical:
    kept = [part for part in parts if part]
    if len(kept) > _MOST_ITEMS:
        raise NotExact("too many items")
    if len(kept) < 2:
        return _one(kept[0] if kept else (), text)
    items: list[Canonical] = []
    if any(_is_dots(part) for part in kept):
        shown = tuple("..." if _is_dots(part) else _one(part, text).key for part in kept)
        return Canonical("sequence", ("sequence", shown))
    for part in kept:
        items += _expanded(part, text)
    if all(item.kind == "intervals" for item in items) and any(
        _has_relation(part) for part in kept
    ):
        names = {item.name for item in items}
        if len(names) == 1:
            joined = _joined(items, "or" in separators, separators)
            return _named(joined, names.pop())
        raise NotExact("several unknowns")
    if "and" in separators or "or" in separators or "," in separators or ";" in separators:
        # "x = 3, 4" and "x = 3 or x = 4" say what x is.
        first = items[0].name
        if first and all(item.name in (first, None) for item in items):
            return _named(_list([_named(item, None) for item in items]), first)
    stems = {re.sub(r"_\d+$", "", item.name or "") for item in items}
    if len(stems) == 1 and "" not in stems:  # x_1 = 2, x_2 = 5
        return _named(_list([_named(item, None) for item in items]), stems.pop())
    names_given = [item.name for item in items]
    if all(names_given) and len(set(names_given)) == len(items):
        items.sort(key=lambda item: item.name or "")
        return Canonical(
            "assignments",
            ("assignments", tuple(item.name for item in items), tuple(item.key for item in items)),
            items=tuple(items),
            loose=any(item.loose for item in items),
            heavy=any(item.heavy for item in items),
        )
    return _list(items)


def _is_dots(tokens: Sequence[Token]) -> bool:
    texts = [token.text for token in tokens]
    return (len(texts) == 1 and texts[0] in _DOTS) or texts == [".", ".", "."]


def _has_relation(tokens: Sequence[Token]) -> bool:
    return any(token.kind == "mark" and token.text in _RELATIONS for token in tokens)


def _named(form: Canonical, name: str | None) -> Canonical:
    return replace(form, name=name, relation=None, choice=None)


def _list(items: Sequence[Canonical], distinct: bool = False) -> Canonical:
    if distinct:
        items = list({(item.key, item.unit): item for item in items}.values())
    if len(items) == 1:
        return items[0]
    return Canonical(
        "list",
        ("list", tuple(sorted((item.key for item in items), key=repr))),
        items=tuple(items),
        loose=any(item.loose for item in items),
        heavy=any(item.heavy for item in items),
    )


def _expanded(tokens: Sequence[Token], text: str) -> list[Canonical]:
    """Return what one item of a list stands for: two answers where it holds "plus or minus"."""
    form = _one(tokens, text)
    if form.kind == "list" and any(token.text in ("pm", "mp") for token in tokens):
        return [_named(item, form.name) if form.name else item for item in form.items]
    return [form]


def _one(tokens: Sequence[Token], text: str) -> Canonical:
    if not tokens:
        raise NotExact("nothing")
    if any(token.kind == "command" and token.text in ("pm", "mp") for token in tokens):
        return _plus_and_minus(tokens, text)
    return _single(tokens, text, 1)


def _plus_and_minus(tokens: Sequence[Token], text: str) -> Canonical:
    first, second = (_single(tokens, text, plus) for plus in (1, -1))
    name = first.name
    if name:
        return _named(_list([_named(first, None), _named(second, None)], distinct=True), name)
    return _list([first, second], distinct=True)


def _single(tokens: Sequence[Token], text: str, plus: int) -> Canonical:
    if not tokens:
        raise NotExact("nothing")
    modulus = _outer_command(tokens, "pmod")
    if modulus is not None:
        return _congruence(tokens[:modulus], tokens[modulus + 1 :], plus)
    parts, marks = _split(tokens, (*_RELATIONS, "=="))
    if marks:
        return _related(parts, marks, text, plus)
    for command in ("in", "cup", "cap", "setminus"):
        at = _outer_command(tokens, command)
        if at is not None:
            if command == "in":
                inner = _single(tokens[at + 1 :], text, plus)
                return _named(inner, _name(tokens[:at]))
            return _set(tokens, text, plus)
    if len(tokens) > 1 and all(token.kind == "number" for token in tokens):
        return _list([_single([token], text, plus) for token in tokens])
    parts, marks = _split(tokens, (":",))
    if marks:
        return _ratio(parts, text, plus)
    first, last = tokens[0], tokens[-1]
    if first.text == "[" or (first.text in ("(", "]") and first.kind == "mark"):
        bracketed = _bracketed(tokens, text, plus)
        if bracketed is not None:
            return bracketed
    if first.text == r"\{" and last.text == r"\}" and _closes(tokens):
        return _braces(tokens[1:-1], text, plus)
    begins = _outer_command(tokens, "begin")
    if begins is not None:
        scale = read_value(tokens[:begins], plus)[0] if begins else None
        return _matrix(tokens[begins:], text, scale)
    if first.kind == "command" and first.text == "mathbb":
        return _set(tokens, text, plus)
    return _quantity(tokens, text, plus)


def _closes(tokens: Sequence[Token]) -> bool:
    """Return whether the first bracket closes with the last token only."""
    depth = 0
    for index, token in enumerate(tokens):
        if token.kind != "mark":
            continue
        if token.text in ("(", "[", "{", r"\{"):
            depth += 1
        elif token.text in (")", "]", "}", r"\}"):
            depth -= 1
            if depth == 0:
                return index == len(tokens) - 1
    return False


def _outer_command(tokens: Sequence[Token], name: str) -> int | None:
    depth = 0
    for index, token in enumerate(tokens):
        if token.kind == "mark":
            depth += (token.text in ("(", "[", "{", r"\{")) - (token.text in (")", "]", "}", r"\}"))
        elif depth <= 0 and token.kind == "command" and token.text == name:
            return index
    return None


# Numbers.


def _number(
    value: Value, unit: Unit | None = None, *, base: Hashable = None, spelled: str | None = None
) -> Canonical:
    return Canonical(
        "number",
        ("number", value.key, base),
        value,
        unit=None if unit == NONE else unit,
        base=base,
        spelled=spelled,
        loose=value.loose,
        heavy=value.heavy,
    )


_BASE_WORDS = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "sixteen": 16,
    "binary": 2, "octal": 8, "decimal": 10, "hex": 16,
}  # fmt: skip
_IN_BASE = re.compile(
    r"\s*(-?)\s*(?:\\text\s*\{|\()?\s*([0-9A-F](?:[0-9A-Fa-f ,]*[0-9A-Fa-f])?)\s*[)}]?\s*"
    r"(?:_\s*(?:\{\s*)?\(?\s*(?:\\text\s*\{\s*)?([a-z]+|\d+)\s*\)?\s*\}?\s*\)?\}?"
    r"|(?:\\text\s*\{)?\s*\(?(?:in\s+)?base[\s-]+([a-z]+|\d+)\s*\)?\}?)\s*"
)
_PREFIXED = re.compile("(-?)0([xbo])([0-9A-Fa-f]+)")


def _in_base(text: str) -> Canonical | None:
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
        value = ("no number", digits, base)
    shown = exact.symbol(f"digits {digits}") if bare is None else whole(bare)
    return _number(shown, base=("base", value))


_PORTION = re.compile(
    r"\s*(?:and\s+)?(\d+(?:\.\d+)?)\s*([A-Za-z]+)\.?\s*(?:,(?=\s*(?:and\b|\d+\s*[A-Za-z])))?"
)


def _compound(text: str) -> Canonical | None:
    """Return a quantity of several parts: "2 hours and 30 minutes"."""
    shown = " ".join(_TEXT.sub(r" \1 ", text).split())
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
    return _number(total, portions[0][1])


_PREFIX_UNITS = {r"\$": "dollar", "$": "dollar", "£": "£", "€": "€", "¥": "¥", "₹": "₹"}


def _quantity(tokens: Sequence[Token], text: str, plus: int) -> Canonical:
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
    if scale:
        value = value * whole(10**scale)
    if degrees:
        temperature = re.search(r"([CF])\W*$", written)
        unit = read_unit(f"°{temperature[1]}") if temperature else (unit or DEGREE)
    spelled = None
    if unit is None and re.fullmatch("[A-Za-z]{2,3}", written):
        spelled = written.lower()
    return _number(value, unit, spelled=spelled)


_MAGNITUDES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MAGNITUDE = re.compile(rf"\s*(?:\\text\s*\{{\s*)?({'|'.join(_MAGNITUDES)})s?\b", re.I)


def _magnitude(suffix: str) -> tuple[int, str]:
    """Return the power of ten that begins a unit's text, and the rest: "million dollars"."""
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
        if token.kind == "mark":
            depth += (token.text in ("(", "[", "{", r"\{")) - (token.text in (")", "]", "}", r"\}"))
        if depth:
            continue
        unit_letter = index > 0 and token.kind == "letter" and token.text in _UNIT_LETTERS
        if index > 0 and token.text == "Omega" and index == len(tokens) - 1:
            return tokens[:index], "Ω"
        is_text = token.kind == "text" and token.text not in FUNCTIONS
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
        if token.text == "circ" and token.kind == "command" and tokens[index - 1].text == "{":
            continue
    return tokens, ""


_LETTER_UNIT = r"(?:[kcmMGdn]?[msghlLNJWVAKFC]|mol|kg|Hz|Pa|in|ft|mi|min)(?:\^\{?-?\d\}?)?"
_LETTER_UNITS = re.compile(rf"{_LETTER_UNIT}(?:\s*[/*]?\s*{_LETTER_UNIT})*")
"""Units written in letters, behind a number and a space: "5 m/s^2"."""
_UNIT_LETTERS = frozenset("msghlLNJWVAKCF")


def _only_words(tokens: Sequence[Token], text: str) -> Canonical:
    shown = text[tokens[0].start : tokens[-1].end]
    form = _known_words(shown) or _words(shown)
    if form is None:
        raise NotExact("words that are not understood")
    return form


def _ratio(parts: list[Sequence[Token]], text: str, plus: int) -> Canonical:
    values = [read_value(part, plus)[0] for part in parts]
    if any(value.exact is None or value.exact == 0 for value in values[:1]):
        # Nothing to scale by.
        return Canonical("ratio", ("ratio", tuple(value.key for value in values)))
    if len(values) == 2 and values[1].exact != 0:
        return _number(values[0] / values[1])
    return Canonical("ratio", ("ratio", tuple((value / values[0]).key for value in values)))


def _congruence(tokens: Sequence[Token], modulus: Sequence[Token], plus: int) -> Canonical:
    sides, marks = _split(tokens, ("==", "="))
    divisor = read_value(modulus)[0].exact
    value = read_value(sides[-1], plus)[0]
    if divisor is None or divisor.denominator != 1 or len(sides) > 2:
        raise NotExact("an unknown modulus")
    form = _number(
        exact.remainder(value, int(divisor)), Unit(Fraction(1), ((f"mod {divisor}", 1),))
    )
    return replace(form, name=_name(sides[0])) if marks else form


# Tuples, sets, matrices.


def _bracketed(tokens: Sequence[Token], text: str, plus: int) -> Canonical | None:
    """Return a tuple or an interval; None where the bracket begins an expression."""
    opening, closing = tokens[0].text, tokens[-1].text
    if closing not in (")", "]", "["):
        return None
    turned = opening == "]" or closing == "["  # ]1, 2[ is open
    inner = tokens[1:-1]
    if not turned and not _closes_any(tokens):
        return None
    parts, separators = _split(inner, (",", ";"))
    if not separators:
        if inner and inner[0].text == "begin":
            return _single(inner, text, plus)
        if opening == "[" and closing == "]" or opening == "(" == closing:
            return _one(inner, text) if opening == "[" and inner else None
        return None
    if any(not part for part in parts) or len(parts) > _MOST_ITEMS:
        raise NotExact("an empty place in a tuple")
    if len(parts) == 2:
        ends = _interval(parts, opening, closing, text, plus)
        if ends is not None:
            return ends
    if turned:
        raise NotExact("no interval")
    items = [_single(part, text, plus) for part in parts]
    return _tuple(items)


def _tuple(items: Sequence[Canonical]) -> Canonical:
    return Canonical(
        "tuple",
        ("tuple", len(items), tuple(item.key for item in items)),
        items=tuple(items),
        loose=any(item.loose for item in items),
        heavy=any(item.heavy for item in items),
    )


def _closes_any(tokens: Sequence[Token]) -> bool:
    """Return whether the first bracket closes, by a round or a square one, with the last token."""
    depth = 0
    for index, token in enumerate(tokens):
        if token.kind != "mark":
            continue
        if token.text in ("(", "[", "{", r"\{"):
            depth += 1
        elif token.text in (")", "]", "}", r"\}"):
            depth -= 1
            if depth == 0:
                return index == len(tokens) - 1
    return False


def _braces(tokens: Sequence[Token], text: str, plus: int) -> Canonical:
    if not tokens:
        return Canonical("intervals", ("intervals", ()))
    for mark in ("|", ":"):
        parts, marks = _split(tokens, (mark,))
        if len(marks) == 1 and len(parts) == 2 and parts[0] and parts[1]:
            condition = _answer(parts[1], text)
            return _named(condition, None)
    parts, _ = _split(tokens, (",", ";", "and", "or"))
    items: list[Canonical] = []
    for part in parts:
        items += _expanded(part, text)
    return _list(items, distinct=True)


_MATRICES = {
    "pmatrix",
    "bmatrix",
    "vmatrix",
    "Bmatrix",
    "matrix",
    "smallmatrix",
    "array",
    "psmallmatrix",
}


def _matrix(tokens: Sequence[Token], text: str, scale: Value | None) -> Canonical:
    written = text[tokens[0].start : tokens[-1].end]
    found = re.fullmatch(
        r"\\begin\s*\{([A-Za-z]+)\}(?:\s*\{[lcr|]+\})?(.*)\\end\s*\{\1\}", written, re.S
    )
    if found is None or found[1] not in _MATRICES or found[1] == "vmatrix":
        raise NotExact("an environment that is no matrix")
    body = re.sub(r"\\hline", "", found[2]).strip()
    rows = [row for row in re.split(r"\\\\(?:\[[^]]*\])?|\\cr(?![a-z])", body) if row.strip()]
    cells = [[_read(cell) for cell in re.split(r"(?<!\\)&", row)] for row in rows]
    if not rows or len({len(row) for row in cells}) != 1 or len(rows) * len(cells[0]) > _MOST_ITEMS:
        raise NotExact("a ragged matrix")
    flat = tuple(cell for row in cells for cell in row)
    if scale is not None:
        if any(cell.value is None or cell.unit for cell in flat):
            raise NotExact("a multiple of no matrix of numbers")
        flat = tuple(_number(scale * cell.value) for cell in flat if cell.value is not None)
    return Canonical(
        "matrix",
        ("matrix", (len(rows), len(cells[0])), tuple(cell.key for cell in flat)),
        items=flat,
        loose=any(cell.loose for cell in flat),
        heavy=any(cell.heavy for cell in flat),
    )


# Sets of real numbers.


@dataclass(frozen=True)
class _End:
    """An end of an interval: a real constant, or infinite."""

    number: float
    key: Hashable
    closed: bool


@dataclass(frozen=True)
class _Interval:
    low: _End
    high: _End


_EVERYTHING = _Interval(
    _End(float("-inf"), "-inf", False),
    _End(float("inf"), "inf", False),
)


def _interval(
    parts: Sequence[Sequence[Token]], opening: str, closing: str, text: str, plus: int
) -> Canonical | None:
    try:
        low = _end(parts[0], opening == "[", text, plus)
        high = _end(parts[1], closing == "]", text, plus)
    except NotExact:
        return None
    if low is None or high is None or not low.number < high.number:
        return None
    form = _intervals([_Interval(low, high)])
    if opening == "(" and closing == ")" and "inf" not in (high.key, str(low.key)[1:]):
        # It may be a pair of numbers as well.
        form = replace(form, items=tuple(_single(part, text, plus) for part in parts))
    return form


def _end(tokens: Sequence[Token], closed: bool, text: str, plus: int) -> _End | None:
    texts = [token.text for token in tokens]
    if not texts:
        raise NotExact("no end")
    if texts[-1] in ("infty", "infinity", "inf") and len(texts) <= 2:
        negative = texts[0] == "-"
        return _End(
            float("-inf") if negative else float("inf"), "-inf" if negative else "inf", False
        )
    value = read_value(tokens, plus)[0]
    return None if value.real is None else _End(value.real, value.key, closed)


def _intervals(parts: Sequence[_Interval], name: str | None = None) -> Canonical:
    """Return a union of intervals; those that overlap or touch are joined."""
    merged: list[_Interval] = []
    for part in sorted(parts, key=lambda part: (part.low.number, not part.low.closed)):
        if merged:
            last = merged[-1]
            touching = last.high.key == part.low.key and (last.high.closed or part.low.closed)
            if touching or (part.low.number < last.high.number and last.high.key != part.low.key):
                if part.high.number > last.high.number or (
                    part.high.key == last.high.key and part.high.closed
                ):
                    merged[-1] = _Interval(last.low, part.high)
                continue
        merged.append(part)
    key = tuple((part.low.key, part.low.closed, part.high.key, part.high.closed) for part in merged)
    if len(merged) == 1 and merged[0].low.key == merged[0].high.key:
        raise NotExact("a single point")
    return Canonical("intervals", ("intervals", key), name=name, base=tuple(merged))


def _parts(form: Canonical) -> list[_Interval]:
    """Return the intervals of a set; a finite set's numbers are intervals of one point."""
    if form.kind == "intervals":
        return list(form.base) if isinstance(form.base, tuple) else []
    if form.kind in ("number", "list"):
        points = []
        for item in form.items or (form,):
            if item.value is None or item.value.real is None:
                raise NotExact("a set of no numbers")
            end = _End(item.value.real, item.value.key, True)
            points.append(_Interval(end, end))
        return points
    raise NotExact("no set of numbers")


def _complement(parts: Sequence[_Interval]) -> list[_Interval]:
    found = []
    low = _EVERYTHING.low
    for part in parts:
        if part.low.key != "-inf":
            high = _End(part.low.number, part.low.key, not part.low.closed)
            if low.number < high.number or (low.key == high.key and low.closed and high.closed):
                found.append(_Interval(low, high))
        low = _End(part.high.number, part.high.key, not part.high.closed)
    if not parts or parts[-1].high.key != "inf":
        found.append(_Interval(low, _EVERYTHING.high))
    return found


def _sorted_parts(parts: Sequence[_Interval]) -> list[_Interval]:
    form = _intervals([*parts]) if len(parts) > 1 else None
    return _parts(form) if form is not None else list(parts)


def _intersection(first: Sequence[_Interval], second: Sequence[_Interval]) -> list[_Interval]:
    found = []
    for a in first:
        for b in second:
            low = max((a.low, b.low), key=lambda end: (end.number, not end.closed))
            high = min((a.high, b.high), key=lambda end: (end.number, end.closed))
            if low.number < high.number or (low.key == high.key and low.closed and high.closed):
                found.append(_Interval(low, high))
    return found


def _joined(items: Sequence[Canonical], either: bool, separators: Sequence[str]) -> Canonical:
    if either:
        return _intervals([part for item in items for part in _parts(item)])
    common = _parts(items[0])
    for item in items[1:]:
        common = _intersection(common, _parts(item))
    if not common and "and" not in separators:  # "x < 1, x > 3"
        return _intervals([part for item in items for part in _parts(item)])
    return _intervals(common) if common else Canonical("intervals", ("intervals", ()))


def _set(tokens: Sequence[Token], text: str, plus: int) -> Canonical:
    """Read unions, intersections and differences, from left to right."""
    parts: list[Sequence[Token]] = []
    operations: list[str] = []
    depth, start = 0, 0
    for index, token in enumerate(tokens):
        if token.kind == "mark":
            depth += (token.text in ("(", "[", "{", r"\{")) - (token.text in (")", "]", "}", r"\}"))
        if depth <= 0 and token.kind == "command" and token.text in ("cup", "cap", "setminus"):
            parts.append(tokens[start:index])
            operations.append(token.text)
            start = index + 1
            depth = 0
    parts.append(tokens[start:])
    found: list[_Interval] | None = None
    for operation, part in zip(["", *operations], parts, strict=True):
        written = "".join(token.text for token in part)
        if written in ("mathbb{R}", "mathbbR"):
            operand = [_EVERYTHING]
        elif not operations:
            raise NotExact("an unknown set")
        else:
            operand = _parts(_single(part, text, plus))
        if found is None:
            found = operand
        elif operation == "cup":
            found = _sorted_parts([*found, *operand])
        elif operation == "cap":
            found = _intersection(found, operand)
        else:
            found = _intersection(found, _complement(_sorted_parts(operand)))
    assert found is not None
    return _intervals(found) if found else Canonical("intervals", ("intervals", ()))


# Equations and inequalities.


def _name(tokens: Sequence[Token]) -> str | None:
    """Return the name on the left of "x = 5"; None where that is an expression."""
    kinds = [token.kind for token in tokens]
    texts = [token.text for token in tokens]
    if not tokens:
        return None
    if all(kind in ("text", "letter") for kind in kinds):
        return " ".join(texts)
    if kinds[0] == "text" and all(kind in ("text", "mark", "letter", "symbol") for kind in kinds):
        return " ".join(texts)
    if kinds[0] == "symbol" or (
        kinds[0] == "command"
        and texts[0] not in FUNCTIONS
        and texts[0] not in ("frac", "dfrac", "sqrt", "pi", "tfrac", "binom")
    ):
        if len(tokens) == 1:
            return None if texts == ["i"] else texts[0]
        if texts[1] == "_" and (
            len(tokens) == 3 or (texts[2] == "{" and texts.index("}") == len(texts) - 1)
        ):
            return "".join(text for text in texts if text not in "{}")
        if (
            texts[1] == "("
            and texts[-1] == ")"
            and len(tokens) == 4
            and texts[0]
            in (
                "f",
                "g",
                "h",
                "p",
                "q",
                "F",
                "G",
                "P",
                "Q",
                "y",
                "u",
                "v",
                "T",
                "S",
                "V",
                "A",
                "a",
                "x",
                "r",
                "s",
            )
        ):
            return _FUNCTION
    if (
        texts[0] == "("
        and texts[-1] == ")"
        and all(
            kind == "symbol" or text in ("(", ")", ",")
            for kind, text in zip(kinds, texts, strict=True)
        )
        and "," in texts
    ):
        return "".join(texts)
    return None


_FUNCTION = "f(x)"


def _related(parts: list[Sequence[Token]], marks: list[str], text: str, plus: int) -> Canonical:
    if "==" in marks or any(not part for part in parts):
        raise NotExact("a congruence")
    if set(marks) == {"="}:
        return _equation(parts, text, plus)
    if len(parts) == 2:
        return _inequality(parts[0], marks[0], parts[1], text, plus)
    if len(parts) == 3:
        first = _inequality(parts[0], marks[0], parts[1], text, plus)
        second = _inequality(parts[1], marks[1], parts[2], text, plus)
        if first.kind == second.kind == "intervals" and first.name == second.name:
            return _named(_joined([first, second], False, ("and",)), first.name)
    raise NotExact("a chain of relations")


def _equation(parts: list[Sequence[Token]], text: str, plus: int) -> Canonical:
    names = [_name(part) for part in parts]
    if len(parts) > 2:
        # "S = 2 + 3 = 5" ends with what it is; "x = y = 5" says something of two.
        if names[0] and not any(names[1:-1]):
            return _equation([parts[0], parts[-1]], text, plus)
        if any(names):
            raise NotExact("a chain of equations")
        return _single(parts[-1], text, plus)
    left, right = parts
    if names[1] and not names[0]:
        left, right, names = right, left, [names[1], names[0]]
    if names[0]:
        form = _single(right, text, plus)
        shown: Hashable = None
        if form.kind == "number" and form.value is not None and form.value.free:
            try:
                # y, f(x) and the like are one name here.
                subject = exact.symbol("y") if _is_function(names[0]) else read_value(left)[0]
                shown = ("relation", "=", _proportional(subject - form.value))
            except NotExact:
                shown = None
        name = _FUNCTION if shown is not None and _is_function(names[0]) else names[0]
        return replace(form, name=name, relation=shown, choice=None)
    try:
        subject = read_value(left, plus)[0]
    except NotExact:
        written = "".join(token.text for token in left)
        if any(map(str.isdigit, written)):
            raise
        return replace(_single(right, text, plus), name=written, relation=None, choice=None)
    difference = subject - read_value(right, plus)[0]
    if not difference.free:
        # "2 + 3 = 5" is as good as 5.
        if difference.exact == 0:
            return _single(right, text, plus)
        raise NotExact("a false equation")
    linear = _linear(difference)
    if linear is not None:
        return replace(_number(linear[1]), name=next(iter(difference.free)))
    return Canonical(
        "relation",
        ("relation", "=", _proportional(difference)),
        loose=difference.loose,
        heavy=difference.heavy,
    )


def _is_function(name: str) -> bool:
    return name in (_FUNCTION, "y", "f", "g", "h")


def _proportional(value: Value) -> Hashable:
    """Return what a value and its multiples have in common."""
    first, second, third = (Value(None, (element,) * 3) for element in value.image)
    return ((second / first).image[0], (third / first).image[0])


def _linear(value: Value) -> tuple[float, Value] | None:
    """Return the slope's sign and the zero of a linear function of one symbol."""
    if len(value.free) != 1 or value.loose or value.numbers is None:
        return None
    unknown = exact.symbol(next(iter(value.free)))
    assert unknown.numbers is not None
    (x, y), (u, v) = ([_at(form, point) for point in (0, 1)] for form in (unknown, value))
    slope = (v - u) / (y - x)
    last = u + slope * (_at(unknown, 2) - x)
    if last.key != _at(value, 2).key or slope.real is None or slope.exact == 0:
        return None
    return slope.real, x - u / slope


def _at(value: Value, point: int) -> Value:
    numbers = value.numbers
    return Value(
        None, (value.image[point],) * 3, None, None if numbers is None else (numbers[point],) * 3
    )


def _bounded(name: str, relation: str, end: _End) -> Canonical:
    if relation == "!=":
        opened = _End(end.number, end.key, False)
        parts = [_Interval(_EVERYTHING.low, opened), _Interval(opened, _EVERYTHING.high)]
    elif relation in ("<", "<="):
        parts = [_Interval(_EVERYTHING.low, end)]
    else:
        parts = [_Interval(end, _EVERYTHING.high)]
    return _intervals(parts, name)


def _inequality(
    left: Sequence[Token], mark: str, right: Sequence[Token], text: str, plus: int
) -> Canonical:
    for subject, bound, relation in ((left, right, mark), (right, left, _FLIPPED[mark])):
        name = _name(subject)
        if name is None:
            continue
        end = _end(bound, relation in ("<=", ">="), text, plus)
        if end is None:
            continue
        return _bounded(name, relation, end)
    difference = read_value(left, plus)[0] - read_value(right, plus)[0]
    if not difference.free or difference.numbers is None:
        raise NotExact("an inequality between numbers")
    linear = _linear(difference)
    if linear is not None and linear[1].real is not None:
        slope, zero = linear
        end = _End(zero.real or 0.0, zero.key, mark in ("<=", ">="))
        name = next(iter(difference.free))
        return _bounded(name, mark if slope > 0 else _FLIPPED[mark], end)
    if mark == "!=":
        sign = mark
    else:
        # The larger side of the point decides how the two sides are put.
        sign = mark if difference.numbers[0].real > 0 else _FLIPPED[mark]
    return Canonical(
        "relation",
        ("relation", sign, _proportional(difference)),
        loose=difference.loose,
        heavy=difference.heavy,
    )
