"""Numbers, times of day and dates in words."""

import re
from fractions import Fraction

from step_infer.client.canonical.exact import Value
from step_infer.client.canonical.form import Canonical, number_form

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SMALL = {
    **{word: number for number, word in enumerate(_ONES)},
    **{word: 10 * number for number, word in enumerate(_TENS, 2)},
}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_PLACES = {
    **{word.removesuffix("y") + ("ieth" if word[-1] == "y" else "th"): number
       for word, number in _SMALL.items() if number > 3},
    "first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12,
    "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
_PORTIONS = {**_PLACES, "second": 0, "half": 2, "halve": 2, "quarter": 4}
_WORD = rf"(?:{'|'.join(sorted({*_SMALL, *_SCALES, *_PORTIONS}, key=len, reverse=True))})s?"
_RUN = re.compile(
    rf"(?:(?:an?|the|negative|minus)\s+)?(?!seconds\b){_WORD}"
    rf"(?:(?:\s+|-|\s+and\s+(?:an?\s+)?)(?!seconds?\b){_WORD}|-second\b)*(?![\w-])",
    re.I,
)
"""Behind another word, "second" is a unit of time."""


def number_in_words(text: str) -> tuple[str, str] | None:
    """Return the number whose name begins a text, in digits, and the rest; None where none does."""
    found = _RUN.match(text)
    if found is None:
        return None
    words = re.split(r"[\s-]+", found[0].lower())
    sign = "-" if words[0] in ("negative", "minus") else ""
    words = (
        words[1:]
        if sign or words[0] == "the"
        else ["one" if word in ("a", "an") else word for word in words]
    )
    value = _cardinal(words)
    if value is None and "and" in words:
        at = len(words) - 1 - words[::-1].index("and")
        first, second = _cardinal(words[:at]), _portion(words[at + 1 :])
        value = None if first is None or second is None else first + second
    rest = re.sub(r"^\s+an?\s", " ", text[found.end() :])  # "half an hour"
    tens = _cardinal(words[:-1]) if len(words) > 1 else Fraction(0)
    place = 0 if value or sign else _PLACES.get(words[-1], 0)
    if place and tens is not None and (not tens or (tens % 10 == 0 and place < 10 < tens)):
        return rf"{tens + place}\text{{ th}}", rest
    value = _portion(words) if value is None else value
    if value is None:
        return None
    digits = rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    return sign + (digits if value.denominator > 1 else str(value)), rest


def _cardinal(words: list[str]) -> Fraction | None:
    total = current = 0
    for index, word in enumerate(words):
        if word in _SMALL:
            number, rest = _SMALL[word], current % 100
            if rest and (number > 9 or rest < 20 or rest % 10):
                return None
            current += number
        elif word.removesuffix("s") in _SCALES and index:
            scale = _SCALES[word.removesuffix("s")]
            if scale == 100:
                current *= 100
            else:
                total, current = total + current * scale, 0
        elif word != "and" or not index or words[index - 1] not in _SCALES:
            return None
    return Fraction(total + current) if words and words[-1] != "and" else None


def _portion(words: list[str]) -> Fraction | None:
    """Return a fraction: "three quarters", "half"."""
    parts = _PORTIONS.get(words[-1].removesuffix("s")) if words else None
    counted = _cardinal(words[:-1]) if len(words) > 1 else Fraction(words == ["half"])
    return counted / parts if counted and parts and parts > 1 else None


_CLOCK = re.compile(
    r"(\d{1,2})(?:\s*:\s*(\d\d))?\s*(?:(?P<half>[ap])\.?\s*m\.?|o'clock|(?P<name>noon|midnight))?"
)


def time_of_day(text: str) -> Canonical | None:
    """Return a time of day, which is a bare "7:30" as well; None where the text is none.

    Times compare where it is known in which half of the day they are. A bare time is also a ratio.
    """
    text = text.lower()
    found = _CLOCK.fullmatch({"noon": "12 noon", "midnight": "12 midnight"}.get(text, text))
    if found is None or text.isdigit():
        return None
    hour, minute = int(found[1]), int(found[2] or 0)
    if hour > 23 or minute > 59:
        return None
    half = found["half"] or {"noon": "p", "midnight": "a"}.get(found["name"])
    known = hour % 12 + 12 * (half == "p") if half else hour
    ratio = hour > 0 and minute >= 10
    shown = Value(Fraction(hour, minute) if ratio else (hour or 24) + Fraction(minute, 60))
    base = ("time", 60 * known + minute) if half or hour > 12 else None
    return number_form(shown, base=base)


_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH = (
    r"(?P<month>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DAY = r"(?:the\s+)?(?P<day>\d{1,2})(?:\s*(?:st|nd|rd|th))?"
_DATES = [
    re.compile(r"(?:(?P<week>[a-z]{3})[a-z]*day,?\s+)?" + form + r"(?:,?\s+(?P<year>\d{4}))?")
    for form in (rf"{_MONTH}\s+{_DAY}", rf"{_DAY}\s+(?:of\s+)?{_MONTH}")
] + [re.compile(r"(?P<week>)(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)")]


def date(text: str) -> Canonical | None:
    """Return a day of the year; None where the text is none."""
    for form in _DATES:
        found = form.fullmatch(text.lower())
        if found is not None:
            month = found["month"]
            number = int(month) if month.isdigit() else _MONTHS.index(month[:3]) + 1
            key = ("date", found["week"] or None, found["year"], number, int(found["day"]))
            return Canonical("words", key)
    return None
