"""The subspace that a scorer is trained in: a few coordinates of wide states, found once.

Three kinds of directions, all from training questions alone: principal components of the states;
those of partial least squares, a Krylov space that starts at the differences between right and
wrong traces, so that it holds ridge regression's directions (Wold et al., 1984); and those along
which the right and the wrong traces of a question vary most differently. Axes: B rows of a batch,
R sampled rows, N traces, H size of a state, K coordinates, P of them principal.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from step_infer.cli.progress import track
from step_infer.errors import InputError
from step_infer.scorer.network import StepScorer
from step_train.data.feature_blocks import MEBIBYTE, EvaluationBatches, FeatureRows, buffer
from step_train.data.trace_table import Ints, TraceTable

_SAMPLE_ROWS, _PRINCIPAL_ROWS = 32_768, 8_192
"""Most rows that second moments are taken of, and those for the principal components."""

_PIECE_ROWS = 256
"""Rows of a state that are worked on while the processor's cache holds them."""

_OVERSAMPLING, _ROUNDS = 8, 4
"""Directions searched for above those wanted, and times that the quadratic ones are improved."""


@dataclass(frozen=True)
class Subspace:
    """Coordinates of mean 0 and deviation 1: (state - mean_H) @ weight_HK, all in float32."""

    mean_H: Tensor
    weight_HK: Tensor

    def project(self, hidden_BH: Tensor) -> Tensor:
        """Return the coordinates [B, K] of states as the model gave them."""
        pieces = [piece @ self.weight_HK for piece in _centred(hidden_BH, self.mean_H)]
        return torch.cat(pieces)

    @torch.no_grad()
    def unfold(self, scorer: StepScorer, width: int, depth: int) -> StepScorer:
        """Return the scorer of states [B, H] that equals `scorer` on their coordinates [B, K]."""
        first = scorer.net[0]
        assert isinstance(first, nn.Linear)
        weight = first.weight.double() @ self.weight_HK.double().T
        bias = first.bias.double() - weight @ self.mean_H.double()
        whole = StepScorer(len(self.mean_H), width, depth)
        folded = {"net.0.weight": weight.float(), "net.0.bias": bias.float()}
        whole.load_state_dict(scorer.state_dict() | folded)
        return whole


def require_components(components: int, rows: FeatureRows, memory_mib: int) -> None:
    """Check that so many components can be found of these states in this memory.

    Raises:
        InputError: there are too many, or the memory holds too few rows for them.
    """
    if components >= rows.hidden_size:
        raise InputError(
            f"Expected --components below the states' size {rows.hidden_size}, found {components}. "
            "Hint: --components 0 trains on the states themselves."
        )
    if _most_rows(rows, memory_mib) < 4 * components:
        needed = -(-4 * components * 8 * rows.hidden_size // MEBIBYTE)
        raise InputError(
            f"Expected --memory-mib of at least {needed} for --components {components}, found "
            f"{memory_mib}. Hint: raise --memory-mib, or lower --components."
        )


def _most_rows(rows: FeatureRows, memory_mib: int) -> int:
    # Half of the memory, in float32; the rest is for what is made of them.
    return min(_SAMPLE_ROWS, memory_mib * MEBIBYTE // (8 * rows.hidden_size))


def fit_subspace(
    rows: FeatureRows,
    table: TraceTable,
    components: int,
    *,
    memory_mib: int,
    seed: int,
    progress: bool = False,
) -> Subspace:
    """Find the subspace of some traces' states; reads them once, in order.

    Args:
        rows: the features.
        table: the training split; no other question's traces.
        components: how many coordinates K.
        memory_mib: bound on the rows in memory and what is made of them, MiB.
        seed: of the sample and of where the searches start.
        progress: show a bar on standard error.

    Raises:
        InputError: a state is not finite.
    """
    contrast_N2 = contrasts(table)
    count = min(_most_rows(rows, memory_mib), table.num_steps)
    drawn = np.random.default_rng([seed, 4]).choice(table.num_steps, count, replace=False)
    step_R = np.sort(drawn)
    sample, contrast_H2 = _read(rows, table, contrast_N2, step_R, progress)
    if not torch.isfinite(sample.mean_H).all():
        rows.require_finite()

    generator = torch.Generator().manual_seed(seed)
    quadratic, least_squares = components // 8, components // 4
    principal = components - quadratic - least_squares
    some = sample.every(-(-count // _PRINCIPAL_ROWS))
    # More than are kept: an interaction is found only where no large variance stays around it.
    most = max(principal, min(2 * components, rows.hidden_size // 2))
    whitener = _principal(some, most, generator)
    basis_HK = whitener.basis_HP[:, :principal]
    basis_HK = _least_squares(sample, contrast_H2, basis_HK, least_squares)
    weight_R = torch.from_numpy(contrast_N2[table.traces_of(step_R), 0])
    basis_HK = _quadratic(sample, weight_R, basis_HK, whitener, quadratic, generator)
    spread_K = torch.linalg.vector_norm(some.times(basis_HK), dim=0) / len(some) ** 0.5
    weight_HK = basis_HK / spread_K.clamp_min(1e-6) / sample.scale_H.unsqueeze(1)
    return Subspace(sample.mean_H, weight_HK.contiguous())


def contrasts(table: TraceTable) -> npt.NDArray[np.float32]:
    """Return weights of the traces' steps, float32 [N, 2]: right against wrong.

    Within question, where a question with traces of one class alone weighs nothing, and over all.
    """
    right_N = table.correct_N * table.steps_N
    right_Q, steps_Q = (
        np.bincount(table.question_N, weights, len(table.questions))
        for weights in (right_N, table.steps_N)
    )
    within_N = table.correct_N - (right_Q / np.maximum(steps_Q, 1))[table.question_N]
    overall_N = table.correct_N - right_N.sum() / table.num_steps
    return np.stack([within_N, overall_N], axis=1).astype(np.float32)


@dataclass(frozen=True)
class _Sample:
    """Some steps' states, as if every entry had mean 0 and deviation 1, however large some are."""

    state_RH: Tensor
    """As they are stored: float32 of all at once would take twice the memory."""
    mean_H: Tensor
    scale_H: Tensor

    def __len__(self) -> int:
        return len(self.state_RH)

    def every(self, stride: int) -> "_Sample":
        """Return one state out of so many."""
        return _Sample(self.state_RH[::stride], self.mean_H, self.scale_H)

    def times(self, direction_HV: Tensor) -> Tensor:
        """Return the states' coordinates [R, V] along directions."""
        scaled_VH = (direction_HV / self.scale_H.unsqueeze(1)).T.contiguous()
        # In this form, few columns take a quarter of the time.
        pieces = [scaled_VH @ piece.T for piece in _centred(self.state_RH, self.mean_H)]
        return torch.cat(pieces, dim=1).T

    def moments(self, direction_HV: Tensor, weight_R: Tensor | None = None) -> Tensor:
        """Return the mean of state @ state.T, perhaps weighted, times directions [H, V]."""
        scaled_VH = (direction_HV / self.scale_H.unsqueeze(1)).T.contiguous()
        total_VH = torch.zeros_like(scaled_VH)
        weights = (torch.ones(len(self)) if weight_R is None else weight_R).split(_PIECE_ROWS)
        # Both products of a piece before the next one: it is still in the processor's cache.
        for piece, weight in zip(_centred(self.state_RH, self.mean_H), weights, strict=True):
            along_VR = scaled_VH @ piece.T
            total_VH.addmm_(along_VR.mul_(weight), piece)
        return (total_VH / self.scale_H / len(self)).T


def _read(
    rows: FeatureRows,
    table: TraceTable,
    contrast_N2: npt.NDArray[np.float32],
    step_R: Ints,
    progress: bool,
) -> tuple[_Sample, Tensor]:
    """Return a sample of the states, and the contrasts [H, 2] of entries that have deviation 1."""
    state_RH = buffer(len(step_R), rows)
    # Of the states with the two contrasts' weights, of the states, and of their squares.
    total_4H = torch.zeros(4, rows.hidden_size, dtype=torch.float64)
    shift_H: Tensor | None = None
    batches = EvaluationBatches(rows, table)
    tracked = track(batches, len(batches), "subspace: batches", shown=progress, delay_s=2)
    for hidden_BH, step_B in tracked:
        if shift_H is None:
            shift_H = hidden_BH[0].float()
        first, last = np.searchsorted(step_R, [int(step_B[0]), int(step_B[-1]) + 1])
        chosen = torch.from_numpy(step_R[first:last]) - step_B[0]
        torch.index_select(hidden_BH, 0, chosen, out=state_RH[first:last])
        weight_3B = torch.ones(3, len(step_B))
        weight_3B[:2] = torch.from_numpy(contrast_N2[table.traces_of(step_B.numpy())].T)
        weights = weight_3B.split(_PIECE_ROWS, dim=1)
        for piece, weight in zip(_centred(hidden_BH, shift_H), weights, strict=True):
            total_4H[:3] += weight @ piece
            total_4H[3] += weight[2] @ piece.square_()
    assert shift_H is not None
    total_4H /= table.num_steps
    mean_H = total_4H[2]
    scale_H = (total_4H[3] - mean_H.square()).clamp_min(0).sqrt()
    scale_H.clamp_(min=max(1e-3 * float(scale_H.square().mean().sqrt()), 1e-6))
    contrast_H2 = (total_4H[:2] / scale_H).float().T
    return _Sample(state_RH, (mean_H + shift_H).float(), scale_H.float()), contrast_H2


def _centred(hidden_BH: Tensor, mean_H: Tensor) -> Iterator[Tensor]:
    """Yield states minus a mean, a few rows at a time, each time in the same memory."""
    memory = torch.empty(min(_PIECE_ROWS, len(hidden_BH)), len(mean_H))
    for piece in hidden_BH.split(_PIECE_ROWS):
        centred = memory[: len(piece)].copy_(piece)
        yield centred.sub_(mean_H)


@dataclass(frozen=True)
class _Whitener:
    """Principal components, and how far states reach along them; elsewhere no farther."""

    basis_HP: Tensor
    deviation_P: Tensor

    def __call__(self, direction_HV: Tensor) -> Tensor:
        """Divide directions by the states' deviation, or that of the last component."""
        rest = self.deviation_P[-1].clamp_min(1e-3)
        along = self.basis_HP.T @ direction_HV
        gain_P = 1 / self.deviation_P.clamp_min(rest) - 1 / rest
        return direction_HV / rest + self.basis_HP @ (gain_P.unsqueeze(1) * along)


def _principal(sample: _Sample, count: int, generator: torch.Generator) -> _Whitener:
    """Find principal components by randomised subspace iteration (Halko et al., 2011)."""
    size = len(sample.scale_H)
    found = torch.randn(size, min(count + _OVERSAMPLING, size), generator=generator)
    for _ in range(2):
        found = _orthonormal(sample.moments(found))
    _, deviation, turn = torch.linalg.svd(sample.times(found), full_matrices=False)
    deviation_P = deviation[:count] / len(sample) ** 0.5
    return _Whitener(found @ turn[:count].T, deviation_P)


def _least_squares(sample: _Sample, contrast_H2: Tensor, basis_HK: Tensor, count: int) -> Tensor:
    """Add the directions of partial least squares to an orthonormal basis."""
    block_HV = _outside(basis_HK, contrast_H2)
    wanted = basis_HK.shape[1] + count
    while basis_HK.shape[1] < wanted:
        block_HV = _orthonormal(_outside(basis_HK, _orthonormal(block_HV)))
        basis_HK = torch.cat([basis_HK, block_HV], dim=1)
        if basis_HK.shape[1] < wanted:
            block_HV = _outside(basis_HK, sample.moments(block_HV))
    return _orthonormal(basis_HK[:, :wanted])


def _quadratic(
    sample: _Sample,
    weight_R: Tensor,
    basis_HK: Tensor,
    whitener: _Whitener,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Add directions along which right and wrong traces of a question vary differently.

    Those of the largest singular values, outside of the basis, of the difference between the
    whitened second moments of right and wrong traces.
    """

    def difference(direction_HV: Tensor) -> Tensor:
        return whitener(sample.moments(whitener(direction_HV), weight_R))

    size = len(sample.scale_H)
    width = min(count + _OVERSAMPLING, size - basis_HK.shape[1])
    found = torch.randn(size, width, generator=generator)
    for _ in range(_ROUNDS):
        found = _orthonormal(difference(found))
    # A direction outside of the basis may go together with one inside.
    found = _orthonormal(_outside(basis_HK, found))
    turn, _, _ = torch.linalg.svd(difference(found).T, full_matrices=False)
    return _orthonormal(torch.cat([basis_HK, whitener(found @ turn[:, :count])], dim=1))


def _outside(basis_HK: Tensor, direction_HV: Tensor) -> Tensor:
    """Take from directions what lies in an orthonormal basis."""
    return direction_HV - basis_HK @ (basis_HK.T @ direction_HV)


def _orthonormal(direction_HV: Tensor) -> Tensor:
    return torch.linalg.qr(direction_HV)[0]
