# Everything goes through these targets; README.md explains the two that matter first.
#
#   make demo      set up, build, show the main job on real guests
#   make test      set up, build, run every test, those on the real cluster included
#   make build     binaries for hosts (release) and the static helper for guests
#   make install DESTDIR=...
#   make packages  Debian packages for hosts and guests

SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
CARGO ?= cargo
STAGE := $(CURDIR)/target/stage
STATIC := RUSTFLAGS="-C target-feature=+crt-static"
GUEST_FLAGS = --profile $(PROFILE) --target x86_64-unknown-linux-gnu

.PHONY: all setup build stage packages demo test test-unit test-cluster bench-forecast bench-history lint fmt-check deny clean

all: build

include packaging/install.mk

# Packages, the Rust toolchain and the guest image; does nothing when all is there.
setup:
	vagrant/provision/setup.sh

# PROFILE=quick builds for trying changes on the cluster.
build:
	$(CARGO) build --locked --profile $(PROFILE) --workspace --bins
	$(STATIC) $(CARGO) build --locked $(GUEST_FLAGS) --no-default-features --features guest --bin drover-guest
	$(STATIC) $(CARGO) build --locked $(GUEST_FLAGS) -p drover-testtools

stage: build
	rm -rf $(STAGE)
	$(MAKE) --no-print-directory install DESTDIR=$(STAGE)

# .deb files of host and guest into target/debian; needs `cargo install --locked cargo-deb`.
packages: build
	@command -v cargo-deb >/dev/null || { echo "make packages needs cargo-deb: cargo install --locked cargo-deb" >&2; exit 1; }
	install -D -m 755 target/x86_64-unknown-linux-gnu/release/drover-guest target/packages/drover-guest
	target/release/drover generate man target/packages/man
	target/release/drover generate completions target/packages/completions
	$(CARGO) deb --no-build --package drover --output target/debian/
	$(CARGO) deb --no-build --package drover --variant guest --output target/debian/

demo: setup stage
	vagrant/scenarios/demo.py

test: setup lint test-unit test-cluster

test-unit:
	$(CARGO) test --locked --workspace --features guest --no-fail-fast

test-cluster: stage
	vagrant/test-cluster.sh
	tests/cluster/run.py

# Forecasts on traces of real machines; the directory is in DROVER_TRACES, without it it skips.
bench-forecast:
	$(CARGO) run --locked --release --example bench_forecast

# The history beside Debian's Prometheus, on traces and on a recording of the cluster, if there.
bench-history:
	$(CARGO) run --locked --release --example bench_history

fmt-check:
	$(CARGO) fmt --all --check

lint: fmt-check
	$(CARGO) clippy --locked --workspace --all-targets --features guest -- -D warnings

clean:
	$(CARGO) clean
