"""Where tokens stand: outside of brackets, or within."""

from collections.abc import Sequence

from step_infer.client.canonical.tokens import Token


def depth_change(token: Token) -> int:
    """Return 1 for a bracket that opens, -1 for one that closes, else 0."""
    if token.kind != "mark":
        return 0
    return (token.text in ("(", "[", "{", r"\{")) - (token.text in (")", "]", "}", r"\}"))


def split_outside(
    tokens: Sequence[Token], marks: Sequence[str]
) -> tuple[list[Sequence[Token]], list[str]]:
    """Split at marks or commands outside of brackets."""
    parts: list[Sequence[Token]] = []
    found: list[str] = []
    depth, start = 0, 0
    environment = 0
    bars = sum(token.text == "|" for token in tokens) % 2 == 0
    within_bars = False
    for index, token in enumerate(tokens):
        if token.kind == "command" and token.text in ("begin", "end"):
            environment += 1 if token.text == "begin" else -1
        if token.kind == "mark" and token.text == "|" and bars and depth == 0:
            within_bars = not within_bars
        change = depth_change(token)
        depth += change
        outside = not (depth or change or environment or within_bars)
        if outside and token.text in marks and token.kind in ("mark", "command"):
            parts.append(tokens[start:index])
            found.append(token.text)
            start = index + 1
    parts.append(tokens[start:])
    return parts, found


def closes_last(tokens: Sequence[Token]) -> bool:
    """Return whether the first bracket closes with the last token only."""
    depth = 0
    for index, token in enumerate(tokens):
        change = depth_change(token)
        depth += change
        if change < 0 and depth == 0:
            return index == len(tokens) - 1
    return False


def find_outer(tokens: Sequence[Token], name: str) -> int | None:
    """Return where a command stands outside of brackets; None where it does not."""
    depth = 0
    for index, token in enumerate(tokens):
        depth += depth_change(token)
        if depth <= 0 and token.kind == "command" and token.text == name:
            return index
    return None
