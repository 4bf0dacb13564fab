"""The end of thinking: found in the text, whether one token or several make it."""

from collections.abc import Sequence

THINK_END = "</think>"

Steps = tuple[tuple[int, int, frozenset[int]], ...]
"""How far tokens get in the end of thinking: (characters matched before, characters matched after,
ids of the tokens). A token that has no entry for what was matched before does the same as after
nothing; one that has none for nothing either begins anew."""


def think_start(end: str) -> str | None:
    """Return the text that opens what `end` closes; None where its form does not tell.

    Known forms: </think>, [/THINK] and <channel|>, which close <think>, [THINK] and <|channel>.
    """
    if end[1:2] == "/":
        return end[0] + end[2:]
    if end.startswith("<") and end.endswith("|>") and "|" not in end[:-2]:
        return "<|" + end[1:-2] + ">"
    return None


def opens_thinking(prompt_end: str, end: str) -> bool:
    """Return whether a prompt, of which at least the end is given, ends by opening the thinking."""
    start = think_start(end)
    return start is not None and prompt_end.rstrip().endswith(start)


def is_unfinished(prompt_end: str, text: str, end: str) -> bool:
    """Return whether a response that was cut off stops inside its thinking.

    It does where the prompt or the text opened the thinking and no end came. Where the form of the
    end does not tell what opens it, no end is enough.

    Args:
        prompt_end: text of the prompt, at least its last words.
        text: the response.
        end: text that ends the thinking.
    """
    if end in text:
        return False
    start = think_start(end)
    return start is None or start in text or opens_thinking(prompt_end, end)


def end_steps(end: str, texts: Sequence[str]) -> Steps:
    """Return how far each token of a vocabulary gets in `end`, after each part of it.

    Args:
        end: text that ends the thinking, at least one character.
        texts: every token's text, in the order of the ids.
    """
    borders = _borders(end)
    steps: dict[tuple[int, int], set[int]] = {}
    later = set(end[1:])
    for token_id, text in enumerate(texts):
        if not text or (end[0] not in text and text[0] not in later):
            continue  # neither begins the end nor goes on with it
        anew = _matched(end, borders, 0, text)
        if anew:
            steps.setdefault((0, anew), set()).add(token_id)
        for before in range(1, len(end)):
            after = _matched(end, borders, before, text)
            if after != anew:
                steps.setdefault((before, after), set()).add(token_id)
    return tuple((*key, frozenset(steps[key])) for key in sorted(steps))


def _borders(end: str) -> list[int]:
    """Return for each beginning of `end` its longest other beginning that it also ends with."""
    borders = [0] * len(end)
    length = 0
    for i in range(1, len(end)):
        while length and end[i] != end[length]:
            length = borders[length - 1]
        length += end[i] == end[length]
        borders[i] = length
    return borders


def _matched(end: str, borders: Sequence[int], matched: int, text: str) -> int:
    """Return how many characters of `end` are matched after `text` (Knuth, Morris, Pratt)."""
    for character in text:
        while matched and end[matched] != character:
            matched = borders[matched - 1]
        matched += end[matched] == character
        if matched == len(end):
            break
    return matched
