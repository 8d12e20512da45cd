# Needs Python 3.11 or newer and make, nothing else. `make` alone lists what there is.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# The first of these that runs and is new enough; choose another with `make install PYTHON=/path/to/python`.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$python; break; }; done)

# Tests make thousands of small files; where there is room for them in memory, no disk slows them down. What a disk may
# lose is tested by a model of it (tests/faults/disk.py), which takes no real disk's word.
IN_MEMORY := $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 4000000 {print "TMPDIR=/dev/shm"}')
# Without a thread for each core in each process deltalake hands less from one to the other: a seventh of a lake's CPU
# time. Who wants no bytecode beside his sources would have every process that a test starts compile them again.
FEW_THREADS := TOKIO_WORKER_THREADS=1 OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
# Four at a time on two cores, for a good part of the time a test waits for processes; who is done takes over from others.
PYTEST := $(IN_MEMORY) $(FEW_THREADS) $(BIN)/pytest -n 4 --dist worksteal
# Property tests try the same examples in each run; with this they look for others, as the long ones always do.
RANDOM_INPUT := --hypothesis-profile=random
# Their files by name, so that the others need not be imported.
TEXTS = $(shell grep -rl --include='test_*.py' 'pytest\.mark\.texts' tests)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-system test-long faults test-cluster test-spark35 lint format bench soak flood bench-cluster cluster databricks-cli clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## virtual environment in .venv with everything at pinned versions

demo: install ## simulator and the whole pipeline, live in the terminal: make demo ARGS="--for 60s"
	@$(BIN)/cryptopulse demo $(ARGS)

test: install ## modules by themselves, and messages to tables; within 5 minutes
	$(PYTEST) tests/unit tests/pipeline $(ARGS)

test-system: install ## the program as processes, the pages in Chromium, kills, power cuts and torn tables; some 5 minutes
	$(PYTEST) tests/system tests/browser tests/faults $(ARGS)

test-long: install ## tests too long for every change, the long ones of `make faults` among them
	$(PYTEST) -m long $(RANDOM_INPUT) $(ARGS)

faults: install ## a stop at every change to a file, 100 rounds of kills, every table torn in every way; some 45 minutes
	$(PYTEST) -m "not cluster" $(RANDOM_INPUT) tests/faults $(ARGS)

CLUSTER := CLUSTER_TESTS_REQUIRED=1
CLUSTER_ARGS := -m pytest -m cluster -n 2 --dist loadfile --no-loadscope-reorder
SPARK_TESTS := $(patsubst %,tests/cluster/test_%.py,spark_kills spark_engine parity databricks_spark domains_spark)

test-cluster: cluster ## tests with a real Kafka broker, Spark, storage servers and azure-cli; about 30 minutes
	$(CLUSTER) $(BIN)/python $(CLUSTER_ARGS) tests/cluster $(ARGS)

test-spark35: cluster .venv-spark35/.installed ## parity, engine, kills, fencing, statements and extremes on Spark 3.5
	$(CLUSTER) CLUSTER_SPARK=spark35 .venv-spark35/bin/python $(CLUSTER_ARGS) $(SPARK_TESTS) $(ARGS)

lint: install ## style, format and types; documents, help, deployment files and benchmarks against the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	$(PYTEST) -q -m "texts and not long and not cluster" $(TEXTS)

format: install ## put the code into the format that `make lint` checks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## latency, throughput, memory and start-up, measured on this machine
	$(BIN)/python -m benchmarks $(ARGS)

LOW_MEMORY := from cryptopulse.deployment import LOW_MEMORY; print(*(f"{name}={value}" for name, value in LOW_MEMORY.items()))
soak: install ## 100,000 small commits: do their cost, latency and memory stay as they are?
	frugal=$$($(BIN)/python -c '$(LOW_MEMORY)') && env $$frugal $(BIN)/python -m benchmarks --commits 100000 $(ARGS)

flood: install ## attack the served side on 127.0.0.1 for 30 s: viewers, health, memory and SIGTERM keep their bounds; some 3 minutes
	$(BIN)/python -m benchmarks.flood $(ARGS)

bench-cluster: cluster ## the embedded engine and Spark side by side on the same input
	$(BIN)/python -m benchmarks.cluster $(ARGS)

# Versions that belong together: pyspark in constraints.txt and Spark in tests/cluster/jars/spark.xml; pyspark in
# tests/cluster/runtimes/16.4.txt and Spark in spark35.xml, of which SPARK35="-Dspark=3.5.6" takes another.
SPARK35 ?=
RUNTIMES := .venv-runtime-16.4/.installed .venv-runtime-17.3/.installed
cluster: $(VENV)/.cluster $(RUNTIMES) .jars/.copied .node/.installed .venv-azure/.installed .venv-backtest/.installed ## install what the cluster tests need

databricks-cli: .go/databricks ## Databricks' own command line, for the tests of the bundle; needs Go 1.26, takes some minutes

clean: ## remove the virtual environment, caches and the demo's tables
	rm -rf $(VENV) .venv-azure .venv-runtime-* .venv-spark35 .jars .node .go .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist demo-lake
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The build back end is installed first, so that it is pinned too and pip needs no second environment for it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; name it: make install PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python's venv module does not work; on Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV); the first time takes about a minute."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@

# What follows is only for the cluster: Java 17 or newer, Maven and npm must be there; the rest is fetched by name.
MAVEN_COPY := mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies -DincludeScope=runtime
NEEDS = @command -v $(1) >/dev/null || { echo "$(1) was not found; on Debian or Ubuntu: apt install $(2)" >&2; exit 1; }

$(VENV)/.cluster: $(VENV)/.installed
	@echo "Installing Spark and the storage servers of the tests; the first time takes some minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel  # pyspark comes as source
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev,spark,cluster]'
	@touch $@

.jars/.copied: tests/cluster/jars/kafka.xml tests/cluster/jars/spark.xml tests/cluster/jars/spark35.xml
	$(call NEEDS,java,openjdk-17-jre-headless)
	$(call NEEDS,mvn,maven)
	@rm -rf .jars
	@$(MAVEN_COPY) -f tests/cluster/jars/kafka.xml -DoutputDirectory=$(CURDIR)/.jars/kafka
	@$(MAVEN_COPY) -f tests/cluster/jars/spark.xml -DoutputDirectory=$(CURDIR)/.jars/spark
	@$(MAVEN_COPY) -f tests/cluster/jars/spark35.xml $(SPARK35) -DoutputDirectory=$(CURDIR)/.jars/spark35
	@touch $@

.node/.installed:
	$(call NEEDS,npm,npm)
	@npm install --silent --no-audit --no-fund --no-package-lock --prefix .node azurite@3.37.0
	@touch $@

# What a Databricks Runtime has of what we use. On 3.11, as pandas 1.5 has no wheel for a newer one (Databricks builds its own).
RUNTIME_PYTHON ?= python3.11
.venv-runtime-%/.installed: tests/cluster/runtimes/%.txt $(VENV)/.installed
	$(call NEEDS,$(RUNTIME_PYTHON),python3.11-venv)
	@$(RUNTIME_PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -r $<
	@touch $@

# The tests of Spark on 3.5, over the packages of the runtime that has it. But for pyarrow: the embedded engine, which they compare
# with, reads columns that 15 can't cast; 19 works with this NumPy.
.venv-spark35/.installed: .venv-runtime-16.4/.installed pyproject.toml constraints.txt
	@$(RUNTIME_PYTHON) -m venv --clear $(@D)
	@ls -d $(CURDIR)/.venv-runtime-16.4/lib/python*/site-packages > $$(echo $(@D)/lib/python*/site-packages)/runtime.pth
	@grep -vE '^(numpy|pandas|psutil|py4j|pyarrow|pydantic|pydantic_core|pyspark)==' constraints.txt > $(@D)/constraints.txt
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c $(@D)/constraints.txt hatchling editables
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c $(@D)/constraints.txt \
		-e '.[feed,cluster]' pyarrow==19.0.1 pytest pytest-rerunfailures pytest-xdist hypothesis websockets
	@touch $@

# azure-cli wants versions of its own, so it gets a virtual environment of its own.
.venv-azure/.installed:
	@test -x .venv-azure/bin/python || $(BIN)/python -m venv .venv-azure
	@.venv-azure/bin/python -m pip install --quiet --disable-pip-version-check azure-cli==2.91.0
	@touch $@

# So do the libraries that read exports for backtests; the list of them is complete, for the reason that it gives.
.venv-backtest/.installed: tests/cluster/backtest_libraries.txt $(VENV)/.installed
	@test -x .venv-backtest/bin/python || $(BIN)/python -m venv .venv-backtest
	@.venv-backtest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

# Not part of `cluster`: it needs Go and builds for minutes. `make test-cluster` runs its tests when it is there.
.go/databricks: tests/cluster/databricks_cli/go.mod tests/cluster/databricks_cli/workspace_test.go
	$(call NEEDS,go,golang)
	@cd tests/cluster/databricks_cli && go build -trimpath -ldflags "-s -w" -o $(CURDIR)/.go/databricks github.com/databricks/cli
	@cd tests/cluster/databricks_cli && go test -trimpath -c -o $(CURDIR)/.go/databricks-workspace .
	@touch $@
