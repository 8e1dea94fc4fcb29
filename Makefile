# Everything goes through these targets; README.md explains the two that matter first.
#
#   make demo      set up, build, show the main job on real guests
#   make test      set up, build, run every test, those on the real cluster included
#   make build     binaries for hosts (release) and the static helper for guests
#   make install DESTDIR=...
#   make packages  .deb and .rpm for hosts and guests, tried on the cluster

SHELL := /bin/bash
export PATH := $(HOME)/.cargo/bin:$(PATH)
CARGO ?= cargo
STAGE := $(CURDIR)/target/stage
STATIC := RUSTFLAGS="-C target-feature=+crt-static"
GUEST_FLAGS = --profile $(PROFILE) --target x86_64-unknown-linux-gnu

.PHONY: all setup build stage packages packages-build demo picture scenario-drain scenario-chaos test test-unit test-cluster test-virtqemud bench-forecast bench-history bench-decision bench-model bench-workloads bench-move bench-meter bench-fleet bench-placement bench-state chaos fuzz \
	lint fmt-check vagrant-validate deny clean

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

# .deb and .rpm of host and guest, and the software bill of materials, into target/packages.
packages-build: build
	packaging/build.sh $(PROFILE) target/packages

# Builds them and tries them on the cluster's hosts: target/packages/report.json.
packages: packages-build
	tests/packages/run.py

demo: setup stage
	vagrant/scenarios/demo.py

# The README's picture of a move, docs/move.svg, from what a real run of the demo printed.
picture: demo
	vagrant/scenarios/picture.py

# The other scenarios; BACKEND=vagrant runs them, and the demo, on Vagrant's machines.
BACKEND ?= $(or $(DROVER_BACKEND),namespaces)
export DROVER_BACKEND := $(BACKEND)

scenario-drain: setup stage
	vagrant/scenarios/drain.py

scenario-chaos: setup stage
	vagrant/scenarios/chaos.py $(CHAOS_ARGS)

test: setup lint test-unit test-cluster packages

test-unit:
	$(CARGO) test --locked --workspace --features guest --no-fail-fast

test-cluster: stage
	vagrant/test-cluster.sh
	tests/cluster/run.py

# The hook, moves and doctor on hosts with virtqemud, built from Debian's source of libvirt.
test-virtqemud: setup stage
	tests/virtqemud/run.sh

# Forecasts on traces of real machines; the directory is in DROVER_TRACES, without it it skips.
bench-forecast:
	$(CARGO) run --locked --release --example bench_forecast

# State directories in the freeze: many small files, a large one; target/bench/state.json.
bench-state: setup stage
	tests/bench/bench_state.py $(BENCH_ARGS)

# Drover beside other policies on the same traces; target/bench/placement.json.
bench-placement: bench-forecast
	$(CARGO) run --locked --release --example bench_placement

# One decision over 1,000 hosts, a plan for 10,000 features; target/bench/decision.json.
bench-decision:
	$(CARGO) run --locked --release --example bench_decision

# Training beside LightGBM and XGBoost, metering beside a training; target/bench/model.json.
bench-model:
	$(CARGO) run --locked --release --example bench_model target/bench
	tests/bench/bench_model.py

# The history beside Debian's Prometheus, on traces and on a recording of the cluster, if there.
# What bounds it from below on the Alibaba traces: DROVER_TRACES=DIR tests/bench/entropy.py
bench-history:
	$(CARGO) run --locked --release --example bench_history

# Each workload moved there and back 20 times under load; target/bench/workloads.json.
# BENCH_ARGS="--moves 4 --only redis" for less, "--minutes 60" for a bound.
bench-workloads: setup stage
	tests/bench/bench_workloads.py $(BENCH_ARGS)

# The same redis moved as a whole VM, by criu, by podman, by Drover; target/bench/move.json.
bench-move: setup stage
	tests/bench/bench_move.py $(BENCH_ARGS)

# Faults at every state of a move, on each side; target/chaos/report.json.
# CHAOS_ARGS="--faults 10 --seed 7" for less, "--minutes 60" for a bound.
chaos: setup stage
	tests/bench/chaos.py $(CHAOS_ARGS)

# What metering costs beside other tools, in a guest with 100 busy cgroups: target/bench/meter.json.
bench-meter: setup stage
	vagrant/provision/below.sh
	vagrant/scenarios/bench_meter.py
	$(MAKE) --no-print-directory bench-fleet

# droverd with 200 guests of 50 features, and one hung guest among 50, the guests played on real
# sockets: adds to target/bench/meter.json. Some twelve minutes.
bench-fleet:
	$(CARGO) build --locked --release --bin droverd --bin drover
	$(CARGO) run --locked --release --example bench_fleet target/release target/bench/meter.json

# Every decoder of what guests, peers and users send, FUZZ_SECONDS each, under libFuzzer.
FUZZ_SECONDS ?= 60
fuzz:
	fuzz/run.sh $(FUZZ_SECONDS)

fmt-check:
	$(CARGO) fmt --all --check

# The Vagrantfile, by Debian's vagrant; its plug-in comes with setup.
vagrant-validate:
	cd vagrant && VAGRANT_DEFAULT_PROVIDER=libvirt vagrant validate

# Licences, bans, sources and advisories of the dependencies, by cargo-deny.
deny:
	tests/deny.sh

lint: fmt-check vagrant-validate deny
	$(CARGO) clippy --locked --workspace --all-targets --features guest -- -D warnings

clean:
	$(CARGO) clean
