# make demo    everything from a fresh machine to text at budget 0.4
# make test      environment, linters, type checker, the tests that are quick: minutes on two cores
# make test-all  the same with all tests: what CI runs
# make export MODEL=phi-2
# make train DATA="folder file.txt"   a policy for MODEL's bundle, which is exported where it is missing; CONFIG=, TRAIN_ARGS='--minutes 60';
#              writes TRAIN_OUT/policy.safetensors and gives it to the bundle
# make peers   speed beside llama.cpp, onnxruntime-genai and optimum on the same weights; writes docs/results/peers-MODEL.md
#              (MODEL=alias or .gguf, PEERS=llama.cpp,genai,optimum, DEPTHS=64,512,2048,8000; TEXT=file: perplexity too)
# make ladder TEXT=file   perplexity and speed of our fixed actions beside llama.cpp's quantization ladder, made of the same weights;
#              writes docs/results/ladder-MODEL.md (MODEL=alias or .gguf, LADDER_ARGS=options of benchmarks/ladder.py)
# make figure  the README's picture, loss against time, from docs/results/ladder-MODEL.json, which make ladder writes; needs Python alone
#
# make bench-gpu BUNDLES="folder folder" PROVIDER=cuda   decode and prefill on this machine's GPU; writes docs/results/gpu.md. Needs no network
#              once the package is there: python benchmarks/gpu.py does it without make (GPU_ARGS=its options)
#
# All of it happens in $(VENV), peers in $(PEER); nothing but the two header packages is installed outside this folder and $SOL_RT_HOME.

PYTHON ?= python3
VENV ?= .venv
MODEL ?= smollm2-135m
BUDGET ?= 0.4
BIN := $(VENV)/bin

SOURCES := pyproject.toml CMakeLists.txt $(shell find sol_rt/ops -name CMakeLists.txt -o -name '*.h' -o -name '*.cc' -o -name '*.cu')

PEER ?= .venv-peers
PEERS ?= llama.cpp,genai,optimum
DEPTHS ?= 64,512,2048,8000
PEERS_ARGS ?=
MODEL_NAME := $(shell echo '$(patsubst %.gguf,%,$(notdir $(MODEL)))' | tr A-Z a-z)
PEERS_OUT ?= docs/results/peers-$(MODEL_NAME).md
TEXT ?=
DATA ?=
CONFIG ?= default
TRAIN_OUT ?= build/policies/$(MODEL_NAME)
TRAIN_ARGS ?=
LADDER_ARGS ?=
BUNDLES ?= $(MODEL)
PROVIDER ?= cuda
GPU_ARGS ?=

.PHONY: demo export train peers ladder figure bench-gpu test test-all lint typecheck wheel headers clean distclean help

help:
	@sed -n 's/^# //p' Makefile

demo: $(VENV)/.export
	$(BIN)/sol-rt pull $(MODEL)
	$(BIN)/sol-rt export -m $(MODEL) --force
	$(BIN)/sol-rt generate --budget $(BUDGET) --repetition-penalty 1.2 -n 128
	@echo "Next: source $(BIN)/activate; sol-rt chat; sol-rt generate --budget 0.6 -p 'Once upon a time'" >&2

export: $(VENV)/.export
	$(BIN)/sol-rt export -m $(MODEL)

train: $(VENV)/.train
	@test -n "$(DATA)" || { echo "error: make train needs text to train on: DATA=folder" >&2; exit 2; }
	$(BIN)/sol-rt train -m $(MODEL) $(DATA:%=--data %) --config $(CONFIG) -o $(TRAIN_OUT) $(TRAIN_ARGS)
	$(BIN)/sol-rt export -m $(MODEL) --policy $(TRAIN_OUT)/policy.safetensors

# Each peer lives in an environment of its own: their requirements exclude each other.
comma := ,
PEER_LIST := $(subst $(comma), ,$(PEERS))
PACKAGES_llama.cpp := --no-binary=llama-cpp-python llama-cpp-python
PACKAGES_genai := onnxruntime-genai onnx onnx-ir torch transformers
PACKAGES_optimum := optimum-onnx[onnxruntime] accelerate

peers: $(VENV)/.export $(PEER_LIST:%=$(PEER)/%/.installed)
	$(BIN)/python benchmarks/peers.py $(MODEL) --environments $(PEER) --peers $(PEERS) --depths $(DEPTHS) -o $(PEERS_OUT) $(PEERS_ARGS)
	@test -z "$(TEXT)" || $(BIN)/python benchmarks/reference_perplexity.py $(MODEL_NAME) $(MODEL) -f "$(TEXT)" --environments $(PEER) --peers $(PEERS)

ladder: $(VENV)/.export $(PEER)/llama.cpp/.installed
	@test -n "$(TEXT)" || { echo "error: make ladder needs a text to score: TEXT=valid.tokens.txt" >&2; exit 2; }
	$(BIN)/python benchmarks/ladder.py $(MODEL) -f "$(TEXT)" --environments $(PEER) --cache $(PEER)/ladder -o docs/results/ladder-$(MODEL_NAME).md $(LADDER_ARGS)

figure:
	$(PYTHON) benchmarks/ladder_figure.py docs/results/ladder-$(MODEL_NAME).json -o docs/images/loss-against-time.svg

bench-gpu:
	@test -x $(BIN)/python || { echo "error: no environment; make $(VENV)/.export, or python benchmarks/gpu.py with your own" >&2; exit 2; }
	$(BIN)/python benchmarks/gpu.py $(BUNDLES) --provider $(PROVIDER) -o docs/results/gpu.md $(GPU_ARGS)

$(PEER)/%/.installed: | $(VENV)/.export
	$(PYTHON) -m venv $(PEER)/$*
	CMAKE_ARGS=-DGGML_NATIVE=ON $(PEER)/$*/bin/python -m pip install $(PACKAGES_$*)
	@touch $@

test: $(VENV)/.dev lint
	-$(BIN)/sol-rt pull smollm2-135m
	$(BIN)/python -m pytest -m 'not slow' $(PYTEST_ARGS)

test-all: $(VENV)/.dev lint
	-$(BIN)/sol-rt pull smollm2-135m
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.dev typecheck
	$(BIN)/ruff check .
	$(BIN)/python scripts/lint_imports.py build/typing

# The type checker sees the package as it is installed: sol_rt with export, train and models inside.
typecheck: $(VENV)/.dev
	@rm -rf build/typing && mkdir -p build/typing/sol_rt
	@ln -s $(CURDIR)/sol_rt/* build/typing/sol_rt/
	@for part in export train models; do ln -s $(CURDIR)/$$part build/typing/sol_rt/; done
	cd build/typing && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p sol_rt

wheel: headers $(VENV)/.export
	SOL_CUDA_ARCHITECTURES=$${SOL_CUDA_ARCHITECTURES:-all} $(BIN)/python -m pip wheel --no-deps -w dist .

headers:
	@scripts/install-headers.sh

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed, $(PYTHON) is older; run make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: no virtual environment; on Debian: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(VENV)/.export: $(BIN)/python $(SOURCES)
	@scripts/install-headers.sh
	$(BIN)/python -m pip install -e '.[export]'
	@touch $@

$(VENV)/.train: $(BIN)/python $(SOURCES)
	@scripts/install-headers.sh
	$(BIN)/python -m pip install -e '.[export,train]'
	@touch $@ $(VENV)/.export

$(VENV)/.dev: $(BIN)/python $(SOURCES)
	@scripts/install-headers.sh
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@ $(VENV)/.export $(VENV)/.train

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(PEER)
