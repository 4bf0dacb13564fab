#!/usr/bin/env bash
# From questions to a scorer for a model, and what it is worth: the five stages, one after the other.
#
# usage: examples/train_own_scorer.sh MODEL TRAIN.jsonl TEST.jsonl OUT [TRACES]
#
# TRAIN.jsonl and TEST.jsonl have an object with "question" and "answer" on each line. Options that
# all sampling needs stand in SAMPLING, those of the scorer's training in FIT. Each stage that was
# stopped goes on where it was, when this is started again.
set -euo pipefail
model=$1 train=$2 test=$3 out=$4 traces=${5:-64}

# shellcheck disable=SC2086  # SAMPLING and FIT are several words
step-collect --model "$model" --questions "$train" --num-traces "$traces" --out "$out/traces" ${SAMPLING:-}
step-train fit --traces "$out/traces" --out "$out/train" ${FIT:-}
scorer-export "$out/train" --out "$out/scorer.safetensors" ${EXPORT:-}
step-eval --model "$model" --scorer "$out/scorer.safetensors" --questions "$test" \
    --num-traces "$traces" --kv-budget 0.4 --lengths-from "$out/traces" --out "$out/eval" ${SAMPLING:-}
echo "Serve it: step-serve $model --scorer $out/scorer.safetensors"
