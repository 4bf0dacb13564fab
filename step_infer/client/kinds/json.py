"""JSON values."""

import json
import re
from collections.abc import Hashable
from decimal import Decimal
from typing import Any

from step_infer.client.kinds.kind import KeyedKind, Open, final_part

_DEEPEST = 100
"""Values within each other."""
_WORK = 2_000_000
"""Characters that may be read in vain in one response: it could hold a beginning at every place."""
_ATTEMPT = 200
"""What an attempt costs beside them: the error that ends it counts lines."""
_FENCE = re.compile(r"^[ \t]*```[ \t]*(?:json[c5]?)?[ \t]*\n(.*?)^[ \t]*```", re.M | re.S | re.I)
_OPENING = re.compile(r"""\{\s{0,200}["}]|\[\s{0,200}(?:[]"{\[\d-]|true|false|null)""")


class JsonKind(KeyedKind):
    """The last JSON object or array; equal as values, in whatever order their keys stand."""

    def extract(self, text: str, think_end: str | None) -> str | None | Open:
        """Return the last fenced block that is an object or array, or else the last one of all."""
        final = final_part(text, think_end)
        for block in reversed(_FENCE.findall(final)):
            if block.strip()[:1] in ("{", "[") and self.key(block.strip()) is not None:
                return str(block.strip())
        return _last_value(final)

    def read(self, answer: str) -> Hashable | None:
        """Return the value in a form of its own; None where the text is no JSON."""
        try:
            return _form(_DECODER.decode(answer), 0)
        except (ValueError, RecursionError):
            return None


def _last_value(text: str) -> str | None:
    last = None
    work = start = 0
    while work < _WORK and (found := _OPENING.search(text, start)):
        start = found.start()
        try:
            value, end = _DECODER.raw_decode(text, start)
            _form(value, 0)
            last, start = text[start:end], end
        except json.JSONDecodeError as error:
            work += error.pos - start + _ATTEMPT
            start += 1
        except (ValueError, RecursionError):
            work += len(text) - start
            start += 1
    return last


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except ArithmeticError as error:
        raise ValueError(text) from error


def _refuse(text: str) -> Any:
    raise ValueError(text)


_DECODER = json.JSONDecoder(parse_float=_number, parse_int=_number, parse_constant=_refuse)


def _form(value: Any, depth: int) -> str:
    """Return a text that is the same for equal values.

    Raises:
        ValueError: they lie too deep within each other.
    """
    if depth > _DEEPEST:
        raise ValueError(depth)
    if isinstance(value, dict):
        items = (f"{json.dumps(key)}:{_form(value[key], depth + 1)}" for key in sorted(value))
        return f"{{{','.join(items)}}}"
    if isinstance(value, list):
        return f"[{','.join(_form(item, depth + 1) for item in value)}]"
    if isinstance(value, Decimal):
        if not value:
            return "0"
        sign, digits, exponent = value.as_tuple()
        text = "".join(map(str, digits)).lstrip("0")
        kept = text.rstrip("0")
        return f"{'-' * sign}{kept}e{int(exponent) + len(text) - len(kept)}"
    return json.dumps(value)
