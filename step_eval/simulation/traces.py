"""Traces of a pool as the simulated engine takes them."""

from collections.abc import Sequence

import numpy as np

from step_eval.recorded.traces import PoolTrace
from step_eval.simulation.schedule import SimulatedTrace


def block_contents(
    traces: Sequence[PoolTrace], prompt_tokens: int, block_size: int
) -> list[list[int]] | None:
    """Number each trace's full blocks, prompt included, by all text up to the block's end.

    Returns:
        The numbers [N][blocks]; None where the text of a trace is not known.
    """
    numbers: dict[tuple[int, bytes], int] = {}
    found = []
    for trace in traces:
        if trace.text is None:
            return None
        text = np.concatenate([np.full(prompt_tokens, -1), trace.text])
        chain, number = [], -1
        for start in range(0, len(text) - block_size + 1, block_size):
            key = (number, text[start : start + block_size].tobytes())
            number = numbers.setdefault(key, len(numbers))
            chain.append(number)
        found.append(chain)
    return found


def simulated_traces(
    traces: Sequence[PoolTrace],
    prompt_tokens: int,
    scores: Sequence[Sequence[float | None]] | None = None,
    contents: Sequence[Sequence[int]] | None = None,
) -> list[SimulatedTrace]:
    """Return the traces of a question as the simulation takes them.

    Args:
        traces: the chosen traces.
        prompt_tokens: tokens of their prompt.
        scores: step scores that stand for their own; those that are not finite are left out.
        contents: what `block_contents` returns.
    """
    out = []
    for index, trace in enumerate(traces):
        own = trace.scores if scores is None else scores[index]
        steps = [
            (position, score)
            for position, score in zip(trace.positions, own, strict=False)
            if score is not None
        ]
        out.append(
            SimulatedTrace(
                "question",
                prompt_tokens,
                trace.tokens,
                [position for position, _ in steps],
                [score for _, score in steps],
                trace.cut,
                None if contents is None else contents[index],
            )
        )
    return out
