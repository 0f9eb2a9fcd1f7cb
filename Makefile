PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
DEMO = $(VENV)/.demo

LLM ?= SmolLM2-135M-Instruct

.PHONY: demo llm test lint lock audit notebooks docs slides
demo: $(DEMO)  ## the whole method on this machine
	$(BIN)/python train.py

llm: $(DEMO)  ## a real model learns to search on this machine; LLM=FILE.gguf or a folder where there is no hub
	$(BIN)/python train.py --preset laptop-llm --model $(LLM)

test: $(STAMP)  ## on two cores, a file of tests at a time on each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: $(STAMP)  ## executes notebooks/*.py into their .ipynb, outputs kept
	$(BIN)/python notebooks/build.py

docs: $(STAMP)  ## README, docs and notebooks as a site, in site/; a link that leads nowhere is an error
	$(BIN)/pip install -q -e ".[site]" -c constraints.txt
	$(BIN)/python docs/site.py

slides: $(DEMO)  ## the course as slides, one file that needs no network, in slides/
	$(BIN)/python docs/slides.py

lock:  ## every package of the install with the hashes of its files, for every platform; needs uv
	echo "# made by \`make lock\`: what pyproject.toml and constraints.txt ask for, with the hashes of the index's files" > lock.new
	uv pip compile pyproject.toml --extra dev -c constraints.txt --universal --python-version 3.10 \
	  --generate-hashes --no-header --no-annotate --quiet >> lock.new
	mv lock.new requirements.lock

audit: $(STAMP)  ## known vulnerabilities of what requirements.lock pins; warns, and never fails
	@$(BIN)/pip install -q pip-audit 2>/dev/null || true
	@$(BIN)/python checks/audit.py

$(DEMO): pyproject.toml constraints.txt
	@echo "installing into $(VENV): torch, transformers and what training needs, about 1.7 GB on disk with a CPU wheel of torch, more with CUDA"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --no-compile -e ".[gguf]" -c constraints.txt  # Python compiles what it imports, a quarter of it
	touch $@

$(STAMP): $(DEMO)  # tests, notebooks, servers and other search engines
	$(BIN)/pip install --no-compile -e ".[dev]" -c constraints.txt
	touch $@
