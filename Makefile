# Two commands set everything up: `make demo` and `make test`. Each creates .venv when it is missing.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
# Tested pins; torch 2.13.0 so that a CPU machine can take its CPU build.
# Override with e.g. `make demo CONSTRAINTS=` for whatever pip finds.
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
PIP_CONSTRAINTS := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
TORCH := $(or $(if $(CONSTRAINTS),$(shell grep -s '^torch==' $(CONSTRAINTS))),torch)
SOURCES := sb3_dreamer tests examples benchmarks docs/site setup.py
# Two workers for two cores, one torch thread each: faster than one worker with two threads on tiny models.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# mkdocs-material prints a notice about another project otherwise.
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test test-slow docs format lint type commit-checks clean

$(VENV)/.installed: setup.py $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet $(PIP_CONSTRAINTS) -e ".[zoo,tests]"
	touch $@

demo:
	@start=$$(date +%s); $(MAKE) --no-print-directory $(VENV)/.installed && echo "Installation: $$(( $$(date +%s) - start )) s"
	$(BIN)/rl_zoo3 train --algo dreamerv3 --env CartPole-v1 --conf-file small.yml --seed 0 -n 10000 --eval-freq 500 --eval-episodes 20 --n-eval-envs 10 \
		--num-threads 1 --log-interval 10 --log-folder logs/demo
	$(BIN)/rl_zoo3 enjoy --algo dreamerv3 --env CartPole-v1 --load-best --no-render -n 5000 --num-threads 1 --folder logs/demo
	$(BIN)/python examples/plot_run.py logs/demo --bar 450

test: $(VENV)/.installed
	$(PYTEST)

# With every environment that has a preset; without them, their checks are skipped.
$(VENV)/.installed-envs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet $(PIP_CONSTRAINTS) -e ".[envs]"
	touch $@

test-slow: $(VENV)/.installed-envs
	MUJOCO_GL=egl SDL_VIDEODRIVER=dummy SDL_AUDIODRIVER=dummy $(PYTEST) -m slow

# The manual, in build/docs. Warnings are errors.
docs: $(VENV)/.installed
	$(BIN)/mkdocs build --quiet
	@echo "Open build/docs/index.html"

format: $(VENV)/.installed
	$(BIN)/ruff check --select I --fix $(SOURCES)
	$(BIN)/black --quiet $(SOURCES)

lint: $(VENV)/.installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/black --quiet --check $(SOURCES)

type: $(VENV)/.installed
	$(BIN)/mypy

commit-checks: format type lint

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
