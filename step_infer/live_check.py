"""A short run of the adapter in the installed vLLM, compared with a direct forward pass."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from step_infer.client import StepLLM
from step_infer.direct_forward import DirectForward
from step_infer.identity import identify
from step_infer.sampling import Sampling
from step_infer.scorer import load_scorer

QUESTION = "618+487+934+246+799+358+171+866+529+402+755+183+690 mod 1000 = ?"
NUM_TRACES = 6
MAX_TOKENS = 600
CONTEXT = 1024
"""Longest prompt with its response, tokens; also the size of the KV cache: it must run short."""
TOLERANCE = 0.02
"""Largest difference of two scores of one state that is rounding (16-bit states, other kernels)."""


class Check(NamedTuple):
    """One thing that was looked at in the running engine."""

    passed: bool
    text: str


def live_checks(model: str, scorer: str) -> Iterator[Check]:
    """Sample a few traces with a short KV cache; yield what was checked, one by one.

    Raises:
        InputError: the model or the scorer cannot be used, or the engine refused them.
    """
    with StepLLM(
        model, scorer, kv_budget_tokens=CONTEXT, max_model_len=CONTEXT, max_num_seqs=NUM_TRACES
    ) as llm:
        yield Check(True, "an engine starts with the adapter")
        sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=MAX_TOKENS)
        plans = llm.plan("doctor", QUESTION, NUM_TRACES, sampling, seed=0, system="")
        traces = list(llm.stream(plans))
        preemptions = llm.stats().preemptions
    device = "cuda" if torch.cuda.is_available() else "cpu"
    forward = DirectForward(model, *load_scorer(scorer, identify(model)), device=device)
    count, misplaced, largest = 0, 0, 0.0
    for trace in traces:
        direct = forward.score(trace.prompt_token_ids, trace.token_ids)
        found = trace.boundary_positions
        # A stopped trace's last boundary may have waited for its score.
        late = len(direct.positions) - len(found)
        complete = late == 0 or (trace.pruned and late == 1)
        misplaced += not complete or found != direct.positions[: len(found)]
        for score, expected in zip(trace.step_scores, direct.scores_S.tolist(), strict=False):
            count += 1
            largest = max(largest, 1.0 if score is None else abs(score - expected))
    stopped = sum(trace.pruned for trace in traces)
    yield Check(
        misplaced == 0 and count > 0,
        f"{count} step scores of {len(traces)} traces, {misplaced} traces with other boundaries",
    )
    yield Check(
        largest <= TOLERANCE,
        f"live scores equal a direct forward pass: largest difference {largest:.4f}, "
        f"at most {TOLERANCE}",
    )
    yield Check(
        stopped > 0 and preemptions == 0,
        f"short memory stops traces: {stopped} of {len(traces)} stopped, {preemptions} preempted",
    )
