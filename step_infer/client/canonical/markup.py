r"""What stands around an answer and says nothing: Markdown, LaTeX's looks, Unicode, prose.

All functions take and return text, and never fail.
"""

import re
import unicodedata

_FRACTIONS = {
    character: unicodedata.normalize("NFKC", character).replace("⁄", "/")
    for character in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒"
}
_CHARACTERS = {
    **dict.fromkeys("−–—‒―﹣－", "-"),
    **dict.fromkeys("·⋅∙•×✕✖⨯", r" \cdot "),
    **dict.fromkeys(
        "\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " "
    ),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u2061\u2062\u2063", ""),
    **dict.fromkeys("‘’′", "'"),
    **dict.fromkeys("“”", '"'),
    "÷": "/", "⁄": "/", "∕": "/", "√": r"\sqrt ", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ",
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "∅": r"\emptyset ", "⌀": r"\emptyset ", "ø": r"\emptyset ", "Ø": r"\emptyset ",
    "∖": r"\setminus ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "º": r"^\circ ",
    "℃": r"^\circ C", "℉": r"^\circ F", "…": r"\ldots ", "∧": r"\text{ and }",
    "∨": r"\text{ or }", "⟨": "(", "⟩": ")", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
    "⌉": r"\rceil ", "µ": "μ", "，": ",", "；": ";", "：": ":", "∶": ":", "（": "(", "）": ")",
    "％": "%", "。": ".",
}  # fmt: skip
_GREEK_NAMES = (
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "sigma", "tau", "upsilon", "phi", "chi", "psi",
    "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega",
    "phi",
)  # fmt: skip
_GREEK = {
    character: rf"\{name} "
    for character, name in zip("αβγδεζηθικλμνξρσςτυφχψωΓΔΘΛΞΠΣΦΨΩϕ", _GREEK_NAMES, strict=True)
}
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
_SUBSCRIPT = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙᵢₓ", "0123456789+-nix")
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]+")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋ₙᵢₓ]+")
_TABLE = str.maketrans({**_CHARACTERS, **_GREEK})

_LOOKS = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|left|right|middle|[bB]igg?[lrm]?"
    r"|mathstrut|hfill|noindent|centering|rm|bf|it|sf|tt|Large|large|LARGE|huge|Huge|small"
    r"|normalsize|boldmath|nonumber|notag|relax)(?![A-Za-z])\.?"
)
_SPACES = re.compile(
    r"(?<!\\)\\[,;: !>]|\\(?:quad|qquad|enspace|thinspace|hspace\*?\{[^{}]*\})(?![a-z])|~"
)
_ZERO_SPACE = re.compile(r"(?<!\\)\\!|\\(?:negthinspace|phantom\{[^{}]*\})(?![a-z])|\{\}|\\/")
_WRAPPERS = re.compile(
    r"\\(?:boxed|fbox|framebox|mathbf|bm|boldsymbol|pmb|mathsf|mathtt|mathit|mathnormal|mathring"
    r"|underline|uline|underbrace|overbrace|ensuremath|emph|bold|mathopen|mathclose|mathord|cancel|hl)(?![A-Za-z])\s*"
)
_COLOUR = re.compile(
    r"\\(?:textcolor|colorbox|color|fcolorbox\{[^{}]*\})\s*(?:\[[^]]*\])?\{[^{}]*\}"
)
_STYLED_TEXT = re.compile(
    r"\\(?:textbf|textit|textrm|textsf|texttt|textsc|textup|textnormal|mbox|hbox|mathrm|mathup"
    r"|operatorname\*?|mathop|mathcal|mathscr|mathfrak|textmd|text)(?![A-Za-z])\s*"
)
_MARKS = re.compile(r"(?<![\w)}])\*\*|\*\*(?![\w({\\-])|__|~~|`+")
_TAGS = re.compile(r"<(b|i|u|strong|em|span)>(.*?)</\1>", re.S)
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # The commands of units, sets and figures in the forms that the reader knows.
        (
            r"\\[dt]?frac\s*\{\\text\{([^{}]*)\}\}\s*\{\\text\{([^{}]*)\}((?:\^\{?\d\}?)?)\}",
            r"\\text{\1/\2\3}",
        ),
        (r"\\mathbb\s*R(?![A-Za-z])", r"\\mathbb{R}"),
        (r"\\backslash(?![A-Za-z])|(?<=\\mathbb\{R\})\s*[-\\]\s*(?=\\\{)", r"\\setminus "),
        (r"(?<=[)\]}])\s*U\s*(?=[(\[\\])", r" \\cup "),
        (r"\{([^{}]+)\\choose\s*([^{}]+)\}", r"\\binom{\1}{\2}"),
        (r"\\(?:triangle|bigtriangleup)(?![A-Za-z])", r"\\text{triangle} "),
        (r"\\(?:measured)?angle(?![A-Za-z])", r"\\text{angle} "),
        (
            # A bar over one letter is a complement, over two a segment.
            r"\\(?:(?:overrightarrow|overleftrightarrow|widehat|vec)\s*\{?\s*([A-Z]{1,3})\s*\}?"
            r"|(?:overline|bar)\s*\{\s*([A-Z]{2,3})\s*\})",
            r"\1\2 ",
        ),
        (
            r"(?<=\d)\s*\^\s*(\{)?\s*(?:\\text\s*\{\s*o\s*\}|o(?![A-Za-z]))\s*(?(1)\})",
            r"^\\circ ",
        ),
        (
            r"(?<=\d)\s*\^\s*(\{)?\s*(?:\\text\s*\{\s*(?:st|nd|rd|th)\s*\}|(?:st|nd|rd|th)\b)\s*(?(1)\})",
            r"\\text{ th}",
        ),
        (r"\\text\s*\{\s*([-+:])\s*\}", r"\1"),
        (r"(?<![A-Za-z])log(2|10)(?=\s*\()", r"\\log_{\1}"),
        (r"\\mathbb\s*\{R\}\s*\^\s*\{?\+\}?", r"(0,\\infty)"),
        (r"\\big(cup|cap)(?![A-Za-z])", r"\\\1"),
        (r"\+/-", r"\\pm "),
        (r"(?<![\w)}\]])[_^]\s*\{?(\w+)\}?\s*C\s*_\s*\{?(\w+)\}?", r"\\binom{\1}{\2}"),
        (r"\\(?:wide)?hat\s*\{?\s*\\?([ijk])(?:math)?(?![a-z])\s*\}?", r"\1 "),
        (r"(?<=\d)\s*(?:\\text\s*\{\s*to\s*\}|\bto\b)\s*(?=\d)", ":"),
        (r"\\(?:begin|end)\s*\{(?:cases|aligned|gathered)\}", " "),
        (r"^\s*Rs\.?\s*(?=\d)", "₹"),
        (r"\\pounds(?![A-Za-z])", "£"),
        (r"\\(?:sfrac|nicefrac)(?![A-Za-z])", r"\\frac"),
        (r"\{([^{}]+)\\over(?![A-Za-z])\s*([^{}]+)\}", r"\\frac{\1}{\2}"),
        (r"\\surd(?![A-Za-z])", r"\\sqrt"),
        (r"\\(?:tag|label)\*?\{[^{}]*\}|[✓✔✅]|\\checkmark(?![a-z])", ""),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r" \\times "),
        (r"\bper\s+cent\b|\bpct\b", "percent"),
        (r"(?i)^\s*(?:minus|negative)\s+(?=\d)", "-"),
        (r"\+\s*c\s*$", "+ C"),
    )
]
_PROSE = re.compile(
    r"(?:(?:so|thus|hence|therefore)[,:]?\s+)?"
    r"(?:the\s+)?(?:final\s+|correct\s+|right\s+)?(?:answer|ans|result|solution|option|choice|value)s?"
    r"(?:\s+(?:to|of)\s+(?:the|this)\s+(?:problem|question))?"
    r"(?:\s+(?:is|are|equals?|=)\s*:?|\s*:|\s*=)\s*",
    re.IGNORECASE,
)
_HASHES = re.compile(r"(?:^|\s)#{3,6}\s*")
_NOTE = re.compile(
    r"(?<=[\w%)}\]$.])\s*\((?:since|because|as|where|for|i\.e\.|note|after|rounded)\b.*\)\s*$"
    r"|(?<=[\w%)}\]])\s+\((?!mod|base|in base)[A-Za-z][A-Za-z ]{2,}\)\s*$",
    re.S,
)
_PROSE_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}\s*(?=\S)")
_LEADING = re.compile(r"(?:=|\\(?:therefore|implies|Rightarrow|Longrightarrow|so)(?![A-Za-z]))\s*")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])")
_JOINED = re.compile(
    r"[\s$.]*(?:\\text\{)?\s*(?:,\s*and|,\s*or|,|;|and|or)\s*\}?[\s$]*(?:[A-Za-z]\s*=\s*)?"
)
"""What stands between two boxes of one answer."""
_MOST_BOXES = 50
_CONTROL = str.maketrans({"\f": r"\f", "\b": r"\b", "\a": r"\a", "\v": r"\v"})
_LOST_TAB = re.compile(r"\t(?=ext|imes|frac|an\b|heta|au\b|o\b|riangle|binom)")
_LOST_NEWLINE = re.compile(r"\n(?=eq?\b|abla\b|ot\b|eg\b)")
_LOST_RETURN = re.compile(r"\r(?=ight|angle|floor|ceil|ho\b)")


def mend_escapes(text: str) -> str:
    r"""Return LaTeX as meant where JSON took its backslashes for escapes.

    "\frac" in a JSON text without a second backslash is read as a form feed and "rac".
    """
    if text.isprintable():
        return text
    text = text.translate(_CONTROL)
    text = _LOST_TAB.sub(r"\\t", text)
    text = _LOST_NEWLINE.sub(r"\\n", text)
    return _LOST_RETURN.sub(r"\\r", text)


def group_end(text: str, start: int) -> int:
    """Return where the group that opens at `start` closes; -1 where it does not."""
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
                return position
        position += 1
    return -1


def plain(text: str) -> str:
    r"""Return an answer in plain LaTeX, in which words stand within \text{}.

    A whole solution is cut down to its last box, to what follows "####" or "the answer is".
    """
    text = mend_escapes(text).strip()
    text = ", ".join(boxed(text)) or text
    if "###" in text:
        text = _HASHES.split(text)[-1]
    text = text.translate(_TABLE)
    for character, fraction in _FRACTIONS.items():
        if character in text:
            above, below = fraction.split("/")
            text = text.replace(character, rf"\frac{{{above}}}{{{below}}}")
    text = _SUPERSCRIPTS.sub(lambda found: f"^{{{found[0].translate(_SUPERSCRIPT)}}}", text)
    text = _SUBSCRIPTS.sub(lambda found: f"_{{{found[0].translate(_SUBSCRIPT)}}}", text)
    text = re.sub("[０-９]", lambda found: unicodedata.normalize("NFKC", found[0]), text)
    if len(re.findall(r"(?<!\\)\$", text)) % 2:  # a dollar, not a formula's ends
        text = re.sub(r"(?<!\\)\$(?=\s*-?[\d.])", r"\\$", text, count=1)
    text = text.replace(r"\(", " ").replace(r"\)", " ")
    text = re.sub(r"(?<!\\)\\\[|(?<!\\)\\\]", " ", text)
    text = re.sub(r"(?<!\\)\$", " ", text)
    text = _MARKS.sub("", _TAGS.sub(r"\2", text))
    text = re.sub(r"^\s*([*_])(?=\S)(.*\S)\1\s*$", r"\2", text, flags=re.S)
    text = _COLOUR.sub("", text)
    text = re.sub(r"(?<=\d),\s*\\!\s*(?=\d{3})", ",", text)
    text = _ZERO_SPACE.sub("", text)
    text = _LOOKS.sub(" ", text)
    text = _SPACES.sub(" ", text)
    text = _WRAPPERS.sub("", text)
    text = _STYLED_TEXT.sub(r"\\text", text)
    text = re.sub(r"\\text\s*([A-Za-z0-9])", r"\\text{\1}", text)
    text = text.replace(r"\%", "%").replace(r"\#", "#").replace(r"\&", " and ")
    if r"\begin" not in text:
        text = text.replace("&", " and ")
    text = re.sub(r"\\degrees?(?![A-Za-z])|\\textdegree", r"^\\circ ", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return _trimmed(text)


def boxed(text: str) -> list[str]:
    r"""Return what the last \boxed{} or \fbox{} holds, or each of those that words join."""
    parts: list[str] = []
    next_start = 0
    for found in list(_BOX.finditer(text))[: -_MOST_BOXES - 1 : -1]:
        content = _content(text, found.end())
        if parts and (content is None or not _JOINED.fullmatch(text, content[1], next_start)):
            break
        if content is not None:
            parts.append(content[0].strip())
            next_start = found.start()
    return parts[::-1] if all(parts) else parts[:1]


def _content(text: str, start: int) -> tuple[str, int] | None:
    """Return what a box holds, and where it ends."""
    while start < len(text) and text[start].isspace():
        start += 1
    if start >= len(text):
        return None
    if text[start] != "{":
        word = text[start:].split(maxsplit=1)[0].rstrip("$.,")
        return (word, start + len(word)) if word else None
    end = group_end(text, start)
    return (text[start + 1 : end], end + 1) if end > 0 else None


def _trimmed(text: str) -> str:
    while True:
        before = text
        text = text.strip().rstrip("\\").strip()
        text = text.rstrip(",;")
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        text = _NOTE.sub("", text)
        if text[:1] == "{" and group_end(text, 0) == len(text) - 1:
            text = text[1:-1]
        if text.startswith(r"\text{") and group_end(text, 5) == len(text) - 1:
            text = text[6:-1]
        if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'":
            text = text[1:-1]
        found = _LEADING.match(text)
        if found is not None:
            text = text[found.end() :]
        found = _PROSE_TEXT.match(text)
        if found is not None and _PROSE.fullmatch(found[1].strip()):
            text = text[found.end() :]
        found = _PROSE.match(text)
        if found is not None and found.end() < len(text):
            text = text[found.end() :]
        if text == before:
            return text
