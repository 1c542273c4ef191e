# Two commands for a newcomer: `make demo` paints, `make test` proves. Each makes its own environment first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := $(BIN)/python -m
# k-diffusion's file of samplers and what it imports, and the list of CLIP's words that open_clip carries: the packages
# themselves would bring a great deal more.
ORACLE := k-diffusion torchsde torchdiffeq trampoline open_clip_torch

.PHONY: demo test test-slow check shelf bench clean help

help:            ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

# The stamps depend on the project's own files: a second call installs nothing.
$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade pip
	$(RUN) pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(RUN) pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(RUN) pip install --quiet --constraint constraints.txt --no-deps $(ORACLE)
	@touch $@

demo: $(VENV)/.base   ## paint with the shipped model: a contact sheet and the way from noise to picture
	$(RUN) giverny demo

test: $(VENV)/.dev    ## the whole suite, under ten minutes on two cores
	$(RUN) pytest -m "not slow" -n 2 --dist loadgroup

test-slow: $(VENV)/.dev   ## the longer proofs
	$(RUN) pytest -m slow

check: $(VENV)/.dev   ## style and types
	$(RUN) ruff check src tests benchmarks
	$(RUN) ruff format --check src tests benchmarks
	$(RUN) mypy

# Every model that ships, from its raw data on. PRESET=gpu: on a GPU, in calls of under ten minutes until all is done.
# One alone: make shelf-wardrobe.
SHELF  := fashion-mnist wardrobe wardrobe-cc0 monet
PRESET :=
ARGS    = $(if $(PRESET),--preset $(PRESET) --pause-after 9m)

shelf: $(SHELF:%=shelf-%)   ## retrain every model that ships with the package

shelf-wardrobe shelf-wardrobe-cc0: shelf-%: data-%

data-%: $(VENV)/.base
	$(RUN) giverny data prepare $*

# A GAN's last step is not its best: checkpoints are chosen from, by judges that are trained first.
shelf-monet: $(VENV)/.base
	$(RUN) giverny train monet-a --out runs/judges/monet-a --resume
	$(RUN) giverny train monet-b --out runs/judges/monet-b --resume
	$(RUN) giverny train recipes/monet-cyclegan.toml $(or $(ARGS),--preset cpu) --out runs/monet --resume
	$(RUN) giverny choose runs/monet --features runs/judges/monet-a --judge runs/judges/monet-b --prompt "a painting"
	$(RUN) giverny models add runs/monet --name monet --to src/giverny/shelf --replace

shelf-%: $(VENV)/.base
	$(RUN) giverny train recipes/$*.toml $(ARGS) --out runs/$* --resume
	$(RUN) giverny models add runs/$* --name $* --to src/giverny/shelf --replace

bench: $(VENV)/.dev   ## the README's claims about speed, measured side by side
	$(BIN)/python benchmarks/paint.py

clean:           ## remove the environment and everything painted or trained here
	rm -rf $(VENV) runs outputs
