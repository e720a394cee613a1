# Every target makes the environment first; that is a no-op when requirements.lock and pyproject.toml have not changed.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
SETUP := .venv/.synced

.PHONY: setup demo test check soak fuzz bench embedded gpu-check gpu-bench

setup: $(SETUP)

# Align the embedded retoucher on people morphed from two real portraits: runs/demo/report.html, under ten minutes on two cores.
demo: $(SETUP)
	$(BIN)/align-retoucher --config demo --overwrite

test: $(SETUP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --durations 5

check: $(SETUP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --warnings
	$(BIN)/lint-imports
	@find . -name '*.py' -not -path './.venv/*' -exec wc -l {} + | \
		awk '$$2 != "total" && $$1 >= 400 { print $$2 ": " $$1 " lines, the limit is 399"; bad = 1 } END { exit bad }'

# Kill every command that goes on (SIGNAL=int: Ctrl-C), again and again, and compare its end, byte for byte: runs/soak/table.md (an hour).
soak: $(SETUP)
	$(BIN)/python -m tools.soak --signal $(or $(SIGNAL),kill)

# A coverage-guided fuzzer on what reads answers, rows, recipes and pictures, SECONDS for each: runs/fuzz.
SECONDS ?= 60
fuzz: $(SETUP)
	$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/uv pip install --quiet --python $(BIN)/python 'atheris>=3.0'
	$(BIN)/python -m tools.fuzz --seconds $(SECONDS)

# DPG with a shared prefix against all-step Flow-GRPO; the benchmark suite against plain pyiqa; what each loss gains at equal evaluations.
bench: $(SETUP)
	$(BIN)/python -m tools.bench.retoucher_speed
	$(BIN)/python -m tools.bench.suite_speed
	$(BIN)/python -m tools.bench.processors
	$(BIN)/align-retoucher --config ablation --ablate-seeds 1 --output-dir runs/bench-ablation --overwrite

# Train embedded models anew (hours), with PORTRAITS=FOLDER on its people, else on two faces. Retoucher and judge replace the committed
# ones; the vision-language model goes to runs/embedded-vlm/model.
PORTRAITS ?=
PHOTOS = $(if $(PORTRAITS),$(PORTRAITS) --anchors painted --resolution 128,embedded --count 600)
embedded: $(SETUP)
	$(BIN)/python -m tools.embedded.retoucher $(if $(PORTRAITS),--portraits $(PORTRAITS))
	$(BIN)/python -m tools.embedded.vlm $(if $(PORTRAITS),--portraits $(PORTRAITS))
	$(BIN)/make-preferences build $(PHOTOS) --pairs-per-photo 4 --output-dir runs/judge-pairs \
		--generators rollout:4 degradations degradations:gross degradations:clean
	$(BIN)/python -m tools.embedded.judge --pairs runs/judge-pairs
	$(BIN)/train-reward-model --data runs/judge-pairs --train-pairs 0 --stages grpo --max-train-steps 160 --output-dir runs/judge-grpo
	$(BIN)/python -m tools.embedded.judge --pairs runs/judge-pairs --reinforced runs/judge-grpo/model

gpu-check: $(SETUP)
	$(BIN)/python -m pytest -m gpu

# What real sizes cost on a GPU, with random weights: runs/gpu-bench/results.md; without one: GPU_BENCH=--tiny, a check of the code.
gpu-bench: $(SETUP)
	$(BIN)/python -m tools.bench.gpu.main $(GPU_BENCH)

$(SETUP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.lock)"
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
