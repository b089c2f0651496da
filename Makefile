# Every target makes the environment that it needs, in $(VENV).
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
JOBS ?= 2
# What the pages stack with merging, and what runs their blocks.
PASTED := peft torchao pytest "sybil>=8"
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' catome/__init__.py)

# Every test process imports thousands of modules, whose bytecode is made once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test thorough lint types docs figures matrix endurance lowest build check publish clean

demo: $(VENV)/.bench
	$(BIN)/catome demo $(DEMO)

test: $(VENV)/.dev
	HYPOTHESIS_PROFILE=ci $(BIN)/python -m pytest -n $(JOBS) $(TESTS)

# Those as well that are marked as taking long, and more examples of every law: before a release.
thorough: $(VENV)/.dev
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -n $(JOBS) -m '' $(TESTS)

lint: $(VENV)/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

# The figures of docs/how-it-works.md, computed by the library.
figures: $(VENV)/.dev
	$(BIN)/python docs/figures/draw.py

# The table of docs/architectures.md, by trying everything.
matrix: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m tools.matrix

# Every combination of settings, and hundreds of runs: too long for the tests.
endurance: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python benchmarks/endurance.py

# The tests with the lowest versions that pyproject.toml allows, in an environment of its own.
lowest:
	mkdir -p $(VENV)-lowest
	PYTHONPATH=tests $(PYTHON) -m tools.lowest > $(VENV)-lowest/constraints.txt
	PIP_CONSTRAINT=$(abspath $(VENV)-lowest/constraints.txt) $(MAKE) test VENV=$(VENV)-lowest

# The code as sources and wheel, the weights as a wheel: they lie outside of the folder that builds them.
build: $(VENV)/.release
	rm -rf dist
	$(BIN)/python -m build .
	$(BIN)/python -m build --wheel --outdir dist weights

# Both must install and import where nothing else is installed; and with what they need, all blocks of README and docs must run,
# pasted in order, in a folder outside of the checkout.
check: build
	$(BIN)/twine check --strict dist/*
	PYTHONPATH=tests $(BIN)/python -m tools.wheel dist/*.whl
	$(PYTHON) -m venv --clear $(VENV)/empty
	$(VENV)/empty/bin/pip install --quiet --no-deps dist/*.whl
	$(VENV)/empty/bin/python -I -c "import catome, catome_weights; print(catome.__version__, *catome.__all__)"
	$(PYTHON) -m venv --clear $(VENV)/pasted
	$(VENV)/pasted/bin/pip install --quiet "$$(ls dist/catome-*.whl)[bench,timm]" dist/catome_weights-*.whl $(PASTED)
	pages=$$(mktemp -d) && trap 'rm -rf "$$pages"' EXIT && cp -r README.md docs conftest.py "$$pages" && cd "$$pages" && \
		$(abspath $(VENV))/pasted/bin/python -m pytest -q -p no:cacheprovider README.md docs

# Everything before the upload, and a list of what is left to do by hand.
publish: check
	@ls -l dist
	@echo 'Left to do:'
	@echo '1. CHANGELOG.md: the day instead of "unreleased". README.md: no relative link or picture, which PyPI cannot show.'
	@echo '   pyproject.toml: Repository and Documentation under [project.urls].'
	@echo '2. make lint types docs thorough lowest matrix: the table of docs/architectures.md must not change.'
	@echo '3. A signed tag: git tag -s v$(VERSION) && git push --tags'
	@echo '4. Signatures: gpg --armor --detach-sign of each file in dist, for the release page.'
	@echo '5. The weights, if their version is new: $(BIN)/twine upload dist/catome_weights-*'
	@echo '6. The code: $(BIN)/twine upload dist/catome-*'
	@echo '7. The site: SITE_URL=... REPOSITORY_URL=... EDIT_URI=edit/main/docs/ make docs'

clean:
	rm -rf $(VENV) $(VENV)-lowest dist site catome-demo

$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	# Without bytecode of 17,000 files, which takes minutes: Python compiles what it imports.
	$(BIN)/pip install --quiet --no-compile --editable ".[$*]"
	# A peer that pins an old torch, which it does not need.
	test $* != dev || $(BIN)/pip install --quiet --no-compile --no-deps ca-tome==0.1.3
	touch $@
