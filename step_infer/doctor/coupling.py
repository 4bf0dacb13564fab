"""Every point where the adapter meets vLLM, and how to see whether a vLLM has it.

A check imports what it looks for, or reads vLLM's source, and raises an AttributeError or an
ImportError that names all that is missing. No vLLM import at the top.
"""

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent
ADAPTER = ("compat", "scheduler", "stat_logger", "worker")
"""The modules that vLLM loads, or that are loaded with these."""

SCHEDULER_ATTRIBUTES = (
    *("_pause_state", "current_step", "kv_cache_manager", "log_stats", "max_model_len"),
    *("max_num_scheduled_tokens", "num_lookahead_tokens", "num_spec_tokens", "requests"),
    *("running", "scheduler_config", "use_pp"),
    *("vllm_config", "waiting"),
)
REQUEST_ATTRIBUTES = (
    *(
        "arrival_time",
        "cache_salt",
        "client_index",
        "is_prefill_chunk",
        "lora_request",
        "max_tokens",
    ),
    *("next_decode_eligible_step", "num_computed_tokens", "num_output_placeholders"),
    *("num_output_tokens", "num_prompt_tokens", "num_tokens_with_spec", "prompt_token_ids"),
    *("request_id", "resumable", "sampling_params", "take_events", "trace_headers"),
)


@dataclass(frozen=True)
class CouplingPoint:
    """One thing of vLLM's that the adapter relies on."""

    name: str
    check: Callable[[], object]
    """Raises AttributeError or ImportError, with what is missing."""
    reason: str
    """What the adapter needs it for."""


def _attribute(module: str, path: str) -> Any:
    value: Any = importlib.import_module(module)
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _refuse(place: str, missing: list[str]) -> None:
    if missing:
        raise AttributeError(f"{place} lacks {', '.join(missing)}")


def has(module: str, *paths: str) -> Callable[[], object]:
    """Return a check for classes, functions and methods of a module."""
    return lambda: [_attribute(module, path) for path in paths]


def mentions(module: str, path: str, *texts: str) -> Callable[[], object]:
    """Return a check for texts in the source of a class or function."""

    def check() -> None:
        source = inspect.getsource(_attribute(module, path))
        _refuse(path, [text for text in texts if text not in source])

    return check


def has_attributes(module: str, kind: str, *names: str) -> Callable[[], object]:
    """Return a check for attributes that a class sets in its methods, or has as methods."""

    def check() -> None:
        found = _attribute(module, kind)
        source = inspect.getsource(found)
        _refuse(kind, [n for n in names if f"self.{n}" not in source and not hasattr(found, n)])

    return check


def has_fields(module: str, kind: str, *names: str) -> Callable[[], object]:
    """Return a check for fields of a dataclass or a msgspec Struct."""

    def check() -> None:
        found = _attribute(module, kind)
        fields = getattr(found, "__struct_fields__", ())
        if dataclasses.is_dataclass(found):
            fields = tuple(field.name for field in dataclasses.fields(found))
        _refuse(kind, [name for name in names if name not in fields])

    return check


def takes_attributes(module: str, kind: str) -> Callable[[], object]:
    """Return a check for a class whose objects take attributes that it does not name."""

    def check() -> None:
        if not _attribute(module, kind).__dictoffset__:
            raise AttributeError(f"{kind} takes no attributes of ours")

    return check


def imported_names(*modules: str) -> Iterator[tuple[str, str]]:
    """Yield what modules of this package import from vLLM at their top: module, name."""
    for module in modules:
        tree = ast.parse((PACKAGE / f"{module}.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm."):
                yield from ((str(node.module), name.name) for name in node.names)


def _imports() -> None:
    missing = []
    for module, name in dict.fromkeys(imported_names(*ADAPTER)):
        try:
            _attribute(module, name)
        except (ImportError, AttributeError) as error:
            if isinstance(error, ImportError) and not (error.name or "").startswith("vllm"):
                raise  # of a library that vLLM itself wants
            missing.append(f"{module}.{name}")
    _refuse("vllm", missing)


def _all(*checks: Callable[[], object]) -> Callable[[], object]:
    def check() -> None:
        errors = []
        for part in checks:
            try:
                part()
            except AttributeError as error:
                errors.append(str(error))
        if errors:
            raise AttributeError("; ".join(errors))

    return check


_FLAGS = ("common", "launchers", "openai")
"""Packages that have the flags of the server, those of newer versions first."""


def _takes_middleware() -> None:
    for place in _FLAGS:
        module = f"vllm.entrypoints.{place}.cli_args"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise  # of a library that the server wants
        else:
            has_fields(module, "FrontendArgs", "middleware")()
            return
    raise AttributeError("vllm.entrypoints has no cli_args")


_SCHEDULER = "vllm.v1.core.sched.scheduler"
_OPENAI = "vllm.entrypoints.openai"
_HANDLER_USES = ("self.engine_client.generate(", "self.models.model_name(")

COUPLING_POINTS = (
    CouplingPoint("Imports of the adapter", _imports, "without them no engine starts with it"),
    CouplingPoint(
        "AsyncScheduler",
        has("vllm.v1.core.sched.async_scheduler", "AsyncScheduler"),
        "the scheduler is a subclass of it",
    ),
    CouplingPoint(
        "Scheduler.schedule, update_from_output, add_request, get_request_counts, shutdown",
        has(
            _SCHEDULER,
            *("Scheduler.schedule", "Scheduler.update_from_output", "Scheduler.add_request"),
            *("Scheduler.get_request_counts", "Scheduler.shutdown"),
        ),
        "pruning happens before a step is scheduled, scores are kept around its output",
    ),
    CouplingPoint(
        "Scheduler.finish_requests",
        has(_SCHEDULER, "Scheduler.finish_requests"),
        "stops a trace and frees its blocks",
    ),
    CouplingPoint(
        "PauseState.PAUSED_ALL, Scheduler._pause_state",
        _all(
            has("vllm.v1.core.sched.interface", "PauseState.PAUSED_ALL"),
            mentions(_SCHEDULER, "Scheduler.schedule", "self._pause_state"),
        ),
        "prunes nothing while the engine is paused",
    ),
    CouplingPoint(
        "RequestQueue.add_request and remove_requests",
        has(
            "vllm.v1.core.sched.request_queue",
            *("RequestQueue.add_request", "RequestQueue.remove_requests"),
        ),
        "holds new traces back while memory is short",
    ),
    CouplingPoint(
        "Attributes of Scheduler and Request",
        _all(
            mentions(
                _SCHEDULER,
                "Scheduler.schedule",
                *("num_tokens_with_spec", "num_output_placeholders", "num_computed_tokens"),
            ),
            has_attributes(_SCHEDULER, "Scheduler", *SCHEDULER_ATTRIBUTES),
            has_attributes("vllm.v1.request", "Request", *REQUEST_ATTRIBUTES),
        ),
        "computes how many blocks the next step needs",
    ),
    CouplingPoint(
        "KV cache managers' req_to_blocks",
        _all(
            mentions(
                "vllm.v1.core.single_type_kv_cache_manager",
                "SingleTypeKVCacheManager",
                "self.req_to_blocks",
            ),
            mentions(
                "vllm.v1.core.kv_cache_coordinator",
                "KVCacheCoordinator.__init__",
                "self.single_type_managers",
            ),
        ),
        "counts the blocks that a request holds",
    ),
    CouplingPoint(
        "BlockPool.get_num_free_blocks, KVCacheManager.usage, fields of KVCacheBlock",
        _all(
            has("vllm.v1.core.block_pool", "BlockPool.get_num_free_blocks"),
            has_fields("vllm.v1.core.kv_cache_utils", "KVCacheBlock", "ref_cnt", "is_null"),
            has("vllm.v1.core.kv_cache_manager", "KVCacheManager.usage"),
        ),
        "counts the free blocks",
    ),
    CouplingPoint(
        "Fields of ParallelConfig, ObservabilityConfig and KVTransferConfig",
        _all(
            has_fields(
                "vllm.config.parallel",
                "ParallelConfig",
                *("data_parallel_index", "data_parallel_backend", "world_size", "worker_cls"),
                *("distributed_executor_backend", "prefill_context_parallel_size"),
            ),
            has_fields("vllm.config.observability", "ObservabilityConfig", "cudagraph_metrics"),
            has_fields("vllm.config.kv_transfer", "KVTransferConfig", "kv_load_failure_policy"),
        ),
        "finds features that must be refused, and its place among several engines",
    ),
    CouplingPoint(
        "OutputProcessor.abort_requests, external_req_ids and request_states",
        _all(
            has("vllm.v1.engine.output_processor", "OutputProcessor.abort_requests"),
            has("vllm.v1.engine.detokenizer", "IncrementalDetokenizer.output_token_ids"),
            mentions(
                "vllm.v1.engine.output_processor",
                "OutputProcessor.__init__",
                *("self.external_req_ids", "self.request_states"),
            ),
        ),
        "ends the traces that a decided vote does not need, with the tokens they have",
    ),
    CouplingPoint(
        "EngineCoreOutput.kv_transfer_params and stop_reason",
        has_fields("vllm.v1.engine", "EngineCoreOutput", "kv_transfer_params", "stop_reason"),
        "brings scores and the pruned mark back to the client",
    ),
    CouplingPoint(
        "SchedulerOutput, to carry our mark",
        _all(
            has_fields(
                "vllm.v1.core.sched.output",
                "SchedulerOutput",
                *("total_num_scheduled_tokens", "scheduled_spec_decode_tokens"),
            ),
            takes_attributes("vllm.v1.core.sched.output", "SchedulerOutput"),
        ),
        "tells the worker of steps in which nobody asks for scores, and of drafts",
    ),
    CouplingPoint(
        "ModelRunnerOutput, to carry our rows, AsyncModelRunnerOutput.get_output",
        _all(
            has_fields(
                "vllm.v1.outputs",
                "ModelRunnerOutput",
                *("req_ids", "req_id_to_index", "sampled_token_ids"),
            ),
            takes_attributes("vllm.v1.outputs", "ModelRunnerOutput"),
            has("vllm.v1.outputs", "AsyncModelRunnerOutput.get_output"),
        ),
        "carries scores from the worker to the scheduler",
    ),
    CouplingPoint(
        "SchedulerStats.cudagraph_stats, AggregateStatLoggerBase, plug-ins for it",
        _all(
            has_fields("vllm.v1.metrics.stats", "SchedulerStats", "cudagraph_stats"),
            has("vllm.v1.metrics.loggers", "AggregateStatLoggerBase"),
            mentions("vllm.v1.metrics.loggers", "load_stat_logger_plugin_factories", "GROUP"),
        ),
        "brings counters to the server's metrics",
    ),
    CouplingPoint(
        "Worker.load_model, execute_model, sample_tokens, compile_or_warm_up_model",
        has(
            "vllm.v1.worker.gpu_worker",
            *("Worker.load_model", "Worker.execute_model", "Worker.sample_tokens"),
            "Worker.compile_or_warm_up_model",
        ),
        "the worker is a subclass that scores between them",
    ),
    CouplingPoint(
        "--middleware of the server, vllm_xargs of its requests",
        _all(
            _takes_middleware,
            *(
                mentions(f"vllm.entrypoints.openai.{kind}.protocol", name, "vllm_xargs")
                for kind, name in (
                    ("chat_completion", "ChatCompletionRequest"),
                    ("completion", "CompletionRequest"),
                    ("responses", "ResponsesRequest"),
                )
            ),
        ),
        "groups belong to their callers behind step-serve; with plain vllm serve they do with "
        "--middleware step_infer.server.callers.CallerMiddleware, else to all who know their names",
    ),
    CouplingPoint(
        "Endpoint plug-ins, the server's handlers and their engine_client and models",
        _all(
            has("vllm.plugins", "load_endpoint_plugins"),
            *(
                _all(
                    has(f"{_OPENAI}.{kind}.serving", f"{handler}.{method}"),
                    mentions(f"{_OPENAI}.{kind}.serving", handler, *_HANDLER_USES),
                )
                for kind, handler, method in (
                    ("chat_completion", "OpenAIServingChat", "create_chat_completion"),
                    ("completion", "OpenAIServingCompletion", "create_completion"),
                )
            ),
            has(f"{_OPENAI}.models.serving", "OpenAIServingModels.is_base_model"),
            has_fields(f"{_OPENAI}.models.protocol", "BaseModelPath", "name", "model_path"),
        ),
        "a voted model stands beside the served one",
    ),
    CouplingPoint(
        "AsyncLLM.generate, abort and get_tokenizer, abort_requests_async of its client",
        _all(
            has(
                "vllm.v1.engine.async_llm",
                *("AsyncLLM.generate", "AsyncLLM.abort", "AsyncLLM.get_tokenizer"),
            ),
            mentions("vllm.v1.engine.async_llm", "AsyncLLM", "self.output_processor"),
            has("vllm.v1.engine.core_client", "AsyncMPClient.abort_requests_async"),
            has("vllm.v1.engine.core_client", "DPLBAsyncMPClient._abort_requests"),
            mentions("vllm.v1.engine.core_client", "DPLBAsyncMPClient", "self.reqs_in_flight"),
        ),
        "samples the traces of a voted call, and ends them",
    ),
    CouplingPoint(
        "V1 runner: compute_logits of one row a request",
        mentions(
            "vllm.v1.worker.gpu_model_runner",
            "GPUModelRunner.execute_model",
            "compute_logits(sample_hidden_states)",
        ),
        "the rows that are scored",
    ),
    CouplingPoint(
        "V1 runner: one row more for each draft",
        mentions(
            "vllm.v1.worker.gpu_model_runner",
            "GPUModelRunner._calc_spec_decode_metadata",
            "num_sampled_tokens = num_draft_tokens + 1",
            "logits_indices = np.repeat(",
        ),
        "which rows belong to accepted drafts",
    ),
    CouplingPoint(
        "V2 runner: one row more for each draft",
        mentions(
            "vllm.v1.worker.gpu.model_runner",
            "GPUModelRunner.prepare_inputs",
            "num_logits = num_draft_tokens_per_req + num_bonus_tokens",
            "np.cumsum(num_logits, out=cu_num_logits_np[1:])",
        ),
        "which rows belong to accepted drafts",
    ),
    CouplingPoint(
        "Fields of SpeculativeConfig",
        has_fields(
            "vllm.config.speculative", "SpeculativeConfig", "method", "num_speculative_tokens"
        ),
        "refuses drafters whose rows are not known",
    ),
    CouplingPoint(
        "V2 runner: compute_logits of one row a request",
        mentions(
            "vllm.v1.worker.gpu.model_runner",
            "GPUModelRunner.sample",
            "compute_logits(sample_hidden_states)",
        ),
        "the rows that are scored",
    ),
)


def missing_points() -> Iterator[tuple[CouplingPoint, str]]:
    """Yield every coupling point that the installed vLLM lacks, with what is missing."""
    for point in COUPLING_POINTS:
        try:
            point.check()
        except (ImportError, AttributeError, OSError, TypeError) as error:
            yield point, " ".join(str(error).split())
