"""The number format in which engines are compared with a forward pass of transformers.

In float32 a score of the right row is right to a few digits, so that a wrong row stands out. CUDA
engines run in the model's own 16 bits, as users do: their kernels need it.
"""

import torch

DTYPE = "bfloat16" if torch.cuda.is_available() else "float32"
SCORE_TOLERANCE = 0.01 if torch.cuda.is_available() else 0.001
SHARED_GPU = (
    {"gpu_memory_utilization": 0.25, "kv_cache_memory_bytes": 2**29}
    if torch.cuda.is_available()
    else {}
)
"""Engine arguments with which the tests of both model runners can share a GPU."""
