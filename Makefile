PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-dense test lint slow-test clean

demo: $(VENV)/.demo  ## pre-train, probe and compare on digits, on a CPU
	$(BIN)/python demo.py

demo-dense: $(VENV)/.demo-dense  ## pre-train on scenes, segment them and detect in them, on a CPU
	$(BIN)/python demo_dense.py

test: $(VENV)/.test  ## what CI runs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

slow-test: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

$(VENV)/.demo: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.demo-dense: $(VENV)/.demo
	$(BIN)/pip install --quiet "segmentation-models-pytorch>=0.5" "faster-coco-eval>=1.8"
	touch $@

$(VENV)/.test: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) demo_output
