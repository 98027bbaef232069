PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export TF_CPP_MIN_LOG_LEVEL ?= 2
unexport PYTHONDONTWRITEBYTECODE  # modules are compiled once, when they are first imported

# the versions that settings.ini pins for an extra
asked_by = $(PYTHON) -c "import configparser as c; s = c.ConfigParser(); s.read('settings.ini', 'utf-8'); print(s['DEFAULT']['$(1)_requirements'])"

.PHONY: setup report test test-notebooks test-pytest test-all lab docs slides exercises notebooks readme lock clean

setup: .venv/.installed  ## make .venv with the locked versions, the package and its kernel

.venv/.installed: requirements.lock settings.ini setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-compile -r requirements.lock  # the lock is whole
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name bloodcell_nb
	mkdir -p .venv/etc/ipython && echo "c.IPKernelApp.capture_fd_output = False" > .venv/etc/ipython/ipython_kernel_config.py  # TensorFlow's log stays out of the notebooks
	$(BIN)/python -c "import bloodcell_nb, keras"  # compiled once, before several processes want it at once
	touch $@

report: setup  ## the whole course on drawn cells, then the page
	bloodcell run --study course --data synthetic:n=1000,duplicates=8,spoiled=10 --out reports/synthetic

test: setup  ## export and clean leave nothing to do, ruff, the reference's notebooks, chapters at smoke size, pytest
	tests/check_tree.sh
	ruff check .
	$(MAKE) --no-print-directory -j 2 test-notebooks test-pytest

# a process for the notebooks beside two for pytest, so that both cores have work to the end; each
# with one thread, since TensorFlow's threads would wait for one another
test-notebooks test-pytest: export TF_NUM_INTRAOP_THREADS := 1
test-notebooks test-pytest: export OMP_NUM_THREADS := 1

# 01 is run by reference/runs/engine, 03 to 07 by test_ensemble, 09 by test_models, 02 by test-all
test-notebooks:
	nbdev_test --n_workers 1 --do_print --timing --skip_file_re '^([_.]|0[1-79]_)'

test-pytest: .venv/older/.installed .venv/jax/.installed
	pytest -n 2 --dist loadscope --no-loadscope-reorder

# Keras alone, on the locked TensorFlow: what travels is read by these too
.venv/older/.installed: .venv/.installed
	for version in 3.6.0 3.10.0 3.13.2 3.14.0; do $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-compile --target .venv/older/$$version keras==$$version || echo "no Keras $$version here: not tested"; done
	touch $@

# JAX apart: TensorFlow imports it wherever it finds it, and every command would wait for that
.venv/jax/.installed: .venv/.installed
	$(call asked_by,jax) | $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-compile --target .venv/jax -r /dev/stdin
	touch $@

test-all: test  ## also the chapters as they stand; every recipe, at smoke size, without pretrained weights
	nbdev_test --path nbs --file_re '^0[1-79]_' --do_print --timing
	bloodcell run $(sort $(basename $(notdir $(wildcard recipes/*.yaml)))) --data synthetic:n=400 --profile smoke --set weights=none --jobs 2 --out reports/synthetic/smoke

# Jupyter asks for the option where root starts it, as in a container
lab: ROOT_USER := $(if $(filter 0,$(shell id -u)),--allow-root)
lab: setup  ## JupyterLab on the notebooks
	jupyter lab $(ROOT_USER) --LabApp.default_url=/lab/tree/nbs/index.ipynb

docs: .venv/.installed .venv/docs/.installed  ## the notebooks, as they were run, and the page of results as a website: _docs/index.html
	rm -rf _proc _docs && mkdir -p _proc/source
	.venv/docs/bin/sphinx-build -q -W --keep-going -j 2 -c docs _proc/source _proc/site
	bloodcell page _proc/site/reports/pbc96
	mv _proc/site _docs

# apart from the locked versions, since Sphinx imports nothing of the package
.venv/docs/.installed: settings.ini
	$(PYTHON) -m venv .venv/docs
	$(call asked_by,docs) | .venv/docs/bin/python -m pip install --disable-pip-version-check --quiet -r /dev/stdin
	touch $@

slides: .venv/.installed .venv/docs/.installed  ## slides of each chapter: _docs/slides/index.html
	$(BIN)/python docs/slides.py _docs/slides .venv/docs/lib/python*/site-packages

exercises:  ## the exercises without their solutions, for students: exercises.zip
	$(PYTHON) docs/exercises.py exercises.zip

notebooks: setup  ## run every notebook in place, as committed
	for notebook in nbs/reference/*/*.ipynb nbs/reference/*.ipynb nbs/exercises/*.ipynb nbs/*.ipynb; do jupyter nbconvert --to notebook --execute --inplace $$notebook || exit 1; done
	nbdev_clean

readme: setup  ## README.md from nbs/index.ipynb
	jupyter nbconvert --log-level ERROR --to markdown --no-input --stdout nbs/index.ipynb | sed -E 's#\]\((images/|reference/|extending|machines|limits|teaching|glossary|[0-9]{2}_\w+\.ipynb)#](nbs/\1#g; s#\]\(\.\./#](#g' > README.md

lock: setup  ## requirements.lock from what is installed
	$(BIN)/python -m pip freeze --all --exclude pip --exclude-editable > requirements.lock

clean:
	rm -rf .venv _proc _docs bloodcell_nb.egg-info
