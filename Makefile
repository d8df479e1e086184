# The two commands of the README; each sets itself up.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# tests start many processes of Python, each of which would compile this project anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-all lint format clean

quickstart: $(VENV)/installed
	$(RUN) -m experiments.quickstart --out=runs/quickstart

test: $(VENV)/installed
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not bench"

# with the long tail, and what compares with torch where that is installed
test-all: $(VENV)/installed
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not bench" --timeout=1800

lint: $(VENV)/installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/installed: requirements.txt requirements-run.txt pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the packages of requirements.txt, about 1 GB, into $(VENV): 1 to 3 minutes;"
	@echo "pip is silent for most of it, behind its line 'Installing collected packages'"
	$(VENV)/bin/pip install --disable-pip-version-check -r requirements.txt
	# the checkout itself, so that a command started in another folder can say where it belongs
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) runs
