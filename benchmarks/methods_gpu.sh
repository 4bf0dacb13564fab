#!/usr/bin/env bash
# Every method of step-eval on the demo world, on the GPUs of one machine: 200 test questions, 64 traces,
# 4 repeats, KV caches for 1.0, 0.25 and 0.5 of what all traces need. Makes OUT/kvBUDGET.json (results),
# .html and .txt; what they are made from lies in OUT/work. Started again, it goes on where it stopped.
#
#   OUT=runs/methods GPUS=2 SHARDS=2 SECONDS_TOTAL=1500 benchmarks/methods_gpu.sh
#
# GPUs FIRST_GPU (0) to FIRST_GPU + GPUS - 1 are used. Start NVIDIA's MPS before (nvidia-cuda-mps-control -d,
# with the same CUDA_MPS_PIPE_DIRECTORY as this script), so that engines on one GPU run at the same time. Without
# it they take turns on the GPU, and the seconds of different methods cannot be compared: of ten engines on one
# H200, those that score took 1.7 times as long a step as those that do not (1.2 times with MPS on an H100).
# TURNS=1 lets one engine of a GPU work at a time: fewer questions, honest seconds.
#
# One budget after the other. In each, every shard (a part of the questions) has an engine for each method; the
# engines of a shard share a GPU and go through the same questions at the same time, so that a run that is
# cut has all methods on about the same questions, and all methods have the same load beside them. When
# a budget's part of SECONDS_TOTAL is over, the questions and repeats that every method has answered are
# joined, and the next budget begins. A DeepConf method answers a question in two rounds, in twice the time: it
# has two engines a shard, each for half of its questions. Engines: 12 x SHARDS; at most PARALLEL at once (all).
#
# Budget 1.0 comes first: its SC gives the mean length for the other budgets (kept in OUT/work/lengths.json)
# and tells the oracle which traces come out right. There nothing is ever pruned for want of memory: the
# victims would all be STEP, and are left out. `single` does not depend on the budget and is run there only.
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/ledger_common.sh
OUT=${OUT:-runs/methods} GPUS=${GPUS:-1} FIRST_GPU=${FIRST_GPU:-0} REPEATS=${REPEATS:-4} SECONDS_TOTAL=${SECONDS_TOTAL:-3000}
SHARDS=${SHARDS:-$GPUS} BUDGETS=${BUDGETS-1.0 0.25 0.5} # BUDGETS= compiles the model and ends
VICTIMS=${VICTIMS-random youngest longest least-confident oracle}
OTHERS=${OTHERS-deepconf-low deepconf-high slim-sc}
PARALLEL=${PARALLEL:-1000} TURNS=${TURNS:-0} # engines at once
JOIN=${JOIN:-1} # 0: leave the results to a later start, with SECONDS_TOTAL=0
WARMUP=${WARMUP:-$((N / 4))} WINDOW=${WINDOW:-128}
# An engine's memory, the same however many there are: a run may go on with more or fewer GPUs.
KV_BYTES=${KV_BYTES:-1073741824} MEMORY_SHARE=${MEMORY_SHARE:-0.03}
work="$OUT/work" end=$((SECONDS + SECONDS_TOTAL))
read -ra budgets <<<"$BUDGETS"
mkdir -p "$work"
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

write_questions "$work/test.jsonl"

engines_of() { # method: its engines in a shard
    if [[ $1 == deepconf-* ]]; then echo 2; else echo 1; fi
}

ask() { # budget method part seconds [options]: one method on one part of the questions, on its shard's GPU
    local gpu=$((FIRST_GPU + $3 % SHARDS % GPUS))
    local options=(--methods "$2" --kv-budget "$1" --out "$work/kv$1/$2-$3")
    options+=(--shard "$3/$((SHARDS * $(engines_of "$2")))")
    if [[ $1 != 1.0 ]]; then options+=(--lengths-from "$work/lengths.json"); fi
    if [[ $2 == oracle ]]; then options+=(--oracle-from "$work/kv1.0/sc-$3"); fi
    if ((TURNS)); then options+=(--device-lock "$work/gpu$gpu.lock"); fi
    options+=("${@:5}")
    exec env CUDA_VISIBLE_DEVICES=$gpu timeout -k 10 "$4" "$PYTHON" -m step_eval.command \
        --model "$model" --scorer "$SCORER" --questions "$work/test.jsonl" --num-traces "$N" \
        --repeats "$REPEATS" --warmup "$WARMUP" --window "$WINDOW" --kv-series-questions 0 \
        "${options[@]}" "${sampling[@]}" "${engine[@]}" --engine.max_num_seqs "$N" \
        --engine.kv_cache_memory_bytes "$KV_BYTES" --engine.gpu_memory_utilization "$MEMORY_SHARE" \
        >>"$work/kv$1/$2-$3.log" 2>&1
}

if [[ ! -d $work/warm-up ]]; then
    # One engine compiles the model, and all others find that done.
    stage "warm-up"
    mkdir -p "$work/kv1.0"
    (REPEATS=1 ask 1.0 single 0 "$SECONDS_TOTAL" --limit 1 --out "$work/warm-up") || {
        echo "The warm-up failed; see $work/kv1.0/single-0.log" >&2
        exit 1
    }
fi

for ((number = 0; number < ${#budgets[@]}; number++)); do
    budget=${budgets[number]}
    methods="sc step $OTHERS"
    if [[ $budget == 1.0 ]]; then methods+=" single"; else methods+=" $VICTIMS"; fi
    read -ra methods <<<"$methods"
    deadline=$((SECONDS + (end - SECONDS) / (${#budgets[@]} - number)))
    stage "KV budget $budget: ${#methods[@]} methods in $SHARDS shards, $((deadline - SECONDS)) s"
    mkdir -p "$work/kv$budget"
    for ((shard = 0; shard < SHARDS; shard++)); do
        for method in "${methods[@]}"; do
            for ((part = shard; part < SHARDS * $(engines_of "$method"); part += SHARDS)); do
                while (($(jobs -rp | wc -l) >= PARALLEL)); do wait -n || true; done
                ((deadline > SECONDS)) || break 3
                ask "$budget" "$method" "$part" $((deadline - SECONDS)) &
            done
        done
        sleep 2 # the engines look at the free memory when they start
    done
    wait || true
    done=()
    for directory in "$work/kv$budget"/*-*/; do
        [[ -d $directory/records ]] && done+=("${directory%/}")
    done
    if [[ $JOIN == 0 && -f $work/lengths.json ]]; then continue; fi
    if ((${#done[@]} == 0)); then
        echo "No method has answered a question; see $work/kv$budget/*.log" >&2
        exit 1
    fi
    stage "KV budget $budget: results"
    joined="$work/joined-$budget"
    COLUMNS=130 "$PYTHON" -m step_eval.command merge "${done[@]}" --paired true --out "$joined" |
        tee "$OUT/kv$budget.txt"
    cp "$joined/results.json" "$OUT/kv$budget.json"
    cp "$joined/report.html" "$OUT/kv$budget.html"
    if [[ $budget == 1.0 && ! -f $work/lengths.json ]]; then
        cp "$joined/results.json" "$work/lengths.json"
    fi
done
