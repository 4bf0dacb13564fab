"""Figures in words, the same in the terminal and in the report, and its plain sentences."""

from collections.abc import Mapping, Sequence
from typing import Any


def replica_words(replicas: Mapping[str, Any]) -> str:
    """Return how many engines shared the questions, and whether that lengthened the seconds."""
    count = replicas["count"]
    if not replicas["share_devices"]:
        return f"{count} at most, each on devices of its own"
    if replicas["take_turns"]:
        return f"{count} at most, which shared devices and took turns on them"
    return (
        f"{count} at most, which shared devices: the seconds of a question are longer than those "
        "of one engine alone"
    )


def cost_words(results: Mapping[str, Any], metric: str, unit: str) -> str:
    """Return which method is the most accurate and which the cheapest, as a sentence.

    Args:
        results: what `results.build_results` returns.
        metric: the cost.
        unit: its unit in words.
    """
    methods = results["shared"]["methods"]
    label = {name: results["methods"][name]["label"] for name in methods}
    most = max(found["accuracy"]["value"] for found in methods.values())
    best = [name for name in methods if methods[name]["accuracy"]["value"] == most]
    least = min(methods, key=lambda name: methods[name][metric]["value"])

    def place(name: str) -> str:
        found = methods[name]
        return (
            f"{number('accuracy', found['accuracy']['value'])} right with "
            f"{number(metric, found[metric]['value'])} {unit} a question"
        )

    if len(methods) == 1:
        return f"{label[least]}: {place(least)}."
    if least in best:
        also = [label[name] for name in best if name != least]
        words = f" (as {', '.join(also)})" if also else ""
        return f"By the mean, {label[least]} is the best{words} and the cheapest: {place(least)}."
    names = ", ".join(f"{label[name]} ({place(name)})" for name in best)
    return f"By the mean, best: {names}; cheapest: {label[least]} ({place(least)})."


def seconds_words(results: Mapping[str, Any]) -> str:
    """Return whose traces wait longest, as a sentence."""
    methods = results["shared"]["methods"]
    label = {name: results["methods"][name]["label"] for name in methods}
    most = max(methods, key=lambda name: methods[name]["waiting_s"]["value"])
    if methods[most]["waiting_s"]["value"] == 0:
        return "No trace waited for memory."
    least = min(methods, key=lambda name: methods[name]["waiting_s"]["value"])
    found = methods[most]
    words = (
        f"Under {label[most]} a trace decodes for {found['running_s']['value']:.2f} s and waits "
        f"for {found['waiting_s']['value']:.2f} s"
    )
    if least == most:
        return words + "."
    found = methods[least]
    return (
        f"{words}; under {label[least]} it decodes for {found['running_s']['value']:.2f} s and "
        f"waits for {found['waiting_s']['value']:.2f} s."
    )


def shared_rows(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the numbers of the pictures of accuracy, cost and time, a row for each method."""
    rows = []
    for name, found in results["shared"]["methods"].items():
        row = {"label": results["methods"][name]["label"]}
        for metric in ("accuracy", "seconds", "tokens", "running_s", "waiting_s", "waiting_share"):
            ends = number_range(metric, found[metric]["low"], found[metric]["high"])
            row[metric] = number(metric, found[metric]["value"])
            row[metric + "_range"] = ends
        rows.append(row)
    return rows


def saved_words(stopped: Mapping[str, Any], baseline: str) -> str:
    """Return what stopping a trace saved, as a sentence; there is a stopped trace with a twin.

    Args:
        stopped: what `stops.describe_stops` returns.
        baseline: the baseline's name.
    """
    part = number("accuracy", stopped["tokens_saved"] / stopped["baseline_tokens"])
    low, _, high = stopped["saved_tenths"]
    return (
        f"A stopped trace would have gone on for {stopped['saved_mean']:,.0f} tokens on average "
        f"(the middle eight of ten: {low:,.0f}{TO}{high:,.0f}), together "
        f"{stopped['tokens_saved']:,}: {part} of what {baseline} generated on these questions."
    )


def lost_words(stopped: Mapping[str, Any], baseline: str) -> str:
    """Return how many right traces were stopped, and where, as a sentence."""
    known, right = stopped["known"], stopped["would_be_right"]
    words = (
        f"{right:,} of {known:,} stopped traces ({number('accuracy', right / known)}) would have "
        f"come out right, against {number('accuracy', stopped['baseline_right'])} of all traces "
        f"under {baseline} on these questions"
    )
    if not right:
        return words + "."
    early = sum(row["right"] for row in stopped["by_progress"] if row["high"] <= 0.5)
    return f"{words}; {early:,} of them were stopped in the first half of their length."


def unknown_words(stopped: Mapping[str, Any]) -> str:
    """Return what is known of the stopped traces that have no twin, as a sentence, or nothing."""
    count = stopped["pruned"] - stopped["known"]
    if not count:
        return ""
    words = f"{count:,} stopped traces have no twin, so what they would have come to is not known."
    if stopped["estimated"]:
        words += (
            f" Had {stopped['estimated']:,} of them gone on as long as other traces of their "
            f"question that were longer, they would have made {stopped['tokens_estimated']:,} "
            "more tokens (an estimate)."
        )
    return words


def bin_rows(bins: Sequence[Mapping[str, float]], kind: str) -> list[dict[str, Any]]:
    """Return bins as rows of a table, those without a trace left out.

    Args:
        bins: as in `method_figures.stop_bins`.
        kind: "percent", "tokens" or "score".
    """
    rows = []
    for row in bins:
        if not row["right"] + row["wrong"]:
            continue
        low, high = row["low"], row["high"]
        if kind == "percent":
            span = f"{100 * low:.0f}{TO}{100 * high:.0f} %"
        elif kind == "tokens":
            span = f"{low:,.0f}{TO}{high:,.0f}"
        else:
            span = f"{low:.3f}{TO}{high:.3f}"
        rows.append({"span": span, "right": row["right"], "wrong": row["wrong"]})
    return rows


def decided_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what each method that ends questions early changed, against the one that does not."""
    return [
        {
            "label": results["methods"][name]["label"],
            "base": results["methods"][found["baseline"]]["label"],
            "questions": found["questions"],
            "changed": _changed_words(len(found["changed"]), found["pairs"]),
            **{
                metric: sentence(metric, found["differences"][metric])
                for metric in ("seconds", "tokens", "accuracy")
            },
        }
        for name, found in results["decided"].items()
    ]


def stop_rule_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what each stop rule would have changed on the records of methods without one."""
    return [
        {
            "label": results["methods"][found["method"]]["label"],
            "rule": found["rule"]
            if found["threshold"] is None
            else f"{found['rule']} ({found['threshold']:.4g})",
            "questions": found["questions"],
            "changed": _changed_words(
                len(found["changed"]), len(results["latency"][found["method"]])
            ),
            **{metric: sentence(metric, found[metric]) for metric in ("seconds", "accuracy")},
        }
        for found in results["stop_rules"]
    ]


def branch_rows(results: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the branches of each method that made some."""
    rows = []
    for method in results["methods"].values():
        if (found := method["branches"]) is not None:
            cached = number("accuracy", found["cached_tokens"] / found["prefix_tokens"])
            votes = ", ".join(
                f"{rule} {number('accuracy', method['accuracy_by_vote'][rule])}"
                for rule in ("score", "score-shared")
                if rule in method["accuracy_by_vote"]
            )
            rows.append(
                f"{method['label']}: {found['traces']:,} traces branched from another, with "
                f"{found['inherited_tokens']:,} inherited tokens, which count once; {cached} of "
                f"what they began with was found in the prefix cache. Accuracy by vote: {votes}."
            )
    return rows


def _changed_words(changed: int, pairs: int) -> str:
    return f"{changed} of {pairs} answers changed"


MINUS = "\N{MINUS SIGN}"
TO = "\N{EN DASH}"
PERCENT_SIGN = "\N{NO-BREAK SPACE}%"
NO_INTERVAL = "no interval"
"""Of one question alone."""

PERCENT = frozenset({"accuracy", "peak_kv_use", "waiting_share", "trace_accuracy", "changed"})
"""Figures that are parts of a whole, shown in percent; their differences in points."""
RELATIVE = frozenset({"tokens", "seconds"})
"""Figures whose difference is shown as a part of the baseline's."""

HEADINGS = {
    "accuracy": "Accuracy",
    "tokens": "Tokens",
    "seconds": "Seconds",
    "preemptions": "Preemptions",
    "pruned": "Pruned traces",
    "decided": "Not needed",
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
    "decided": "traces that ended or did not begin because the vote was decided without them",
    "peak_kv_use": "highest reading of the KV cache in use, mean over questions",
    "waiting_share": "part of all trace time spent waiting for memory",
    "trace_accuracy": "right ones of the traces that nothing stopped; no answer is wrong",
}
"""What each figure is, for the reader of a report."""


def unfinished(results: Mapping[str, Any]) -> list[str]:
    """Return how far each method is, where the run is not complete; one line if all are alike.

    Args:
        results: what `results.build_results` returns.
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


def number_range(metric: str, low: float | None, high: float | None) -> str:
    """Return an interval's ends without unit: "70.1-82.0"; None is an end of no interval."""
    if low is None or high is None:
        return NO_INTERVAL
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
        difference: `comparison.Difference` as a dictionary.
    """
    if metric in PERCENT:
        found, unit, factor = difference["difference"], " points", 100
    elif metric in RELATIVE and difference["relative"] is not None:
        found, unit, factor = difference["relative"], PERCENT_SIGN, 100
    else:
        found, unit, factor = difference["difference"], "", 1
    value = signed(factor * found["value"]) + unit
    if found["low"] is None:
        return value, NO_INTERVAL
    return value, f"{signed(factor * found['low'])} to {signed(factor * found['high'])}"


def in_text(metric: str) -> str:
    """Return a figure's name as it stands inside a sentence."""
    heading = HEADINGS[metric]
    return heading[0].lower() + heading[1:]


def sentence(metric: str, difference: dict[str, Any]) -> str:
    """Return one figure's difference as a clause: "seconds -34.0 % (-36.1 to -31.9): better"."""
    value, ends = change(metric, difference)
    return f"{in_text(metric)} {value} ({ends}): {difference['verdict']}"
