#!/usr/bin/env bash
# Training on one GPU and on two: the demo model, and a scorer. Makes OUT/multi_gpu.json.
#
#   OUT=runs/multi benchmarks/multi_gpu.sh
#
# Each stage has its own time limit in seconds and fails alone; started again, what is done is not done
# again. FIT="--accelerator cpu" and small sizes prove it on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/multi} PYTHON=${PYTHON:-python3} TRAIN_SECONDS=${TRAIN_SECONDS:-120}
LM_STEPS=${LM_STEPS:-400} LM_TOKENS=${LM_TOKENS:-131072} LM=${LM:-} COLLECT=${COLLECT:-}
QUESTIONS=${QUESTIONS:-60} N=${N:-32} TRACES=${TRACES:-} FIT=${FIT:---accelerator cuda}
read -ra lm <<<"$LM" && read -ra collect <<<"$COLLECT" && read -ra fit <<<"$FIT"
mkdir -p "$OUT"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # engines and servers are other processes
export VLLM_USE_FLASHINFER_SAMPLER=${VLLM_USE_FLASHINFER_SAMPLER:-0} # it would be compiled, for minutes

# stage NAME LIMIT COMMAND...: its output is in OUT/NAME.txt, its seconds in OUT/NAME.seconds once it is done.
stage() {
    local name=$1 limit=$2 start=$EPOCHREALTIME
    shift 2
    [[ -s $OUT/$name.seconds ]] && return
    echo "== $(date +%T) $name"
    if timeout -k 10 "$limit" "$@" >"$OUT/$name.txt" 2>&1; then
        awk "BEGIN { print $EPOCHREALTIME - $start }" >"$OUT/$name.seconds"
    else
        echo "$name ended with $?; see $OUT/$name.txt"
    fi
}

if [[ -z $TRACES ]]; then
    TRACES=$OUT/traces
    stage questions 60 "$PYTHON" -m data_gen.ledger --split scorer-train --count "$QUESTIONS" \
        --out "$OUT/questions.jsonl"
    stage collect "$TRAIN_SECONDS" "$PYTHON" -m data_gen.commands \
        --model checkpoints/ledger-5m --questions "$OUT/questions.jsonl" --num-traces "$N" \
        --out "$TRACES" --system= --sampling.temperature 1 --sampling.top-p 1 --sampling.top-k 0 \
        --engine.max_model_len 2400 "${collect[@]}"
fi
for devices in 1 2; do
    # The batch of all devices together is the same.
    stage "demo-model-$devices" "$TRAIN_SECONDS" "$PYTHON" -m step_train.commands demo-model \
        --out "$OUT/lm-$devices" --devices "$devices" --steps "$LM_STEPS" \
        --tokens-per-batch $((LM_TOKENS / devices)) --checkpoint-steps "$LM_STEPS" "${lm[@]}"
    stage "fit-$devices" "$TRAIN_SECONDS" "$PYTHON" -m step_train.commands fit \
        --traces "$TRACES" --out "$OUT/fit-$devices" --devices "$devices" --baselines none "${fit[@]}"
done

"$PYTHON" - "$OUT" <<'PYTHON'
"""Write OUT/multi_gpu.json: what was measured on one device and on two."""
import json
import sys
from pathlib import Path

out = Path(sys.argv[1])


def seconds(name):
    file = out / f"{name}.seconds"
    return float(file.read_text()) if file.exists() else None


def value(path, *keys):
    file = out / path
    found = json.loads(file.read_text()) if file.exists() else None
    for key in keys:
        found = None if found is None else found.get(key)
    return found


result = {"seconds": {file.stem: seconds(file.stem) for file in sorted(out.glob("*.seconds"))}}
for name, path, keys in (
    ("demo-model", "lm-{}/manifest.json", ["held_out_loss"]),
    ("fit", "fit-{}/metrics.json", ["metrics", "steps"]),
):
    one, two = seconds(f"{name}-1"), seconds(f"{name}-2")
    result[name] = {
        "one": value(path.format(1), *keys),
        "two": value(path.format(2), *keys),
        "seconds_of_two_over_one": two / one if one and two else None,
    }
(out / "multi_gpu.json").write_text(json.dumps(result, indent=1))
print(json.dumps(result["seconds"]), f"written: {out}/multi_gpu.json")
PYTHON
