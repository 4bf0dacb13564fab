"""A short run of the adapter in the installed vLLM, compared with a direct forward pass.

The forward pass is that of Hugging Face transformers (`DirectForward`): nothing of vLLM is in it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from step_infer.client.llm import StepLLM
from step_infer.client.trace import Sampling
from step_infer.scorer.card import ScorerCard
from step_infer.scorer.identity import identify
from step_infer.scorer.network import StepScorer, load_scorer

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


def live_checks(model: str, scorer: str, revision: str | None = None) -> Iterator[Check]:
    """Sample a few traces with a short KV cache; yield what was checked, one by one.

    Args:
        model: folder or hub id.
        scorer: scorer file of that model.
        revision: branch, tag or commit of a hub id; None is the main one.

    Raises:
        InputError: the model or the scorer cannot be used, or the engine refused them.
    """
    with StepLLM(
        model,
        scorer,
        kv_budget_tokens=CONTEXT,
        max_model_len=CONTEXT,
        max_num_seqs=NUM_TRACES,
        revision=revision,
    ) as llm:
        yield Check(True, "an engine starts with the adapter")
        sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=MAX_TOKENS)
        plans = llm.plan("doctor", QUESTION, NUM_TRACES, sampling, seed=0, system="")
        traces = list(llm.stream(plans))
        preemptions = llm.stats().preemptions
    device = "cuda" if torch.cuda.is_available() else "cpu"
    identity = identify(model, revision)
    net, card = load_scorer(scorer, identity)
    forward = DirectForward(model, net, card, device=device, revision=revision)
    term = card.confidence_term
    count, misplaced, largest = 0, 0, 0.0
    for trace in traces:
        direct = forward.score(trace.prompt_token_ids, trace.token_ids)
        found = trace.boundary_positions
        # A stopped trace's last boundary may have waited for its score.
        late = len(direct.positions) - len(found)
        complete = late == 0 or (trace.pruned and late == 1)
        misplaced += not complete or found != direct.positions[: len(found)]
        expected_S = direct.scores_S.tolist()
        if term is not None:  # the engine's own confidences: those of the state are compared
            confidences = trace.step_confidences or []
            expected_S = [term.score(*pair) for pair in zip(expected_S, confidences, strict=False)]
        for score, expected in zip(trace.step_scores, expected_S, strict=False):
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


class DirectScores(NamedTuple):
    """What a forward pass says of one trace; S steps, H hidden size."""

    positions: list[int]
    """Boundaries, as indices into the generated tokens."""
    hidden_SH: Tensor
    """Final-normed hidden states there, in the model's type."""
    scores_S: Tensor
    """Step scores, float32."""


class DirectForward:
    """A model of transformers and a scorer, on one device."""

    def __init__(
        self,
        model: str,
        scorer: StepScorer,
        card: ScorerCard,
        device: str = "cpu",
        dtype: str = "auto",
        revision: str | None = None,
    ) -> None:
        """Load the model in a number format; "auto" is the one that its configuration names."""
        from transformers import AutoModelForCausalLM

        causal: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, revision=revision or "main"
        )
        self._body = causal.eval().base_model.to(device)
        self._scorer = scorer.to(device)
        self._device = device
        self._rule = card.boundary_rule

    @torch.inference_mode()
    def score(self, prompt_token_ids: Sequence[int], token_ids: Sequence[int]) -> DirectScores:
        """Return the scores at every boundary of the generated tokens."""
        positions = self._rule.positions(token_ids)
        ids = torch.tensor([[*prompt_token_ids, *token_ids]], device=self._device)
        rows = torch.tensor(positions, dtype=torch.long, device=self._device) + len(
            prompt_token_ids
        )
        hidden_SH = self._body(ids).last_hidden_state[0, rows]
        return DirectScores(positions, hidden_SH, torch.sigmoid(self._scorer(hidden_SH)))
