"""Types of the fields of a dataclass whose values come from a file."""

import dataclasses
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


def check_types(value: Any) -> None:
    """Check that a dataclass's fields hold what their annotations say, one level deep.

    A truth value is no number.

    Raises:
        TypeError: one does not; the message names it.
    """
    types = get_type_hints(type(value))
    for field in dataclasses.fields(value):
        found, annotation = getattr(value, field.name), types[field.name]
        options = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        allowed = tuple(get_origin(option) or option for option in options)
        if not isinstance(found, allowed) or (isinstance(found, bool) and bool not in allowed):
            names = " or ".join("null" if a is type(None) else a.__name__ for a in allowed)
            raise TypeError(f"{field.name} {found!r}, which is no {names}")
