"""The step scorer and its file: an MLP from a hidden state to one logit, kept as safetensors."""

import itertools
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from step_infer.errors import InputError
from step_infer.scorer.card import CARD_KEY, ScorerCard, read_card
from step_infer.scorer.identity import ModelIdentity
from step_infer.storage.files import atomic_write


class StepScorer(nn.Module):
    """Linear, ReLU, Linear: the scorer of STEP (arXiv 2601.09093, section 3.2); `depth` makes more.

    The sigmoid of its logit is the step score: how likely the trace's final answer is right.
    """

    def __init__(self, hidden_size: int, width: int = 512, depth: int = 1) -> None:
        """Make a network with random weights.

        Args:
            hidden_size: width H of the states that it reads.
            width: units of each hidden layer.
            depth: hidden layers; 0 for one Linear alone.
        """
        super().__init__()
        sizes = [hidden_size, *[width] * depth]
        layers: list[nn.Module] = []
        for inputs, units in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, units), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, hidden_SH: Tensor) -> Tensor:
        """Return one float32 logit a step [S] for hidden states [S, H] of any float type."""
        return self.net(hidden_SH.float()).squeeze(-1)


def save_scorer(path: Path | str, scorer: StepScorer, card: ScorerCard) -> None:
    """Write a scorer with its card as one safetensors file, atomically, in float32.

    Raises:
        InputError: the folder is a model's, or the tensors do not fit the card.
    """
    if (Path(path).parent / "config.json").is_file():
        raise InputError(
            f"Expected a scorer path outside model folders, found {path}. Hint: vLLM loads every "
            "safetensors file in a model folder as weights; use a folder below or beside it."
        )
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in scorer.state_dict().items()
    }
    card.check_shapes({name: tuple(t.shape) for name, t in tensors.items()}, str(path))
    with atomic_write(path) as file:
        file.write(save(tensors, metadata={"format": "pt", CARD_KEY: card.to_json()}))


def load_scorer(
    path: Path | str,
    expect: ModelIdentity | None = None,
    allow_mismatch: Collection[str] = (),
) -> tuple[StepScorer, ScorerCard]:
    """Load a scorer in float32 on the CPU, and check it.

    Args:
        path: the scorer's safetensors file.
        expect: the model in use in an engine; the card must fit it.
        allow_mismatch: names of card fields that may differ from that model.

    Raises:
        InputError: the file cannot be used, or does not belong to the model; one line says why.
    """
    card = read_card(path)
    tensors = {name: tensor.float() for name, tensor in load_file(str(path)).items()}
    if expect is not None:
        card.check_model(expect, allow_mismatch)
        card.check_layers()
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise InputError(
            f"Expected finite weights in {path}, found NaN or infinity in {bad[0]}. "
            "Hint: train the scorer again."
        )
    scorer = StepScorer(card.hidden_size, card.width, card.depth)
    scorer.load_state_dict(tensors)
    return scorer.eval(), card
