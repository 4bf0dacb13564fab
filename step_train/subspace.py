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
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from step_infer.errors import InputError
from step_infer.scorer import StepScorer
from step_train.feature_blocks import MEBIBYTE, EvaluationBatches, FeatureRows
from step_train.trace_table import Ints, TraceTable

_SAMPLE_ROWS, _PRINCIPAL_ROWS = 32_768, 8_192
"""Most rows that second moments are taken of, and those for the principal components."""

_PIECE_ROWS = 1024
_OVERSAMPLING = 8


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
            f"Expected components below the states' size {rows.hidden_size}, found {components}. "
            "Hint: components 0 trains on the states themselves."
        )
    if _most_rows(rows, memory_mib) < 4 * components:
        needed = -(-4 * components * 8 * rows.hidden_size // MEBIBYTE)
        raise InputError(
            f"Expected memory_mib of at least {needed} for {components} components, found "
            f"{memory_mib}."
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
    mean_H, contrast_H2, state_RH = _read(rows, table, contrast_N2, step_R, progress)
    if not torch.isfinite(mean_H).all():
        rows.require_finite()
    # Every entry of a state counts the same, however large some are.
    state_RH -= mean_H
    scale_H = torch.linalg.vector_norm(state_RH, dim=0) / count**0.5
    scale_H.clamp_(min=max(1e-3 * float(scale_H.square().mean().sqrt()), 1e-6))
    state_RH /= scale_H

    generator = torch.Generator().manual_seed(seed)
    quadratic, least_squares = components // 8, components // 4
    some_RH = state_RH[:: -(-count // _PRINCIPAL_ROWS)]
    whitener = _principal(some_RH, components - quadratic - least_squares, generator)
    basis_HK = _least_squares(
        state_RH, contrast_H2 / scale_H.unsqueeze(1), whitener.basis_HP, least_squares
    )
    weight_R = torch.from_numpy(contrast_N2[table.traces_of(step_R), 0])
    basis_HK = _quadratic(state_RH, weight_R, basis_HK, whitener, quadratic, generator)
    spread_K = torch.linalg.vector_norm(state_RH @ basis_HK, dim=0) / count**0.5
    weight_HK = basis_HK / spread_K.clamp_min(1e-6) / scale_H.unsqueeze(1)
    return Subspace(mean_H, weight_HK.contiguous())


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


def _read(
    rows: FeatureRows,
    table: TraceTable,
    contrast_N2: npt.NDArray[np.float32],
    step_R: Ints,
    progress: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean state, the states' contrasts [H, 2] and the states of some steps [R, H]."""
    state_RH = torch.from_numpy(np.empty((len(step_R), rows.hidden_size), dtype=np.float32))
    total_H = torch.zeros(rows.hidden_size, dtype=torch.float64)
    contrast_H2 = torch.zeros(rows.hidden_size, 2, dtype=torch.float64)
    shift_H: Tensor | None = None
    batches = tqdm(
        EvaluationBatches(rows, table),
        desc="subspace",
        unit="batch",
        delay=2,
        disable=not progress,
    )
    for hidden_BH, step_B in batches:
        if shift_H is None:
            shift_H = hidden_BH[0].float()
        first, last = np.searchsorted(step_R, [int(step_B[0]), int(step_B[-1]) + 1])
        state_RH[first:last] = hidden_BH[torch.from_numpy(step_R[first:last]) - step_B[0]].float()
        weight_B3 = torch.ones(len(step_B), 3)
        weight_B3[:, :2] = torch.from_numpy(contrast_N2[table.traces_of(step_B.numpy())])
        for piece_BH, part_B3 in zip(
            _centred(hidden_BH, shift_H), weight_B3.split(_PIECE_ROWS), strict=True
        ):
            sums = (part_B3.T @ piece_BH).double()
            contrast_H2 += sums[:2].T
            total_H += sums[2]
    assert shift_H is not None
    mean_H = total_H / table.num_steps + shift_H
    return mean_H.float(), (contrast_H2 / table.num_steps).float(), state_RH


def _centred(hidden_BH: Tensor, mean_H: Tensor) -> Iterator[Tensor]:
    """Yield states minus a mean, a few rows at a time, each time in the same memory."""
    memory = torch.empty(min(_PIECE_ROWS, len(hidden_BH)), len(mean_H))
    for piece in hidden_BH.split(_PIECE_ROWS):
        centred = memory[: len(piece)].copy_(piece)
        yield centred.sub_(mean_H)


@dataclass(frozen=True)
class _Whitener:
    """Principal components, and how far states reach along them and elsewhere."""

    basis_HP: Tensor
    deviation_P: Tensor
    rest: float
    """Root mean square deviation outside of them."""

    def __call__(self, direction_HV: Tensor) -> Tensor:
        """Divide directions by the states' deviation."""
        along = self.basis_HP.T @ direction_HV
        gain_P = 1 / self.deviation_P.clamp_min(self.rest) - 1 / self.rest
        return direction_HV / self.rest + self.basis_HP @ (gain_P.unsqueeze(1) * along)


def _principal(state_RH: Tensor, count: int, generator: torch.Generator) -> _Whitener:
    """Find principal components by randomised subspace iteration (Halko et al., 2011)."""
    size = state_RH.shape[1]
    found = torch.randn(size, min(count + _OVERSAMPLING, size), generator=generator)
    for _ in range(2):
        found = _orthonormal(_transposed(state_RH, state_RH @ found))
    _, deviation, turn = torch.linalg.svd(state_RH @ found, full_matrices=False)
    deviation_P = deviation[:count] / len(state_RH) ** 0.5
    whole = float(torch.linalg.vector_norm(state_RH)) ** 2 / len(state_RH)
    left = max(whole - float(deviation_P.square().sum()), 1e-6 * whole, 1e-12)
    return _Whitener(found @ turn[:count].T, deviation_P, (left / (size - count)) ** 0.5)


def _least_squares(state_RH: Tensor, contrast_H2: Tensor, basis_HK: Tensor, count: int) -> Tensor:
    """Add the directions of partial least squares to an orthonormal basis."""
    block_HV = _outside(basis_HK, contrast_H2)
    wanted = basis_HK.shape[1] + count
    while basis_HK.shape[1] < wanted:
        block_HV = _orthonormal(_outside(basis_HK, _orthonormal(block_HV)))
        basis_HK = torch.cat([basis_HK, block_HV], dim=1)
        block_HV = _outside(basis_HK, _transposed(state_RH, state_RH @ block_HV))
    return _orthonormal(basis_HK[:, :wanted])


def _quadratic(
    state_RH: Tensor,
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
        product_RV = weight_R.unsqueeze(1) * (state_RH @ whitener(direction_HV))
        return whitener(_transposed(state_RH, product_RV)) / len(state_RH)

    size = state_RH.shape[1]
    width = min(count + _OVERSAMPLING, size - basis_HK.shape[1])
    found = torch.randn(size, width, generator=generator)
    # A direction outside of the basis may go together with one inside.
    found = _orthonormal(_outside(basis_HK, difference(_orthonormal(difference(found)))))
    turn, _, _ = torch.linalg.svd(difference(found).T, full_matrices=False)
    return _orthonormal(torch.cat([basis_HK, found @ turn[:, :count]], dim=1))


def _transposed(state_RH: Tensor, product_RV: Tensor) -> Tensor:
    """Return state_RH.T @ product_RV; in this form, few columns take a twentieth of the time."""
    return (product_RV.T @ state_RH).T


def _outside(basis_HK: Tensor, direction_HV: Tensor) -> Tensor:
    """Take from directions what lies in an orthonormal basis."""
    return direction_HV - basis_HK @ (basis_HK.T @ direction_HV)


def _orthonormal(direction_HV: Tensor) -> Tensor:
    return torch.linalg.qr(direction_HV)[0]
