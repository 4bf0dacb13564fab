"""The number format in which engines are compared with a forward pass of transformers in float32.

In float32 a score of the right row is right to a few digits, so that a wrong row stands out. The
tests of the adapter's own path run CUDA engines in the model's 16 bits, as users do.
"""

import torch

ANY_BATCH = {"dtype": "float32"}
"""Engine arguments with which a trace is the same, whatever else is in its batch: CPUs with matrix
units for 16-bit numbers, as GPUs, round their products otherwise for other sizes."""
DTYPE = "bfloat16" if torch.cuda.is_available() else "float32"
FLOAT32_TOLERANCE = 0.001
SCORE_TOLERANCE = 0.01 if torch.cuda.is_available() else FLOAT32_TOLERANCE
"""Largest difference of a score of the right row, in float32 and in `DTYPE`."""
SHARED_GPU = (
    {"gpu_memory_utilization": 0.25, "kv_cache_memory_bytes": 2**29}
    if torch.cuda.is_available()
    else {}
)
"""Engine arguments with which the tests of both model runners can share a GPU."""
