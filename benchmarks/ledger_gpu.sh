#!/usr/bin/env bash
# The demo at full size on one GPU: 200 test questions, 64 traces each, a KV cache for 0.4 of what all
# traces need. Makes OUT/model-statistics (the demo model's figures), OUT/eval/results.json and
# OUT/eval/report.html. Started again, it goes on where it stopped.
#
#   OUT=runs/gpu SHARDS=3 benchmarks/ledger_gpu.sh
#
# LENGTHS names earlier traces (step-collect's directory) for the KV budget; then no statistics are made.
# SHARDS engines run side by side, each with its part of the questions, SC and STEP one after the other:
# seconds a question are then those of a shared GPU, the same for both methods.
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/ledger_common.sh
OUT=${OUT:-runs/gpu} SHARDS=${SHARDS:-3} KV_BUDGET=${KV_BUDGET:-0.4}
mkdir -p "$OUT"

write_questions "$OUT/test.jsonl"

if [[ -z ${LENGTHS:-} ]]; then
    LENGTHS="$OUT/model-statistics"
    stage statistics of the demo model
    "$PYTHON" -m data_gen.commands --model "$model" --questions "$OUT/test.jsonl" --num-traces "$N" \
        --features false --out "$LENGTHS" "${sampling[@]}" "${engine[@]}" \
        --engine.max_num_seqs 1024 --engine.gpu_memory_utilization 0.5 --max-in-flight 2048
fi

stage evaluation in "$SHARDS" parts
share=$(awk "BEGIN { print 0.8 / $SHARDS }")
pids=() parts=()
for ((i = 0; i < SHARDS; i++)); do
    parts+=("$OUT/part$i")
    "$PYTHON" -m step_eval.command --model "$model" --scorer "$SCORER" \
        --questions "$OUT/test.jsonl" --num-traces "$N" --methods sc,step --kv-budget "$KV_BUDGET" \
        --lengths-from "$LENGTHS" --shard "$i/$SHARDS" --out "$OUT/part$i" \
        "${sampling[@]}" "${engine[@]}" --engine.max_num_seqs "$N" \
        --engine.gpu_memory_utilization "$share" >"$OUT/part$i.log" 2>&1 &
    pids+=($!)
    sleep 2 # the engines look at the free memory when they start
done
for pid in "${pids[@]}"; do wait "$pid"; done

stage results
"$PYTHON" -m step_eval.command merge "${parts[@]}" --out "$OUT/eval"
