#!/usr/bin/env bash
# Time at real size without weights, on one GPU (about 100 GiB): recorded traces on engines in the shape
# of an 8B model, N=64, KV cache for a quarter of what all traces need. Two sets:
#   hmmt25  lengths scaled to a mean of 1,870 tokens, 1/16 of the paper's HMMT25 mean at N=64
#   demo    lengths as recorded
# Makes OUT/SET/results.json and OUT/SET/report.html. Started again, it goes on where it stopped; each
# question is on disk as soon as it is answered, so that a run that is cut keeps what was measured.
#
#   OUT=runs/replay SECONDS_EACH=280 benchmarks/replay_gpu.sh
#
# Foreseen by step-eval simulate at 4.5 ms a step: a question of hmmt25 takes 30 s with SC and 14 to 17 s with
# a method that prunes, one of demo 14 s and 7 to 8 s.
#
# The engines of a set, one a method, start side by side and then take turns (--device-lock): while a question
# is measured, the others stand still. Each set has SECONDS_EACH, the start of its engines included.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/replay} PYTHON=${PYTHON:-python3} SETS=${SETS:-hmmt25 demo}
METHODS=${METHODS:-sc step random deepconf-low} QUESTIONS=${QUESTIONS:-8} SECONDS_EACH=${SECONDS_EACH:-280}
SHAPE=${SHAPE:-qwen3-8b} N=${N:-64} KV_BUDGET=${KV_BUDGET:-0.25} ENGINE=${ENGINE:-}
TRACES=${TRACES:-benchmarks/recorded/ledger.parquet}
CONTEXT=${CONTEXT:-4096} # the same in both sets, so that the second finds the model compiled
read -ra methods <<<"$METHODS"
read -ra engine <<<"$ENGINE"
share=$(awk "BEGIN { print 0.9 / ${#methods[@]} }")
stage() { echo "== $(date +%T) $*"; }
mkdir -p "$OUT"

for set in $SETS; do
    stage "$set: ${#methods[@]} engines"
    # DeepConf's window of 2,048 tokens in the proportion of the lengths.
    scale=(--window 64)
    [[ $set == hmmt25 ]] && scale=(--mean-tokens 1870 --window 128)
    pids=() done=()
    for method in "${methods[@]}"; do
        timeout -k 10 "$SECONDS_EACH" "$PYTHON" -m step_eval.command replay --methods "$method" \
            --traces "$TRACES" --shape "$SHAPE" --num-traces "$N" --kv-budget "$KV_BUDGET" \
            --limit "$QUESTIONS" "${scale[@]}" --device-lock "$OUT/device.lock" --out "$OUT/$set-$method" \
            --engine.gpu_memory_utilization "$share" --engine.max_model_len "$CONTEXT" \
            "${engine[@]}" \
            >>"$OUT/$set-$method.log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || true; done
    for method in "${methods[@]}"; do
        if [[ -s $OUT/$set-$method/records/$method-r0.jsonl ]]; then
            done+=("$OUT/$set-$method")
        else
            echo "$method has no result; see $OUT/$set-$method.log"
        fi
    done
    [[ ${#done[@]} -eq 0 ]] && continue
    stage "$set: results"
    "$PYTHON" -m step_eval.command merge "${done[@]}" --out "$OUT/$set"
done
