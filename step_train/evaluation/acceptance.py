"""What a scorer has to show before it is exported: it ranks traces better than chance."""

from typing import Any

from step_infer.errors import InputError

VERDICT_KEY = "earned"
"""Key of the verdict in a card's metrics."""

JUDGED_AT = "50%"
"""Where a scorer must rank: half-way, as pruning happens there and not at the end."""


def ranks_above_chance(metrics: dict[str, Any], aggregator: str, force: bool = False) -> bool:
    """Return whether a scorer ranks the traces of a question better than chance, half-way.

    That is so where the 95 % interval of within-question AUROC on the test questions lies above
    0.5, for the trace score after 50 % of the steps.

    Args:
        metrics: of `step_train.evaluation.held_out.evaluate`, or empty.
        aggregator: of the trace score.
        force: return False instead of refusing.

    Raises:
        InputError: it does not, or cannot be told.
    """
    scores = metrics.get("trace_score", {}).get(aggregator, {})
    within = scores.get(JUDGED_AT, {}).get("within_question", {})
    low, value = within.get("low"), within.get("value")
    if low is not None and low > 0.5:
        return True
    if force:
        return False
    if low is not None:
        found = f"{value:.3f} ({low:.3f} to {within['high']:.3f})"
    elif value is not None:
        found = f"{value:.3f} without an interval (one question)"
    else:
        found = "none (not the best checkpoint of a complete run, or no question can tell)"
    raise InputError(
        "Expected a 95 % interval above 0.5 for within-question AUROC at half of the trace (test "
        f"questions), found {found}. Hint: train on more questions; --force writes the scorer all "
        "the same, and its card says that it has not earned its place."
    )
