# Everything a developer or CI runs. A fresh machine needs Python 3.10+ with venv, and make.
PYTHON ?= python3
ARGS ?=
# One more index, for a particular torch build, such as the CPU-only wheels: make env TORCH_INDEX=<url>
TORCH_INDEX ?=

# The torch that `make lock` pins; polyak itself takes any from 2.4 on.
TORCH := 2.13.0

VENV := .venv
BIN := $(VENV)/bin
EXTRAS := demo,remote,plot,lightning,transformers,accelerate,ultralytics,ignite,keras,server
# The environment is named by what it was made from, so a second call does nothing and an edit rebuilds it.
INPUTS := pyproject.toml $(wildcard setup.py native/*)
made_from = made-from-$(shell cat $(INPUTS) $(1) | cksum | tr ' ' '-')
STAMP = $(VENV)/$(call made_from,constraints.txt)
pip = $(1)/bin/python -m pip --disable-pip-version-check
# Large environments are filled by uv, in half a minute instead of three: it links what its cache has, and leaves
# modules to be compiled when they are first imported. It is told to look for wheels where pip looks.
UV := build/uv/bin/uv
fresh = test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
install = UV_FIND_LINKS="$$(echo $$PIP_FIND_LINKS | tr ' ' ',')" $(UV) pip install --quiet --python $(1)/bin/python $(if $(TORCH_INDEX),--index $(TORCH_INDEX) --index-strategy unsafe-best-match)
locked = --constraint $(1) --build-constraint $(1)
# A shell that keeps Python from caching what it compiles would make every process compile everything again.
unexport PYTHONDONTWRITEBYTECODE

# Every core: not nproc, which answers OMP_NUM_THREADS. One file stays in one process, so that what its tests
# share, such as a kernel compiled once, is made once; files of slow tests begin first.
PYTEST = -m pytest -n $(shell getconf _NPROCESSORS_ONLN) --dist loadfile --no-loadscope-reorder --durations 20 -o faulthandler_exit_on_timeout=true

.PHONY: help env demo test test-fast test-paddle test-bare test-containers newest fuzz gpu lint lint-platforms format docs docs-serve pictures lock clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

env:             ## build .venv: pinned dependencies, every extra, polyak itself editable
	@test -e $(STAMP) || $(MAKE) --no-print-directory rebuild-env

$(UV):
	$(call fresh,build/uv) && $(call pip,build/uv) install --quiet "uv>=0.8"

.PHONY: rebuild-env
rebuild-env: $(UV)
	$(call fresh,$(VENV))
	rm -f $(VENV)/made-from-*
	$(call install,$(VENV)) $(call locked,constraints.txt) --editable ".[$(EXTRAS)]" --group dev
	touch $(STAMP)

demo: env        ## train a real model on real images, raw weights against their average (ARGS="--epochs 3")
	$(BIN)/polyak demo $(ARGS)

test: env        ## the whole test suite, doctests included (ARGS="-k profile" for a part)
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) $(ARGS)

test-fast: env   ## without the tests marked slow: minutes
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "not slow" $(ARGS)

PADDLE := .venv-paddle
PADDLE_EXTRAS := paddle,images,server
PADDLE_STAMP = $(PADDLE)/$(call made_from,constraints-paddle.txt)

test-paddle: env-paddle ## all that holds for PaddlePaddle, in an environment without torch (ARGS="-k swap" for a part)
	OMP_NUM_THREADS=1 $(PADDLE)/bin/python $(PYTEST) tests/paddle tests/newcomer tests/conformance tests/cross_framework tests/server/test_paddle.py src/polyak/paddle src/polyak/dropin/paddle_*.py src/polyak/trainers/hapi.py src/polyak/_core $(ARGS)

data: env-paddle ## the text lines of experiments/ocr, made once (ARGS="--quick")
	$(PADDLE)/bin/python -m experiments.ocr.data $(ARGS)

demo-paddle: env-paddle ## the demo in PaddlePaddle, without torch
	$(PADDLE)/bin/polyak demo $(ARGS)

experiments: env ## what averages bring, every claim at its quick size (ARGS="--today": the one whose turn it is)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m experiments.quick $(ARGS)

ocr: env-paddle  ## text-line recognition with and without an average (ARGS="--quick": minutes)
	OMP_NUM_THREADS=1 $(PADDLE)/bin/python -W ignore -m experiments.ocr.run $(ARGS)

.PHONY: env-paddle demo-paddle data experiments ocr rebuild-paddle
env-paddle:
	@test -e $(PADDLE_STAMP) || $(MAKE) --no-print-directory rebuild-paddle

rebuild-paddle: $(UV)
	$(call fresh,$(PADDLE))
	rm -f $(PADDLE)/made-from-*
	$(call install,$(PADDLE)) $(call locked,constraints-paddle.txt) --editable ".[$(PADDLE_EXTRAS)]" --group test
	# Libraries whose averages are compared with ours, and a logger; what else these bring along is not needed for that.
	$(call install,$(PADDLE)) --no-deps paddledet==2.6.0 paddleclas==2.6.0 paddleseg==2.8.0 paddlesci==1.4.0 visualdl==2.5.3
	$(PADDLE)/bin/pyright -p pyrightconfig.paddle.json
	touch $(PADDLE_STAMP)

test-bare:       ## polyak with no extra installed: imports and runs what needs no framework
	rm -rf build/bare
	$(PYTHON) -m venv build/bare
	$(call pip,build/bare) install --quiet --constraint constraints.txt . pytest hypothesis pytest-timeout
	cd build && bare/bin/python -m pytest -c ../pyproject.toml --rootdir .. ../tests/no_extras ../tests/schedules

test-containers: env ## two containers, one seed, one average: needs root and debootstrap, takes minutes
	$(BIN)/python -m pytest tests/containers/reproduce.py $(ARGS)

newest: $(UV)    ## trainers and drop-ins against the newest release of everything but torch: once a week
	rm -rf build/newest
	$(call fresh,build/newest)
	$(call install,build/newest) torch==$(TORCH) --editable ".[$(EXTRAS)]" --group dev
	build/newest/bin/python -m pytest tests/trainers tests/dropin tests/docs $(ARGS)

.PHONY: release-check release-tools
RELEASE := build/tools
release-tools: $(UV)
	test -x $(RELEASE)/bin/uv || { $(call fresh,$(RELEASE)) && $(call install,$(RELEASE)) --group release; }

release-check: release-tools ## build the last commit's sdist and wheels twice and try them on every Python here (ARGS=--no-torch)
	$(RELEASE)/bin/python release/check.py $(ARGS)

fuzz: env        ## fuzz the file readers, guided by coverage (ARGS="600" seconds each, "600 average" for one)
	$(BIN)/python -c "import atheris" 2>/dev/null || $(call pip,$(VENV)) install atheris
	$(BIN)/python -m tests.fuzz.run $(ARGS)

gpu:             ## with a GPU: its tests, sanitizer and benchmarks, dated results; without: says so (GPU_PYTHON=python3: no .venv)
	$(if $(GPU_PYTHON),,@$(MAKE) --no-print-directory env)
	$(or $(GPU_PYTHON),$(BIN)/python) -m benchmarks.gpu $(ARGS)

lint: env        ## ruff, ruff format, pyright strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

lint-platforms: env ## types as they are on Windows and macOS: before a release
	$(BIN)/pyright --pythonplatform Windows src
	$(BIN)/pyright --pythonplatform Darwin src

format: env      ## let ruff fix and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: env        ## build the documentation, warnings are errors
	$(BIN)/mkdocs build --strict

docs-serve: env  ## the documentation at http://127.0.0.1:8000, built again at each change
	$(BIN)/mkdocs serve --strict

pictures: env    ## draw the pictures of README and documentation again, from committed results
	$(BIN)/python -m docs.pictures.draw

COMPILE = uv pip compile --quiet --universal --python-version 3.10 --upgrade --no-emit-index-url --no-emit-find-links --no-annotate --no-header pyproject.toml
extras = $(foreach extra,$(subst $(comma), ,$(1)),--extra $(extra))
comma := ,

lock:            ## pin every version again, for Python 3.10 to 3.13, for torch and for Paddle (needs uv)
	echo 'torch==$(TORCH)' | $(COMPILE) $(call extras,$(EXTRAS)) --group dev --constraint - --output-file constraints.txt
	$(COMPILE) $(call extras,$(PADDLE_EXTRAS)) --group test --output-file constraints-paddle.txt

clean:           ## remove what the targets made
	rm -rf $(VENV) $(PADDLE) build dist site
