"""Figures in words: the same in the terminal's table and in the report."""

from collections.abc import Mapping
from typing import Any

MINUS = "\N{MINUS SIGN}"
TO = "\N{EN DASH}"
PERCENT_SIGN = "\N{NO-BREAK SPACE}%"

PERCENT = frozenset({"accuracy", "peak_kv_use", "waiting_share", "trace_accuracy"})
"""Figures that are parts of a whole, shown in percent; their differences in points."""
RELATIVE = frozenset({"tokens", "seconds"})
"""Figures whose difference is shown as a part of the baseline's."""

HEADINGS = {
    "accuracy": "Accuracy",
    "tokens": "Tokens",
    "seconds": "Seconds",
    "preemptions": "Preemptions",
    "pruned": "Pruned traces",
    "peak_kv_use": "Peak KV use",
    "waiting_share": "Waiting time",
    "trace_accuracy": "Right traces",
}
"""Names of the figures, in the order of the tables; all are means per question."""

EXPLAINED = {
    "accuracy": "questions whose voted answer is right",
    "tokens": "generated tokens of all traces of a question, those of pruned traces too",
    "seconds": "from a question's submission to its last trace",
    "preemptions": "traces put back by the engine for want of memory, to be computed again",
    "pruned": "traces stopped for good",
    "peak_kv_use": "highest reading of the KV cache in use, mean over questions",
    "waiting_share": "part of all trace time spent waiting for memory",
    "trace_accuracy": "traces with the right answer, of those not pruned; no answer is wrong",
}
"""What each figure is, for the reader of a report."""


def unfinished(results: Mapping[str, Any]) -> list[str]:
    """Return how far each method is, where the run is not complete; one line if all are alike.

    Args:
        results: what `eval_results.build_results` returns.
    """
    asked = results["questions"]["asked"] * results["questions"]["repeats"]
    done = {name: len(results["latency"][name]) for name in results["methods"]}
    if len(done) > 1 and len(set(done.values())) == 1:
        count = next(iter(done.values()))
        return [f"Each method: {count} of {asked} questions"] if count < asked else []
    return [
        f"{method['label']}: {done[name]} of {asked} questions"
        for name, method in results["methods"].items()
        if done[name] < asked
    ]


def vote_words(method: Mapping[str, Any]) -> str:
    """Return a method's vote rule, and why it is not the one asked for."""
    if method["vote"] == method["vote_wanted"]:
        return str(method["vote"])
    return f"{method['vote']} (nothing recorded for {method['vote_wanted']})"


def number(metric: str, value: float) -> str:
    """Return a figure with its unit: "76.5 %", "57,230" or "4.2"."""
    if metric in PERCENT:
        return f"{100 * value:.1f}{PERCENT_SIGN}"
    if metric == "tokens":
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}"


def number_range(metric: str, low: float, high: float) -> str:
    """Return an interval's ends without unit: "70.1-82.0"."""
    ends = (number(metric, low), number(metric, high))
    return TO.join(end.removesuffix(PERCENT_SIGN) for end in ends)


def signed(value: float, digits: int = 1) -> str:
    """Return a number with its sign, which zero does not have."""
    text = f"{abs(value):,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return text
    return (MINUS if value < 0 else "+") + text


def change(metric: str, difference: dict[str, Any]) -> tuple[str, str]:
    """Return a difference and its interval in words: ("+2.0 points", "-1.5 to +5.5").

    Args:
        metric: the figure's name.
        difference: `eval_statistics.Difference` as a dictionary.
    """
    if metric in PERCENT:
        found, unit, factor = difference["difference"], " points", 100
    elif metric in RELATIVE and difference["relative"] is not None:
        found, unit, factor = difference["relative"], PERCENT_SIGN, 100
    else:
        found, unit, factor = difference["difference"], "", 1
    value, low, high = (factor * found[name] for name in ("value", "low", "high"))
    return signed(value) + unit, f"{signed(low)} to {signed(high)}"


def in_text(metric: str) -> str:
    """Return a figure's name as it stands inside a sentence."""
    heading = HEADINGS[metric]
    return heading[0].lower() + heading[1:]


def sentence(metric: str, difference: dict[str, Any]) -> str:
    """Return one figure's difference as a clause: "seconds -34.0 % (-36.1 to -31.9): better"."""
    value, ends = change(metric, difference)
    return f"{in_text(metric)} {value} ({ends}): {difference['verdict']}"
