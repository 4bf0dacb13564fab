"""Serve a voted model with two engines by Ray Serve LLM; each call is answered by one of them.

usage: python examples/ray_serve_voted.py [MODEL SCORER]

Without arguments it serves the demo model on the CPU, from the root of the repository. It needs
Ray Serve, and no vLLM but the one that is here: pip install 'ray[serve]>=2.60,<3'

Then ask http://localhost:8000 (or the port in PORT) for the model "voted", as in
docs/guides/voted_answers.md. A call is one HTTP request: Ray's proxy hands it to one engine, the
next one in turn, and only there it becomes many traces. So these share the engine's memory, compete
in it and vote. For this the proxy must pass requests on to vLLM's own server in each replica, which
is Ray's "direct streaming"; Ray's other front end does not know vLLM's endpoint plug-ins.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

REPLICAS = 2
DEMO = ("checkpoints/ledger-5m", "checkpoints/ledger-5m/scorer/scorer.safetensors")
# What a CPU engine needs; step-serve and StepLLM fill it in by themselves.
ON_CPU = {"dtype": "float32", "enforce_eager": True, "block_size": 32}
ON_CPU |= {"enable_chunked_prefill": False, "max_num_batched_tokens": 4096}
ON_CPU |= {"max_model_len": 1600, "kv_cache_memory_bytes": 2**28, "max_num_seqs": 32}


def main() -> None:
    """Start the replicas, and serve until interrupted."""
    os.environ |= {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
    # Both are read when Ray is imported.
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    from step_infer.replicas.cluster import connect

    model, scorer = sys.argv[1:] or DEMO
    demo = model == DEMO[0]
    step = {"scorer": os.path.realpath(scorer)}
    if "EVENT_LOG" in os.environ:
        step["event_log"] = os.environ["EVENT_LOG"]
    environment = {"VLLM_PLUGINS": "step"}
    environment["STEP_VOTED"] = json.dumps({"name": "voted", "traces": 8 if demo else 64})
    on_cpu: dict[str, Any] = {}
    if demo:  # the engines share the cores
        environment |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        on_cpu["accelerator_config"] = {"kind": "cpu"}
    config = LLMConfig(
        model_loading_config={
            "model_id": "demo" if demo else Path(model).name,
            "model_source": os.path.realpath(model) if Path(model).is_dir() else model,
        },
        engine_kwargs={
            "scheduler_cls": "step_infer.scheduler.StepScheduler",
            "worker_cls": "step_infer.worker.StepWorker",
            "additional_config": {"step": step},
            **(ON_CPU if demo else {}),
        },
        deployment_config={"num_replicas": REPLICAS, "ray_actor_options": {"num_cpus": 0}},
        runtime_env={"env_vars": environment},
        log_engine_metrics=False,  # or Ray's statistics stand in the place of vLLM's and ours
        **on_cpu,
    )
    connect(os.environ.get("RAY_ADDRESS"))
    serve.start(http_options={"port": int(os.environ.get("PORT", "8000"))})
    with contextlib.suppress(KeyboardInterrupt):
        serve.run(build_openai_app({"llm_configs": [config]}), blocking=True)


if __name__ == "__main__":
    main()
