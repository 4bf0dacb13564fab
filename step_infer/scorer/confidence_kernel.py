"""Token confidence in two Triton kernels, which read the logits once.

With PyTorch's operations it takes some ten launches, each of which the host makes while the GPU
waits for it, and copies of all logits in float32. `step_infer.scorer.token_confidence` says what is
computed, and why the top tokens lie in the segments of the largest maxima.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_CHUNK = 4096  # logits that one program of the first kernel reads


@triton.jit
def _reduce_chunks(  # type: ignore[no-untyped-def]
    logits, maxima, tops, sums, stride, vocabulary,
    SEGMENTS: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Of one chunk of a row: its segments' maxima, its maximum, its sum of exp(logit - maximum)."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    offsets = chunk * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(
        logits + row * stride + offsets, mask=offsets < vocabulary, other=float("-inf")
    ).to(tl.float32)
    best = tl.max(tl.reshape(values, (CHUNK // SEGMENT, SEGMENT)), axis=1)
    places = chunk * (CHUNK // SEGMENT) + tl.arange(0, CHUNK // SEGMENT)
    tl.store(maxima + row * SEGMENTS + places, best, mask=places < SEGMENTS)
    top = tl.max(best, axis=0)
    shift = tl.where(top == float("-inf"), 0.0, top)  # else -inf - -inf, which is NaN
    tl.store(tops + row * CHUNKS + chunk, top)
    tl.store(sums + row * CHUNKS + chunk, tl.sum(tl.exp(values - shift), axis=0))


@triton.jit
def _confidence(  # type: ignore[no-untyped-def]
    logits, maxima, tops, sums, found, stride, vocabulary,
    SEGMENTS: tl.constexpr, CHUNKS: tl.constexpr, SEGMENT: tl.constexpr, K: tl.constexpr,
    PICKS: tl.constexpr, SEGMENTS_2: tl.constexpr, CHUNKS_2: tl.constexpr, PICKS_2: tl.constexpr,
):  # fmt: skip
    """Of one row: log-sum-exp less the mean of the K largest logits. NAME_2: its power of two."""
    lowest = -3.4e38  # above -inf, which marks what has been taken
    row = tl.program_id(0).to(tl.int64)

    chunk = tl.arange(0, CHUNKS_2)
    top = tl.load(tops + row * CHUNKS + chunk, mask=chunk < CHUNKS, other=float("-inf"))
    part = tl.load(sums + row * CHUNKS + chunk, mask=chunk < CHUNKS, other=0.0)
    most = tl.max(top, axis=0)
    log_sum = most + tl.log(tl.sum(part * tl.exp(top - most), axis=0))

    segment = tl.arange(0, SEGMENTS_2)
    best = tl.load(maxima + row * SEGMENTS + segment, mask=segment < SEGMENTS, other=float("-inf"))
    best = tl.where(segment < SEGMENTS, tl.maximum(best, lowest), float("-inf"))
    place = tl.arange(0, PICKS_2)
    picked = tl.zeros((PICKS_2,), tl.int32)
    for number in range(PICKS):
        largest = tl.argmax(best, axis=0)
        picked = tl.where(place == number, largest, picked)
        best = tl.where(segment == largest, float("-inf"), best)

    offsets = picked[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    valid = (place[:, None] < PICKS) & (offsets < vocabulary)
    values = tl.load(logits + row * stride + offsets, mask=valid, other=0.0).to(tl.float32)
    values = tl.where(valid, tl.maximum(values, lowest), float("-inf"))
    values = tl.reshape(values, (PICKS_2 * SEGMENT,))
    candidate = tl.arange(0, PICKS_2 * SEGMENT)
    total = 0.0
    for _ in range(K):
        value = tl.max(values, axis=0)
        total += tl.where(value == lowest, float("-inf"), value)
        values = tl.where(candidate == tl.argmax(values, axis=0), float("-inf"), values)
    tl.store(found + row, log_sum - total / K)


def fused_confidence(logits_BV: Tensor, top_tokens: int, segment: int) -> Tensor:
    """Return minus the mean log-probability of each row's `top_tokens` largest logits, [B] float32.

    Args:
        logits_BV: logits [B, V] of any float type, on the GPU.
        top_tokens: K; all of the vocabulary where it is smaller.
        segment: logits of a segment, a power of two below 4,096.
    """
    if logits_BV.stride(-1) != 1:
        logits_BV = logits_BV.contiguous()
    rows, vocabulary = logits_BV.shape
    segments, chunks = triton.cdiv(vocabulary, segment), triton.cdiv(vocabulary, _CHUNK)
    count = min(top_tokens, vocabulary)
    picks = min(count, segments)
    maxima_BS = logits_BV.new_empty(rows, segments, dtype=torch.float32)
    # Not halves of one tensor: for an address that 16 does not divide, Triton compiles anew.
    tops_BC, sums_BC = (maxima_BS.new_empty(rows, chunks) for _ in range(2))
    found_B = maxima_BS.new_empty(rows)
    if rows:
        _reduce_chunks[(rows, chunks)](
            logits_BV, maxima_BS, tops_BC, sums_BC, logits_BV.stride(0), vocabulary,
            segments, chunks, _CHUNK, segment,
        )  # fmt: skip
        _confidence[(rows,)](
            logits_BV, maxima_BS, tops_BC, sums_BC, found_B, logits_BV.stride(0), vocabulary,
            segments, chunks, segment, count, picks,
            *(triton.next_power_of_2(size) for size in (segments, chunks, picks)),
        )  # fmt: skip
    return found_B
