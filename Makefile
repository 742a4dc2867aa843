# make demo   the whole pipeline on synthetic battles, offline    make test   the tests
# make lint   format, lint and types                              make bench  the benchmarks (DATA=FILE: on these battles)
# Each makes its own virtual environment first. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint format bench docs clean
install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lint]"
	touch $@

demo: install
	$(BIN)/prefcli demo demo --force

test: install
	$(BIN)/python -m pytest -n 2

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install
	$(BIN)/python docs/make_cli_reference.py

bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	test -n "$(DATA)" || $(BIN)/prefcli demo demo --force > /dev/null
	$(BIN)/python benchmarks/pipeline.py $(DATA)
	$(BIN)/python benchmarks/deberta.py
	$(BIN)/python benchmarks/training_speed.py $(or $(DATA),demo/train.csv) --rounds 3 --ways notebook Trainer prefcli
	$(BIN)/python benchmarks/prediction_peers.py $(or $(DATA),demo/train.csv)
	$(BIN)/python benchmarks/onnx_speed.py $(or $(DATA),demo/train.csv)
	$(BIN)/python benchmarks/features.py $(or $(DATA),demo/train.csv)

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
