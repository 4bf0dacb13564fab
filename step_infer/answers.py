r"""Find the final answer in a response: the content of its last \boxed{}."""

from step_infer.boundary import THINK_END

_BOX = "\\boxed"


def extract_boxed(text: str) -> str | None:
    r"""Return the content of the last complete \boxed{...}, or None.

    Where the text has an end of thinking, only what follows it counts: a box inside the reasoning
    is a draft. Braces nest; an escaped brace does not open or close. "\boxed 7" gives "7"; an empty
    box is no answer.
    """
    answer = text.rpartition(THINK_END)[2]
    start = answer.rfind(_BOX)
    while start >= 0:
        content = _content(answer, start + len(_BOX))
        if content is not None:
            return content.strip() or None
        start = answer.rfind(_BOX, 0, start)
    return None


def _content(text: str, start: int) -> str | None:
    while start < len(text) and text[start].isspace():
        start += 1
    if start >= len(text):
        return None
    if text[start] != "{":
        return text[start:].split(maxsplit=1)[0].rstrip("$.,") or None
    depth = 0
    position = start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : position]
        position += 1
    return None
