"""Loaded by every Python process that a test starts with this folder on its path."""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    import v2_on_cpu

    v2_on_cpu.let_vllm_find_triton()
if "HELD_AT" in os.environ:
    import held_process

    count, name = os.environ[held_process.VARIABLE].split(" ", 1)
    held_process.stand_still_at(name, int(count))
