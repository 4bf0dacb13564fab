#!/usr/bin/env bash
# Time at real size without weights, on one GPU (about 100 GiB): recorded traces on engines in the shape
# of an 8B model, N=64, KV cache for a quarter of what all traces need. Two sets:
#   hmmt25  lengths scaled to a mean of 1,870 tokens, 1/16 of the paper's HMMT25 mean at N=64
#   demo    lengths as recorded
# Makes OUT/SET/results.json and OUT/SET/report.html. Started again, it goes on where it stopped; each
# question is on disk as soon as it is answered, so that a run that is cut keeps what was measured.
#
#   OUT=runs/replay SECONDS_EACH=150 benchmarks/replay_gpu.sh
#
# The engines of a set, one a method, start side by side and then take turns (--turns): while a question
# is measured, the others stand still. After SECONDS_EACH from the first answer no further question
# begins; what has begun ends.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/replay} PYTHON=${PYTHON:-python3} SETS=${SETS:-hmmt25 demo}
METHODS=${METHODS:-sc step random deepconf-low} QUESTIONS=${QUESTIONS:-8} SECONDS_EACH=${SECONDS_EACH:-150}
SHAPE=${SHAPE:-qwen3-8b} N=${N:-64} KV_BUDGET=${KV_BUDGET:-0.25}
TRACES=${TRACES:-benchmarks/recorded/ledger.parquet} START_SECONDS=${START_SECONDS:-300}
read -ra methods <<<"$METHODS"
share=$(awk "BEGIN { print 0.9 / ${#methods[@]} }")
stage() { echo "== $(date +%T) $*"; }
