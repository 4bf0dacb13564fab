# Sourced by the benchmarks on the demo world: its model, how it is sampled, its test questions.
PYTHON=${PYTHON:-python3} QUESTIONS=${QUESTIONS:-200} N=${N:-64}
SCORER=${SCORER:-checkpoints/ledger-5m/scorer/scorer.safetensors}
model=checkpoints/ledger-5m
sampling=(--system= --sampling.temperature 1 --sampling.top-p 1 --sampling.top-k 0)
engine=(--engine.max_model_len 2400)
stage() { echo "== $(date +%T) $*"; }
write_questions() {
    stage questions
    "$PYTHON" -m data_gen.ledger --split test --count "$QUESTIONS" --out "$1"
}
