# make demo           the whole pipeline on synthetic battles, offline
# make test           all tests                make test-fast  without those marked slow
# make lint           format, lint and types   make format     format, and fix what can be fixed
# make docs           the command line reference, from --help, and the table of layouts
# make site           the documentation as a site, in site/
# make pictures       the pictures of the documentation; needs tmux and Chromium
# make bench          the benchmarks (DATA=FILE: on these battles)
# make bench-gpu      what a GPU makes of it, for docs/benchmarks.md, in 20 minutes (SIZE=toy: on a CPU; DATA=FILE; ONLY=SECTION)
# make release        a wheel and a source release, in dist/
# make release-check  the same, with the wheel installed into a new environment and the demo run there
# make light-check    the package without torch and transformers in a new environment, and there every verb
# Each makes its own virtual environment first. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test test-fast lint format bench bench-gpu docs pictures site release release-check light-check clean
install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lint]"
	touch $@

demo: install
	$(BIN)/prefcli demo demo --force

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: install
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install
	$(BIN)/python docs/make_cli_reference.py
	$(BIN)/python docs/make_keywords.py

pictures: install
	$(BIN)/python docs/make_pictures.py

site: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	test -n "$(DATA)" || $(BIN)/prefcli demo demo --force > /dev/null
	$(BIN)/python benchmarks/pipeline.py $(DATA)
	$(BIN)/python benchmarks/deberta.py
	$(BIN)/python benchmarks/training_speed.py $(or $(DATA),demo/train.csv) --rounds 3 --ways notebook Trainer prefcli
	$(BIN)/python benchmarks/prediction_peers.py $(or $(DATA),demo/train.csv)
	$(BIN)/python benchmarks/onnx_speed.py $(or $(DATA),demo/train.csv)
	$(BIN)/python benchmarks/features.py $(or $(DATA),demo/train.csv)

# With whatever is installed, and without the network.
bench-gpu: install
	$(BIN)/python benchmarks/gpu.py --size $(or $(SIZE),full) $(if $(DATA),--data $(DATA)) $(if $(ONLY),--only $(ONLY))

release: install
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

# The wheel as a user gets it: into an environment of its own, with the dependencies that it declares.
release-check: release
	$(PYTHON) -m venv dist/check
	dist/check/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	dist/check/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	cd dist && check/bin/prefcli demo demo
	rm -rf dist/check dist/demo

# As docs/install.md says, and ONNX Runtime, for a run that was exported where torch is.
light-check: install
	rm -rf dist/light && mkdir -p dist/light/empty
	$(PYTHON) -m venv dist/light/venv
	dist/light/venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-r requirements-light.txt onnx onnxruntime
	dist/light/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps .
	$(BIN)/python tests/light_install.py make-runs dist/light/runs
	cd dist/light/empty && ../venv/bin/python ../../../tests/light_install.py ../runs/neural ../runs/onnx
	rm -rf dist/light

clean:
	rm -rf $(VENV) demo site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
