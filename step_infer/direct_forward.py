"""Step scores of a finished trace by one forward pass of Hugging Face transformers.

Nothing of vLLM is in the way: this is what the engine's scores are compared with.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from step_infer.card import ScorerCard
from step_infer.scorer import StepScorer


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
    ) -> None:
        """Load the model in a number format; "auto" is the one that its configuration names."""
        from transformers import AutoModelForCausalLM

        causal: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
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
