#!/usr/bin/env bash
# Methods of step-eval on a real model and real questions, on the GPUs of one machine: what OUT/rows.jsonl
# says of each question (benchmarks/question_rows.py). Started again, it goes on where it stopped; runs on
# other questions may share a file of rows.
#
#   OUT=runs/math MODEL=FOLDER SCORER=FILE QUESTIONS=FILE GPUS=4 SECONDS_TOTAL=1200 benchmarks/real_model_gpu.sh
#
# One KV cache (KV_TOKENS, in tokens) after the other, each with its part of SECONDS_TOTAL. Every shard, a
# part of the questions, has an engine for each method, and they take turns: one question of a shard is
# answered at a time. SHARDS is GPUS by default: each question has its GPU to itself. With more, so many
# questions run on a GPU at once: start NVIDIA's MPS before, else the engines take turns on the GPU itself.
#
# METHODS as for step-eval; sc-offload is SC with vLLM's offloading of KV blocks to OFFLOAD_BYTES of the
# host's memory.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} OUT=${OUT:-runs/real-model} RECIPE=${RECIPE:-recipes/qwen2.5-coder-1.5b-instruct.yaml}
SCORER=${SCORER:-checkpoints/qwen2.5-coder-1.5b-instruct/scorer/scorer.safetensors} N=${N:-64}
GPUS=${GPUS:-1} SHARDS=${SHARDS:-$GPUS} SECONDS_TOTAL=${SECONDS_TOTAL:-3000} KV_TOKENS=${KV_TOKENS:-16217 10136}
METHODS=${METHODS-sc step step+decided random least-confident branch branch-random deepconf-low sc-offload}
BRANCH_MIN_TOKENS=${BRANCH_MIN_TOKENS:-256} OFFLOAD_BYTES=${OFFLOAD_BYTES:-4294967296} KIND=${KIND:-math}
# An engine's memory beside its weights: the largest KV cache, and a part of the GPU that is never reached.
KV_BYTES=${KV_BYTES:-1073741824} MEMORY_SHARE=${MEMORY_SHARE:-0.06}
read -ra options <<<"${OPTIONS:-}" # more options of step-eval
: "${MODEL:?expected MODEL=FOLDER}" "${QUESTIONS:?expected QUESTIONS=FILE}"
work="$OUT/work" end=$((SECONDS + SECONDS_TOTAL))
read -ra budgets <<<"$KV_TOKENS"
mkdir -p "$work"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

ask() { # KV-tokens method shard seconds [options]: one method on a part of the questions
    local method=$2 more=(--kv-budget-tokens "$1")
    if [[ $method == sc-offload ]]; then
        method=sc
        more+=(--engine.kv_transfer_config "{\"kv_connector\": \"OffloadingConnector\", \"kv_role\": \"kv_both\",
            \"kv_connector_extra_config\": {\"cpu_bytes_to_use\": $OFFLOAD_BYTES, \"offload_prompt_only\": false}}")
    fi
    exec env CUDA_VISIBLE_DEVICES=$(($3 % GPUS)) timeout -k 15 "$4" "$PYTHON" -m step_eval.command \
        --config "$RECIPE" --model "$MODEL" --scorer "$SCORER" --questions "$QUESTIONS" --num-traces "$N" \
        --answers.kind "$KIND" --methods "$method" --branch.min-tokens "$BRANCH_MIN_TOKENS" --warmup $((N / 4)) \
        --window 128 --kv-series-questions 0 --engine.max_num_seqs "$N" \
        --engine.kv_cache_memory_bytes "$KV_BYTES" --engine.gpu_memory_utilization "$MEMORY_SHARE" \
        --shard "$3/$SHARDS" --device-lock "$work/shard$3.lock" --out "$work/$1/$2-$3" "${more[@]}" \
        "${options[@]}" "${@:5}" >>"$work/$1/$2-$3.log" 2>&1
}

if [[ ! -d $work/warm-up ]]; then
    echo "== $(date +%T) warm-up: one engine compiles the model, and all others find that done"
    mkdir -p "$work/${budgets[0]}"
    (ask "${budgets[0]}" step 0 "$SECONDS_TOTAL" --limit 1 --shard 0/1 --out "$work/warm-up") || {
        echo "The warm-up failed; see $work/${budgets[0]}/step-0.log" >&2
        exit 1
    }
fi

for ((number = 0; number < ${#budgets[@]}; number++)); do
    budget=${budgets[number]}
    deadline=$((SECONDS + (end - SECONDS) / (${#budgets[@]} - number)))
    echo "== $(date +%T) KV cache of $budget tokens: $SHARDS shards, $((deadline - SECONDS)) s"
    mkdir -p "$work/$budget"
    for ((shard = 0; shard < SHARDS; shard++)); do
        for method in $METHODS; do
            ((deadline > SECONDS)) || break 2
            ask "$budget" "$method" "$shard" $((deadline - SECONDS)) &
        done
    done
    wait || true
done

echo "== $(date +%T) rows"
for budget in "${budgets[@]}"; do
    for method in $METHODS; do
        for directory in "$work/$budget/$method"-[0-9]*/; do
            [[ -d $directory/records ]] || continue
            "$PYTHON" benchmarks/question_rows.py add "$OUT/rows.jsonl" --setting "KV $budget" \
                --as "$method" "$directory"
        done
    done
done
"$PYTHON" benchmarks/question_rows.py show "$OUT/rows.jsonl" --json "$OUT/rows.json"
