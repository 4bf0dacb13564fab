"""Loaded by every Python process that a test starts with this folder on its path."""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    import v2_on_cpu

    v2_on_cpu.let_vllm_find_triton()
