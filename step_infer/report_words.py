"""What the report says beside its pictures: plain sentences, and the rows of their tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from step_infer.eval_format import TO, number, number_range


def cost_words(results: Mapping[str, Any], metric: str, unit: str) -> str:
    """Return which method is the most accurate and which the cheapest, as a sentence.

    Args:
        results: what `eval_results.build_results` returns.
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
        stopped: what `eval_stops.describe_stops` returns.
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
        bins: as in `report_method_figures.stop_bins`.
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
