PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest

.PHONY: demo demo-dense test test-lowest lowest lint slow-test lock clean site

demo: $(VENV)/.demo  ## pre-train, probe and compare on digits, on a CPU
	$(BIN)/python demo.py

demo-dense: $(VENV)/.demo-dense  ## pre-train on scenes and tell their parts apart, on a CPU
	$(BIN)/python demo_dense.py

test: $(VENV)/.test  ## what CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-lowest: $(LOWEST)/.test  ## the quick tests with the lowest versions that requirements.txt allows
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 --dist loadfile tests/encoders tests/heads \
		tests/training tests/flags tests/test_models_mimae.py tests/test_main_pretrain.py tests/test_main_finetune.py

lowest: $(VENV)/.test  ## write requirements-lowest.txt anew, after a change of requirements.txt
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python-version 3.10 --no-annotate \
		--custom-compile-command "make lowest" --output-file requirements-lowest.txt \
		requirements.txt

slow-test: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

site: $(VENV)/.site  ## docs/ as a site, in site/
	$(BIN)/mkdocs build --strict --site-dir site

lint: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# torch 2.10 is the last release on PyPI whose CUDA 12 build has code for V100s (docs/install.md).
lock:  ## versions and hashes for clusters with V100s: requirements-cuda12.lock; needs uv
	printf 'torch==2.10.*\nsegmentation-models-pytorch>=0.5\nfaster-coco-eval>=1.8\n' \
		| uv pip compile requirements.txt - --quiet --upgrade --generate-hashes --no-annotate \
		--python-version 3.12 --python-platform x86_64-manylinux_2_28 \
		--custom-compile-command "make lock" --output-file requirements-cuda12.lock

$(VENV)/.demo: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.demo-dense: $(VENV)/.demo
	$(BIN)/pip install --quiet "segmentation-models-pytorch>=0.5" "faster-coco-eval>=1.8"
	touch $@

$(VENV)/.site:
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet mkdocs
	touch $@

$(VENV)/.test: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

$(LOWEST)/.test: requirements-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet -r requirements-lowest.txt pytest pytest-xdist \
		faster-coco-eval segmentation-models-pytorch
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) demo_output
