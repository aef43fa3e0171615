# Each target installs what it needs; you need only Python 3.10 or later and make.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/
# Tests of one file run mostly in one process, so that its servers are started once.
IN_PARALLEL := --dist worksteal -n
# On a busy machine, a few end-to-end tests may miss a time limit of the package. CI prints which.
AGAIN := --reruns 1 --rerun-exclude-path tests/unit --max-suite-reruns 3 --rerun-show-tracebacks -raR
ALL := -m 'not soak' --hypothesis-profile thorough $(AGAIN)
# Tests start hundreds of processes: so each module is compiled once, and not by each of them.
unexport PYTHONDONTWRITEBYTECODE
# The profiler of Dask's workers can deadlock CPython 3.11 (python/cpython#106883).
export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED = False

.PHONY: demo unit test test-all coverage soak frameworks bench server-bench peers screenshots docs lint \
  inputs server server-test server-lint requirements examples wheel wheel-test lowest imports clean

demo: $(VENV)/ready  ## run a sweep through a local IAP, with tokens that expire meanwhile
	$(RUN)mlflow-iap local --token-lifetime 2 $$([ -t 0 ] && [ -t 2 ] && echo --stay) \
	  -- $(RUN)python examples/lightgbm_sweep.py

unit: $(VENV)/ready  ## run the tests that need no server
	$(RUN)python -m pytest $(IN_PARALLEL) 2 tests/unit

test: $(VENV)/ready  ## run all tests except the slow ones
	$(RUN)python -m pytest $(IN_PARALLEL) 3

test-all: $(VENV)/ready  ## run all tests except those of `make soak`
	$(RUN)python $(if $(COVERAGE),-m coverage run) -m pytest $(ALL) $(IN_PARALLEL) 3

coverage: $(VENV)/ready  ## the same, with the coverage of src in all processes
	$(RUN)python -m coverage erase
	$(MAKE) test-all COVERAGE=1
	$(RUN)python -m coverage combine -q
	$(RUN)python -m coverage report

imports: $(VENV)/ready  ## draw the imports between folders, with graphviz; writes docs/images/imports.svg
	$(RUN)uvx -q pydeps src/mlflow_iap_callbacks --only mlflow_iap_callbacks --max-module-depth 2 \
	  --reverse --rankdir RL --rmprefix mlflow_iap_callbacks. --noshow -o docs/images/imports.svg

soak: $(VENV)/ready build/server/ready  ## run the tests with kills, faults and outages, which take minutes
	$(RUN)python -m pytest -m soak -s tests

frameworks: build/frameworks/ready  ## test autologging of Keras, Lightning, transformers in the background
	build/frameworks/bin/python -m pytest -m soak -s tests/soak/test_frameworks.py

bench: build/bench/ready  ## measure against other ways to log; OPTIONS=--quick; writes results.md and docs
	build/bench/bin/python benchmarks/compare.py $(OPTIONS)

server-bench: $(VENV)/ready  ## measure the server under load; writes benchmarks/server_load.md
	PYTHONPATH=tests/helpers $(RUN)python benchmarks/server_load.py

screenshots: $(VENV)/ready  ## take screenshots of MLflow's pages, with Chromium; writes docs/images
	MLFLOW_IAP_SCREENSHOTS=$(CURDIR)/docs/images $(RUN)python -m pytest -m slow \
	  tests/e2e/lightgbm/test_pages.py

docs: $(VENV)/docs  ## build the website in build/docs; needs Python 3.11
	PYTHONPATH=docs $(RUN)zensical build --strict --clean
	@echo "To read it: $(PYTHON) -m http.server --bind 127.0.0.1 --directory build/docs"

peers: $(VENV)/ready  ## compare LightGBM integrations; writes benchmarks/lightgbm_peers.md and docs
	$(RUN)python benchmarks/lightgbm_peers.py

lint: $(VENV)/ready
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy

inputs: $(VENV)/ready  ## compare predictions of logged models, for each form of data; writes docs
	PYTHONPATH=tests/helpers $(RUN)python benchmarks/input_forms.py

server: build/server/ready  ## run the deployment on this machine; COMMAND=... runs against it
	$(RUN)python tests/helpers/deployment.py --python build/server/bin/python \
	  $(if $(COMMAND),-- $(COMMAND))

server-test: build/server/ready  ## run the tests of client and callbacks against it
	$(RUN)python -m pytest -m 'not soak' $(IN_PARALLEL) 2 --deployed build/server/bin/python tests/e2e/iap \
	  tests/e2e/delivery/test_delivery.py tests/e2e/optuna/test_callback.py \
	  tests/e2e/optuna/test_trials.py tests/e2e/lightgbm --ignore tests/e2e/lightgbm/test_pages.py

server-lint: $(VENV)/ready build/google/ready build/terraform/ready  ## check what is deployed
	$(RUN)hadolint appengine/Dockerfile
	$(RUN)shellcheck appengine/prepare appengine/entrypoint.sh .ci/run
	PYTHON=$(RUN)python appengine/prepare my-project 123456789012 us-central1 uc
	build/google/bin/python -c "from google.appengine.api import appinfo; \
	  appinfo.LoadSingleAppInfo(open('build/appengine/app.yaml'))"
	$(RUN)python -m pytest -m 'slow or not slow' tests/e2e/server/test_terraform.py

requirements: $(VENV)/ready  ## pin the image's packages by hash
	$(RUN)uv pip compile -q --upgrade --generate-hashes --no-build --no-header \
	  --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
	  appengine/requirements.in -o appengine/requirements.txt

# Like the image: its Python, its pinned requirements, and this package's wheel. If that Python is not
# available, the same requirements without pins on this one.
build/server/ready: $(VENV)/ready appengine/requirements.txt $(shell find src -name '*.py')
	$(RUN)python -m pip wheel -q --no-deps -w build/server-wheel .
	if $(RUN)uv venv -q --clear --python 3.12 build/server; then \
	  $(RUN)uv pip install -q --python build/server/bin/python --compile-bytecode \
	    --only-binary :all: --require-hashes -r appengine/requirements.txt; \
	else \
	  echo "Python 3.12 is not available: the server runs on $(PYTHON), without the image's pins." && \
	  $(RUN)uv venv -q --clear --python $(PYTHON) build/server && \
	  $(RUN)uv pip install -q --python build/server/bin/python --compile-bytecode \
	    -r appengine/requirements.in; \
	fi
	$(RUN)uv pip install -q --python build/server/bin/python --compile-bytecode \
	  --no-deps build/server-wheel/*.whl
	touch $@

# Separate, because wandb needs an older protobuf.
build/bench/ready: $(VENV)/ready pyproject.toml
	$(RUN)uv venv -q --clear --python $(RUN)python build/bench
	$(RUN)uv pip install -q --python build/bench/bin/python --compile-bytecode -e '.[server]' \
	  --group dev --group bench
	touch $@

# The schema of Terraform's providers for Google Cloud. The providers themselves are in no registry of
# Python packages.
build/terraform/ready:
	$(PYTHON) -m venv --clear build/terraform
	build/terraform/bin/python -m pip install -q tf==1.2.0
	build/terraform/bin/python -m pip download -q --no-deps -d build/terraform \
	  cdktf-cdktf-provider-google==16.12.1 cdktf-cdktf-provider-google-beta==16.12.1
	touch $@

# Google's own parser of app.yaml, in a separate environment because it needs an older urllib3.
build/google/ready:
	$(PYTHON) -m venv --clear build/google
	build/google/bin/python -m pip install -q appengine-python-standard
	touch $@

examples: $(VENV)/ready  ## run each example through a local IAP
	$(RUN)mlflow-iap local --token-lifetime 2 -- $(RUN)python examples/lightgbm_sweep.py --trials 8
	$(RUN)mlflow-iap local --token-lifetime 2 -- $(RUN)python examples/dask_sweep.py
	$(RUN)mlflow-iap local --token-lifetime 2 -- $(RUN)python examples/processes_sweep.py
	$(RUN)mlflow-iap local --token-lifetime 2 -- $(RUN)python examples/joblib_sweep.py

wheel: $(VENV)/ready  ## build the wheel, install only it, import it
	rm -rf dist
	$(RUN)python -m pip wheel -q --no-deps -w dist .
	$(PYTHON) -m venv --clear build/wheel
	build/wheel/bin/python -m pip install -q dist/*.whl
	cd build && wheel/bin/python ../tests/import_wheel.py && wheel/bin/mlflow-iap --version

wheel-test: wheel  ## test the wheel: unit tests and the callbacks' tests; PYTHON=..., MLFLOW=3.11
	$(RUN)uv venv -q --clear --python $(PYTHON) build/wheel-test
	$(RUN)uv pip install -q --python build/wheel-test/bin/python --compile-bytecode --group dev \
	  "$$(ls dist/*.whl)$(if $(MLFLOW),,[server])" $(if $(MLFLOW),'mlflow==$(MLFLOW).*')
	cd build && wheel-test/bin/python ../tests/import_wheel.py
	build/wheel-test/bin/python -m pytest $(IN_PARALLEL) 2 $(AGAIN) \
	  tests/unit tests/e2e/*/test_callback.py

lowest: $(VENV)/ready  ## run the tests with the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv --clear build/lowest
	# The oldest MLflow does not support SQLAlchemy 2.1.
	$(RUN)uv pip install -q --python build/lowest/bin/python --resolution lowest-direct \
	  --only-binary :all: --no-binary mlflow-iap-callbacks --compile-bytecode \
	  -e . --group dev 'sqlalchemy>=2.0.30,<2.1'
	build/lowest/bin/python -m pytest $(IN_PARALLEL) 3 $(AGAIN)

$(VENV)/docs: $(VENV)/ready
	$(RUN)uv pip install -q --python $(RUN)python --group docs
	touch $@

build/frameworks/ready: pyproject.toml $(VENV)/ready
	$(RUN)uv venv -q --clear --python $(PYTHON) build/frameworks
	$(RUN)uv pip install -q --python build/frameworks/bin/python --compile-bytecode \
	  -e '.[server]' --group dev --group frameworks
	touch $@

clean:
	rm -rf $(VENV) build dist

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install -q uv
	$(RUN)uv pip install -q --python $(RUN)python --compile-bytecode -e '.[server]' --group dev
	touch $@
