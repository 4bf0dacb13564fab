"""What scheduler and worker refuse at start-up, because it could score wrong rows."""

from types import SimpleNamespace

import pytest
from places import CHECKPOINT, SCORER
from scheduler_harness import WORD, Engine, Script, check_empty, make_scheduler
from vllm.config import KVTransferConfig
from vllm.lora.request import LoRARequest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from step_infer import compat
from step_infer.client.llm import StepLLM
from step_infer.errors import InputError
from step_infer.scheduler import StepScheduler
from step_infer.worker import StepWorker

pytestmark = pytest.mark.oldest


def changed(path, value):
    """Return a real engine configuration with one field set to another value."""
    config = make_scheduler(AsyncScheduler, 8).vllm_config
    *parents, name = path.split(".")
    kind = config
    for parent in parents:
        kind = getattr(kind, parent)
    copy = SimpleNamespace(**{k: getattr(kind, k, None) for k in dir(kind) if k[:2] != "__"})
    assert hasattr(kind, name) or name in OPTIONAL
    setattr(copy, name, value)
    if not parents:
        return copy
    whole = SimpleNamespace(**{k: getattr(config, k) for k in ALL})
    setattr(whole, parents[0], copy)
    return whole


ALL = ("speculative_config", "model_config", "parallel_config", "kv_transfer_config")
ALL += ("additional_config",)
OPTIONAL = {"enable_batch_sharded_sampling", "is_diffusion"}  # not in every version
REFUSED = [
    ("model_config.runner_type", "pooling", "pooling models"),
    ("model_config.is_diffusion", True, "diffusion language models"),
    ("parallel_config.enable_batch_sharded_sampling", True, "batch-sharded sampling"),
    ("parallel_config.prefill_context_parallel_size", 2, "prefill context parallelism"),
]


def test_a_plain_configuration_is_not_refused():
    assert compat.unsupported_features(make_scheduler(AsyncScheduler, 8).vllm_config) is None


@pytest.mark.parametrize(("path", "value", "reason"), REFUSED)
def test_features_that_change_the_rows_are_named(path, value, reason):
    assert reason in compat.unsupported_features(changed(path, value))


def speculating(**options):
    """Return an engine configuration with speculative decoding."""
    config = changed("model_config.seed", 0)
    config.speculative_config = SimpleNamespace(enable_adaptive_verification=False, **options)
    config.parallel_config = SimpleNamespace(**vars(config.parallel_config))
    return config


@pytest.mark.parametrize("method", compat.DRAFTERS)
def test_drafts_whose_rows_are_known_are_not_refused(method):
    assert compat.unsupported_features(speculating(method=method)) is None


@pytest.mark.parametrize("method", ["ngram_gpu", "suffix", "medusa", "dspark"])
def test_drafters_whose_rows_are_not_known_are_refused(method):
    reason = f"speculative decoding by {method} (known are ngram, draft_model,"
    assert reason in compat.unsupported_features(speculating(method=method))


def test_drafts_that_are_moved_on_the_gpu_or_cross_pipeline_stages_are_refused():
    config = speculating(method="dspark")
    config.speculative_config.enable_adaptive_verification = True
    assert "adaptive verification of drafts" in compat.unsupported_features(config)
    config = speculating(method="ngram")
    config.parallel_config.pipeline_parallel_size = 2
    assert "over pipeline stages" in compat.unsupported_features(config)


def test_rows_of_kv_blocks_that_failed_to_load_are_refused():
    config = make_scheduler(AsyncScheduler, 8).vllm_config
    connector = {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}
    config.kv_transfer_config = KVTransferConfig(**connector, kv_load_failure_policy="fail")
    assert compat.unsupported_features(config) is None
    config.kv_transfer_config = KVTransferConfig(**connector, kv_load_failure_policy="recompute")
    assert "failed to load" in compat.unsupported_features(config)


def test_an_external_launcher_is_refused_only_with_several_ranks():
    config = changed("parallel_config.distributed_executor_backend", "external_launcher")
    config.parallel_config.world_size = 1
    assert compat.unsupported_features(config) is None
    config.parallel_config.world_size = 2
    assert "external launcher" in compat.unsupported_features(config)


def test_the_worker_refuses_before_it_loads_the_model():
    worker = object.__new__(StepWorker)
    worker.rank = 0
    worker.vllm_config = changed("parallel_config.enable_batch_sharded_sampling", True)
    with pytest.raises(InputError, match="without batch-sharded sampling.*, found one with it"):
        worker.load_model()


def test_the_scheduler_refuses_at_start_up(monkeypatch):
    monkeypatch.setattr(compat, "unsupported_features", lambda config: "batch-sharded sampling")
    with pytest.raises(
        InputError, match="an engine without batch-sharded sampling,.* found one with it"
    ):
        make_scheduler(StepScheduler, 8)


@pytest.mark.engine
def test_an_engine_of_a_refused_kind_does_not_start_and_says_why_in_one_sentence(monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the error comes here as it is
    with pytest.raises(InputError, match="Expected an engine without pooling models") as error:
        StepLLM(str(CHECKPOINT), SCORER, max_model_len=512, runner="pooling")
    assert "\n" not in str(error.value)


def test_a_request_with_a_lora_adapter_is_not_scored_and_never_pruned():
    engine = Engine(make_scheduler(StepScheduler, 40))
    script = Script("a", (WORD,) * 3, (WORD, 6, WORD, 6, WORD, 2), options={"group": "g"})
    engine.runner.scripts["a"] = script
    engine.tokens["a"] = []
    request = script.request(1.0)
    request.lora_request = LoRARequest("tiny", 1, "/nowhere")
    engine.scheduler.add_request(request)
    assert not engine.scheduler.live.traces
    engine.run()
    assert engine.report("a") == {
        "error": "Expected a request without a LoRA adapter, found one with it: the scorer belongs "
        "to the model alone. Hint: merge the adapter into the model and train a scorer for that."
    }
    check_empty(engine.scheduler)
