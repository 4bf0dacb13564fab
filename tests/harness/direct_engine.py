"""vLLM's own `LLM` with the adapter, on the demo model if no other is named."""

import contextlib

import pytest
import torch
from places import CHECKPOINT, SCORER

from step_infer.client.engine import leave_a_core


@contextlib.contextmanager
def direct_engine(model=CHECKPOINT, own_process=False, **options):
    """Start an engine, yield it, and shut it down.

    Args:
        model: its folder.
        own_process: not in the test's process; this takes longer to start.
        options: of `vllm.LLM`, over ours.
    """
    from vllm import LLM, envs

    arguments = {
        "worker_cls": "step_infer.worker.StepWorker",
        "additional_config": {"step": {"scorer": str(SCORER)}},
        "enforce_eager": True,
        "block_size": 32,
        "kv_cache_memory_bytes": 2**29,
        "max_num_seqs": 32,
        "disable_log_stats": False,
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", str(int(own_process)))
        environment.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # this process may know CUDA
        environment.setattr(torch, "set_num_threads", torch.set_num_threads)  # vLLM changes it
        llm = LLM(str(model), **arguments | options)
    envs.disable_envs_cache()
    give_back_core = leave_a_core({})
    yield llm
    llm.llm_engine.engine_core.shutdown()
    give_back_core()
