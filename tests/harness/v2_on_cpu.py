"""vLLM's V2 model runner on a CPU: its Triton kernels run in Triton's own interpreter.

vLLM's CPU build asks for a Triton with a back end for CPUs, which PyPI has not. The interpreter
needs none: it runs a kernel's Python line by line, on tensors of the host. That is slow, but each
row of a step lies where the V2 runner lays it on a GPU.
"""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"


def asked_for() -> bool:
    """Return whether the environment asks for the V2 runner, and there is no GPU to run it."""
    if os.environ.get(VARIABLE) != "1":
        return False
    import torch

    return not torch.cuda.is_available()


def switch_on() -> None:
    """Let this process and its children run the V2 runner; before vLLM is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    here = str(Path(__file__).parent)
    if here not in (path := os.environ.get("PYTHONPATH", "")).split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join([here, path] if path else [here])
    let_vllm_find_triton()


def let_vllm_find_triton() -> None:
    """Name a back end for CPUs among Triton's, and mend its interpreter; once a process."""
    from triton.backends import backends
    from triton.runtime.interpreter import InterpreterBuilder

    class Driver:
        is_active = staticmethod(lambda: True)

    backends["cpu"] = SimpleNamespace(driver=Driver, compiler=None)
    for name in ("create_masked_load", "create_masked_store"):
        setattr(InterpreterBuilder, name, _with_true_masks(getattr(InterpreterBuilder, name)))


def _with_true_masks(method: Any) -> Any:
    """Return a load or store that takes integers as masks, as compiled kernels do."""

    def call(builder: Any, *args: Any) -> Any:
        place = 1 if method.__name__ == "create_masked_load" else 2
        args[place].data = args[place].data.astype(bool)
        return method(builder, *args)

    return call
