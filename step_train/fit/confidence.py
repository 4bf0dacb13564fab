"""How much a trace's token confidence adds to the scorer's logits: one number. Axes: S steps."""

from typing import Any

import torch

from step_eval.statistics import Floats
from step_infer.scorer.confidence_term import ConfidenceTerm
from step_train.data.trace_table import TraceTable
from step_train.evaluation.calibration import fit_temperature
from step_train.evaluation.held_out import choose_aggregator

SHARES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
"""Deviations of the logit for each deviation of the confidence that are tried."""


def choose_confidence(
    table: TraceTable, logits_S: Floats, confidence_S: Floats, aggregator: str = "auto"
) -> tuple[ConfidenceTerm | None, dict[str, float | None]]:
    """Choose the weight by within-question AUROC at 25, 50 and 75 % of the traces.

    A network that gets the confidence as an input makes less of it: the loss rewards telling easy
    questions from hard ones, for which it needs none.

    Args:
        table: traces of the validation questions; never the test questions.
        logits_S: the scorer's, of their steps.
        confidence_S: mean token confidence so far, of the same steps.
        aggregator: the trace aggregator, or "auto" for the best one at each weight.

    Returns:
        The term; None where the logits alone do best. And the AUROC by share of `SHARES`.
    """
    mean, deviation = float(confidence_S.mean()), float(confidence_S.std())
    unit = float(logits_S.std()) / deviation if deviation else 0.0
    terms = {share: ConfidenceTerm(share * unit, mean) for share in SHARES}
    found: dict[float, float | None] = {}
    for share, term in terms.items():
        logits = torch.from_numpy(logits_S + term.logits(confidence_S))
        temperature = fit_temperature(table.label_S, logits)
        score_S = torch.sigmoid(logits / temperature).numpy()
        best, by_aggregator = choose_aggregator(table, score_S)
        found[share] = by_aggregator[best if aggregator == "auto" else aggregator]
    known = {share: value for share, value in found.items() if value is not None}
    chosen = max(known, key=lambda share: known[share]) if known else 0.0
    described = {f"{share:g}": value for share, value in found.items()}
    return (terms[chosen] if terms[chosen].weight else None), described


def describe(
    term: ConfidenceTerm | None, choice: dict[str, float | None], temperature: float
) -> dict[str, Any]:
    """Return what the record of a run says: the card's field, and how it came about.

    Args:
        term: of logits before the temperature.
        choice: as `choose_confidence` returns it.
        temperature: what these logits are divided by.
    """
    card = {"weight": term.weight / temperature, "mean": term.mean} if term is not None else {}
    by = (
        "validation questions: within-question AUROC, mean over 25/50/75 % of the steps, by "
        "deviations of the logit for each deviation of the confidence"
    )
    return {"confidence": card, "confidence_choice": {"by": by, **choice}}
