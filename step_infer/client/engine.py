"""The engine under `StepLLM`: its arguments and environment, its guard, its counters."""

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from step_infer.client.prompt import context_length
from step_infer.client.weights import check_weights
from step_infer.errors import InputError
from step_infer.settings import AdapterConfig, StepSettings
from step_infer.wire import CONFIG_KEY, because

CPU_BLOCK_SIZE = 32
CUDA_BLOCK_SIZE = 16
CPU_KV_BYTES = 512 * 2**20
CPU_BATCH_TOKENS = 4096
# What the engine's processes inherit where the user has not set it.
_ENGINE_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",  # vLLM's start-up says nothing that a user can act on
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::UserWarning",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # FlashInfer's sampler is compiled at the first start, for minutes; vLLM's own is not.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # A forked engine waits for ever if this process has threads: torch has some as soon as it has
    # read a scorer.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
_MULTIPROCESSING = "VLLM_ENABLE_V1_MULTIPROCESSING"
_RANKS = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


def engine_arguments(
    model: str, engine_args: dict[str, Any], kv_budget_tokens: int | None
) -> dict[str, Any]:
    """Return what `vllm.LLM` gets: our defaults under the user's arguments.

    Args:
        model: Hugging Face folder or hub id.
        engine_args: the user's, which win.
        kv_budget_tokens: size of the KV cache in tokens; None takes what memory gives.

    Raises:
        InputError: the budget is no whole number or holds no longest trace.
    """
    on_cpu = _on_cpu()
    arguments: dict[str, Any] = {
        "model": model,
        "disable_log_stats": False,
        "use_tqdm_on_load": False,
        "block_size": CPU_BLOCK_SIZE if on_cpu else CUDA_BLOCK_SIZE,
    }
    if on_cpu:
        arguments |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": CPU_KV_BYTES,
            "enable_chunked_prefill": False,
        }
        dtype = cpu_dtype()
        if dtype is not None:
            arguments["dtype"] = dtype
    arguments |= engine_args
    longest = context_length(model, arguments.get("max_model_len"), engine_revision(arguments))
    # Whole prefills need a batch that holds one.
    if on_cpu and not arguments["enable_chunked_prefill"]:
        arguments.setdefault("max_num_batched_tokens", max(CPU_BATCH_TOKENS, longest or 0))
    if kv_budget_tokens is not None:
        if not isinstance(kv_budget_tokens, int):
            raise InputError(
                f"Expected a KV budget in whole tokens, found {kv_budget_tokens!r}. "
                "Hint: give an int, such as 8192."
            )
        if longest is not None and kv_budget_tokens < longest:
            raise InputError(
                f"Expected a KV budget of at least one longest trace ({longest} tokens), found "
                f"{kv_budget_tokens}. Hint: raise the budget (--kv-budget) or lower "
                "max_model_len (--engine.max_model_len)."
            )
        # One block more: vLLM keeps the first for itself.
        blocks = -(-kv_budget_tokens // arguments["block_size"]) + 1
        arguments["num_gpu_blocks_override"] = blocks
    return arguments


def engine_revision(arguments: Mapping[str, Any]) -> str | None:
    """Return the revision of the model that an engine with these arguments loads."""
    revision = arguments.get("revision")
    return None if revision is None else str(revision)


def cpu_dtype() -> str | None:
    """Return the number format for a CPU engine; None leaves it to the model's config.

    Without instructions for bfloat16 products, float32 is faster (about twice) and more exact.
    """
    import torch

    features = torch.cpu.get_capabilities()
    if features.get("architecture") != "x86_64":
        return None
    return None if features.get("avx512_bf16") or features.get("amx_bf16") else "float32"


def takes_seeds(arguments: dict[str, Any]) -> bool:
    """Whether an engine with these arguments can sample requests with seeds of their own.

    vLLM's CPU runner turns a seeded generator back after a part of a prefill, which a CPU generator
    cannot do: the engine would end.
    """
    return not _on_cpu() or not arguments["enable_chunked_prefill"]


def _on_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def with_adapter(arguments: dict[str, Any], settings: StepSettings) -> dict[str, Any]:
    """Return an engine's arguments with the adapter's classes and settings.

    A scheduler class among the arguments, and what else its `additional_config` holds, stay.
    """
    config = {**arguments.get("additional_config", {}), CONFIG_KEY: settings.to_dict()}
    return {
        "scheduler_cls": "step_infer.scheduler.StepScheduler",
        **arguments,
        "worker_cls": "step_infer.worker.StepWorker",
        "additional_config": AdapterConfig(config),
    }


def start_engine(arguments: dict[str, Any]) -> "tuple[Any, EngineGuard]":
    """Return a started `vllm.LLM`, and the guard of its processes.

    Raises:
        InputError: an argument is unknown, or refused; the model folder lacks weights.
    """
    if "load_format" not in arguments:
        check_weights(arguments["model"])
    before = multiprocessing.active_children()
    with engine_environment(arguments):
        llm = _start(arguments)
    started = [child for child in multiprocessing.active_children() if child not in before]
    return llm, EngineGuard(child.pid for child in started if child.pid is not None)


def _start(arguments: dict[str, Any]) -> Any:
    from vllm import LLM

    try:
        return LLM(**arguments)
    except InputError:  # ours, of an engine in this process
        raise
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Expected engine arguments that vLLM takes, found: {str(error).rstrip().rstrip('.')}. "
            "Hint: change or leave out what it names (--engine.NAME VALUE)."
        ) from error


@contextlib.contextmanager
def engine_environment(arguments: dict[str, Any]) -> Iterator[None]:
    """Set the variables that engines inherit and that are not set, and take them away again.

    In this process, vLLM then logs as it did before.

    Args:
        arguments: of `vllm.LLM`.
    """
    import torch
    from vllm import envs

    set_num_threads = torch.set_num_threads
    variables = dict(_ENGINE_ENVIRONMENT)
    if _in_this_process(arguments):
        # One process instead of three, each of which would import vLLM: starts five times as fast.
        variables[_MULTIPROCESSING] = "0"
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        with _vllm_log_level_kept(), warnings.catch_warnings():
            for category in (FutureWarning, UserWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        # An engine in this process makes vLLM keep its variables as they are now, and forbid torch
        # to change the number of its threads.
        envs.disable_envs_cache()
        torch.set_num_threads = set_num_threads


def leave_a_core(arguments: dict[str, Any]) -> Callable[[], None]:
    """Take a thread from torch where it has one on every core; return what gives it back.

    As vLLM does for an engine with a process of its own: with every core in use, each small
    operation waits for the core on which something else runs. OMP_NUM_THREADS stays as it is set.

    Args:
        arguments: of `vllm.LLM`.
    """
    import torch

    threads = torch.get_num_threads()
    if _in_this_process(arguments) and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(threads, max(1, len(os.sched_getaffinity(0)) - 1)))
    return functools.partial(torch.set_num_threads, threads)


def _in_this_process(arguments: dict[str, Any]) -> bool:
    """Whether a CPU engine with these arguments gets no process of its own."""
    one_rank = all(int(arguments.get(name, 1)) == 1 for name in _RANKS)
    return _on_cpu() and one_rank and os.environ.get(_MULTIPROCESSING, "0") == "0"


@contextlib.contextmanager
def _vllm_log_level_kept() -> Iterator[None]:
    """Let vLLM log in this process as the environment says, then as it did before.

    An engine's start sets up the log of the whole process. Where nobody had, that stays.
    """
    logger = logging.getLogger("vllm")
    level, handlers = logger.level, list(logger.handlers)
    logger.setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    try:
        yield
    finally:
        if level != logging.NOTSET:
            logger.setLevel(level)
            for handler in logger.handlers:
                if handler not in handlers:
                    handler.setLevel(level)


def abort_because(engine: Any, names: Iterable[str], reason: str) -> dict[str, list[int]]:
    """Abort requests, and tell the scheduler why.

    Args:
        engine: vLLM's `LLMEngine`.
        names: the requests, as they were named when they were added.
        reason: counted, and written into the event log.

    Returns:
        The tokens that each of them had generated, which vLLM hands to nobody.
    """
    processor = engine.output_processor
    tokens = {}
    for name in names:
        for number in processor.external_req_ids.get(name, ()):
            detokenizer = processor.request_states[number].detokenizer
            tokens[name] = list(detokenizer.output_token_ids)
    ids = processor.abort_requests(tokens, internal=False)
    if ids:
        engine.engine_core.abort_requests(because(reason, ids))
    return tokens


def engine_name(processor: Any, name: str) -> str:
    """Return what vLLM's engine calls a request, as in the event log; its own name once it is gone.

    Args:
        processor: vLLM's output processor.
        name: of the request, as it was named when it was added.
    """
    return next(iter(processor.external_req_ids.get(name, ())), name)


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Put an interrupt (Ctrl-C) off until the engine has done what it is at.

    An engine in this process that is cut off in the middle of a step can never do another one. A
    second interrupt is not put off, as the engine may hang.
    """
    theirs = signal.getsignal(signal.SIGINT)
    if not callable(theirs) or threading.current_thread() is not threading.main_thread():
        yield  # none comes here
        return
    came: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))
        if len(came) > 1:
            theirs(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, theirs)
        if came:
            theirs(*came[0])


_SCRIPT = 'read -r _; kill "$@"; sleep 2; kill -9 "$@"'


class EngineGuard:
    """A small shell process that outlives this one for as long as it takes to end the engine's.

    vLLM runs its engine in a process of its own. When the owner ends by SIGKILL (or the system's
    memory killer) that process stays, idle, and keeps the device's memory: the next run could not
    start. The guard waits for the end of its input, which comes when the owner is gone, however it
    went.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        """Guard processes by their ids; none is fine."""
        ids = [str(pid) for pid in pids]
        self._process: subprocess.Popen[bytes] | None = None
        if ids:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT, "sh", *ids],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # an interrupt from the terminal is not for the guard
            )

    def close(self) -> None:
        """Let the processes be: their owner has ended them."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_METRICS = {
    "vllm:kv_cache_usage_perc": "kv_use",
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_preemptions": "preemptions",
    "vllm:generation_tokens": "generated_tokens",
}


@dataclass(frozen=True)
class EngineStats:
    """vLLM's own counters at one moment."""

    time_s: float
    """Seconds of `time.monotonic()`."""
    kv_use: float = 0.0
    """Part of the KV cache in use, in [0, 1]."""
    running: int = 0
    waiting: int = 0
    preemptions: int = 0
    """Since the engine's start."""
    generated_tokens: int = 0
    """Since the engine's start."""


def engine_stats(metrics: Iterable[Any]) -> EngineStats:
    """Return the counters in vLLM's metrics (`LLM.get_metrics`), summed over engines, as of now."""
    values: dict[str, float] = {}
    for metric in metrics:
        name = _METRICS.get(metric.name)
        if name is not None:
            values[name] = values.get(name, 0.0) + metric.value
    kv_use = values.pop("kv_use", 0.0)
    whole = {name: int(value) for name, value in values.items()}
    return EngineStats(time.monotonic(), kv_use, **whole)
