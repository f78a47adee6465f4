# lrsweep: `make` alone prints help.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A shared machine's pip settings may ask for --user, which a virtual environment refuses.
PIP    := PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip --quiet

# Set on the command line only: an OUT or DATA that happens to be in the environment is somebody else's.
ARCH  :=
SIZE  :=
BODY  :=
LRS   :=
SEEDS :=
SEARCH :=
STEPS :=
DATA  :=
OUT   :=
CURVES :=
ARGS  :=

FLAGS = $(if $(ARCH),--arch $(ARCH)) $(if $(SIZE),--size $(SIZE)) $(if $(BODY),--body $(BODY)) \
        $(if $(LRS),--lrs $(LRS)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(STEPS),--steps $(STEPS)) \
        $(if $(SEARCH),--search $(SEARCH)) $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)") $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup sweep report test check format bench bench-probe bench-detector clean

help:  ## this text
	@echo 'lrsweep: how high can the learning rate go before a GPT diverges?'
	@echo
	@echo '  make sweep ARCH=qknorm_cap                     find the largest stable LR of one scheme'
	@echo '  make sweep ARCH="preln qknorm qknorm_cap"      compare several; ARCH=all for every scheme'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables of sweep: ARCH SIZE BODY LRS SEEDS SEARCH STEPS DATA OUT ARGS (further flags of `lrsweep sweep`).'

# The stamp is newer than what it was made from, so a pull that changes a dependency installs it.
$(VENV)/.run: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo 'error: $(PYTHON) not found; name one with make PYTHON=…'; exit 2; }
	@echo 'installing into $(VENV) (once, takes a minute or more)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1' -c constraints.txt
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@$(PIP) install -c constraints.txt --group dev
	@touch $@

$(VENV)/.bench: $(VENV)/.run
	@$(PIP) install -c constraints.txt --group bench
	@touch $@

setup: $(VENV)/.run  ## make .venv and install (other targets do it by themselves)

sweep: $(VENV)/.run  ## run a learning-rate sweep, or go on with one
	@$(BIN)/lrsweep sweep $(FLAGS)

report: $(VENV)/.run  ## tables and plots anew: make report OUT=results/…
	@$(BIN)/lrsweep report "$(OUT)" $(ARGS)

test: $(VENV)/.test  ## run the tests
	@$(BIN)/python -m pytest --numprocesses auto --dist loadgroup $(ARGS)

check: $(VENV)/.test  ## format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(VENV)/.test  ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.run  ## step, MFU, start-up, memory and the probes' cost here; ARGS="--help"
	@$(BIN)/lrsweep bench $(ARGS)

bench-probe: $(VENV)/.test  ## cost of a Probe in transformers' Llama
	@$(BIN)/python -m lrsweep.probe_bench $(ARGS)

bench-detector: $(VENV)/.bench  ## the detector beside other tools' rules: make bench-detector CURVES=…
	@$(BIN)/python -m lrsweep.detector_bench "$(CURVES)" $(ARGS)

clean:  ## remove .venv and caches; results stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
