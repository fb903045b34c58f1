# `make demo` and `make test` are all the set-up there is: each makes .venv and installs what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed

.PHONY: demo docs page page-test page-models node reference runtimes example-cpp pictures test test-all test-slow test-ray lint types unit mutation fuzz torture experiments-cpu experiments-gpu gpu sanitize clean

demo: $(STAMP)
	$(BIN)/rotateconv compare --data digits --convs conv3x3,rotate4,rotate2,rotate2p --seeds 3 --out runs/demo

# The pages about commands and keys, made from the code.
reference: $(STAMP)
	$(BIN)/python tools/reference.py

# Compact ONNX files in the oldest and newest ONNX Runtime and in others, each in a virtual environment that is thrown away.
runtimes: $(STAMP)
	$(BIN)/python benchmarks/onnx_runtimes.py

# The example in C++, with the headers in ONNXRUNTIME_HEADERS, or of Debian's libonnxruntime-dev (13 and newer).
example-cpp: $(STAMP)
	$(BIN)/pytest -rs tests/export/test_cpp.py

# The drawings of the pages, made from the formula and the records, and the tutorial's notebook.
pictures: $(STAMP)
	$(BIN)/python tools/pictures.py
	$(BIN)/python tools/notebook.py

# The site, into site/; a warning is an error. Served while you write: .venv/bin/zensical serve
# The page of `make page` comes with it where that was made: without it docs/see/index.html says how.
docs: $(VENV)/docs
	$(BIN)/zensical build --clean --strict
	if [ -f web/dist/index.html ]; then cp -R web/dist/. site/see/; fi

$(VENV)/docs: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

# The page in web/, into web/dist: a static folder that any server serves. The dense files that it compares with are
# decoded from the committed compact ones.
page: node $(STAMP) web/node_modules/installed
	$(BIN)/python tools/page.py dense
	cd web && npm run --silent build

# In Node and in Chromium (CHROMIUM=its path); photos are tried too where ROTATECONV_DATA holds cifar10-jpeg/.
page-test: page
	cd web && npm test --silent

node:
	@command -v npm >/dev/null || { echo "the page needs Node 20.19 or newer, with npm: install them" >&2; exit 2; }

web/node_modules/installed: web/package-lock.json
	cd web && npm ci --silent
	touch $@

# The page's models anew: two trainings, half an hour on a core.
page-models: $(STAMP)
	$(BIN)/python tools/page.py models --data-dir $(DATA_DIR)

test: lint types unit

test-all: test test-slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'not slow and not cluster'

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'slow and not cluster'

# A Ray cluster of two nodes on this machine, one of which is killed in the middle of a run.
test-ray: $(VENV)/ray
	OMP_NUM_THREADS=1 $(BIN)/pytest -m cluster

$(VENV)/ray: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[ray]'
	touch $@

# Small changes of the code, each of which a test should notice: twenty minutes more of all. All of one module:
# make mutation MUTATION=nn/conv.py; what survived, with all tests: make mutation MUTATION='nn/conv.py --again'
MUTATION ?= --seconds 1200

mutation: $(STAMP)
	$(BIN)/python benchmarks/mutation.py $(MUTATION)

# The laws of the compiled kernel under AddressSanitizer and UBSan, which compile it anew into a cache of their own;
# where they cannot, it fails, for the tests would only be skipped. (With the library of C++, whose exceptions PyTorch throws.)
SANITIZED = cc -fsanitize=address,undefined -fno-sanitize-recover=undefined -g

sanitize: export XDG_CACHE_HOME = $(CURDIR)/build/sanitize
sanitize: export ASAN_OPTIONS   = detect_leaks=0
sanitize: export CC             = $(SANITIZED)
sanitize: $(STAMP)
	$(BIN)/python -c "from rotateconv import native; native._compiled_for_user()"
	export LD_PRELOAD="$$($(SANITIZED) -print-file-name=libasan.so) $$($(SANITIZED) -print-file-name=libstdc++.so.6)" OMP_NUM_THREADS=1; \
	$(BIN)/python -c "import sys; from rotateconv import native; sys.exit(None if native.available() else native.status())" && \
	$(BIN)/python -m pytest tests/kernels/test_fused_native.py -k "not out_of_the_way"

# Changed and crafted files for every reader, SECONDS of them each, and a table of what came out.
SECONDS ?= 60

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py --seconds $(SECONDS)

# Runs killed at random moments, and whether they end bit for bit like one that never was: docs/robustness.md.
KILLS ?= 90

torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/torture.py --kills $(KILLS)

# The studies of experiments/: finished runs are skipped, a stopped one goes on, and the records and the page are made
# anew. DATA_DIR holds cifar10-jpeg/ and what torchvision reads (MNIST/raw/ and so on); the CPU studies take days.
DATA_DIR    ?= $(or $(ROTATECONV_DATA),data)
STUDY_FILES := $(sort $(wildcard experiments/*/study.toml experiments/*/*/study.toml))
STUDY_NAMES := $(STUDY_FILES:experiments/%/study.toml=%)

experiments-cpu: STUDIES = $(filter-out gpu/%,$(STUDY_NAMES))
experiments-gpu: STUDIES = $(filter gpu/%,$(STUDY_NAMES))
experiments-cpu experiments-gpu: $(STAMP)
	set -e; for study in $(STUDIES); do \
	    case $$study in \
	        *cifar10-jpeg* | defaults/*) data="--data-dir $(DATA_DIR)/cifar10-jpeg" ;; \
	        digits*) data= ;; \
	        *) data="--data-dir $(DATA_DIR) --download" ;; \
	    esac; \
	    $(BIN)/rotateconv compare --config experiments/$$study/study.toml $$data --out runs/experiments/$$study; \
	    $(BIN)/rotateconv record runs/experiments/$$study --out experiments/$$study/records.jsonl; \
	done
	$(BIN)/rotateconv report experiments $(addprefix --page ,README.md $(wildcard docs/results*.md))

# The most of a few minutes on a GPU, into runs/gpu; the same command goes on where it stopped.
GPU_SECONDS ?= 780

gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu.py --seconds $(GPU_SECONDS) --data-dir $(DATA_DIR)

# Installed again only when the dependencies change.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
