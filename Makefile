# pvemesh: `make demo` shows the main job in real containers; `make check` and `make test` are what must pass.
SHELL := /bin/bash
HOST  := $(shell rustc -vV | sed -n 's/^host: //p')
OUT   := $(or $(CARGO_TARGET_DIR),target)/$(HOST)/release
LAB   := $(OUT)/examples/pvemesh-lab
PEERS := $(OUT)/examples/pvemesh-interop

# What the lab and the bundled C code need from Debian, and what only the tests do.
PACKAGES      := build-essential busybox-static dnsmasq-base iperf3 iproute2 iputils-ping lxc nftables uidmap zstd
TEST_PACKAGES := miniupnpd-nftables nginx
# Who leads a machine's programs to name servers: unpacked for the tests, not installed, for this machine's own names are not to change.
NAME_PACKAGES := systemd-resolved resolvconf openresolv

FUZZ_SECONDS ?= 60
FUZZ_TARGETS := noise map_stream requests policy derp disco stun portmap translate netstack dns

.PHONY: help deps test-deps build demo demo-down check test peers interop nat-matrix bench bench-peers bench-stress bench-failover bench-coord bench-relay fuzz clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

# Debian starts a server it installs; to its scripts a machine at runlevel 1 is one where it must not.
define install
@missing=$$(for p in $(1); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
if [ -n "$$missing" ]; then echo "installing from Debian:" $$missing; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $$missing; fi
endef

deps: ## install what is missing from Debian's packages (asks for nothing, prints the list first)
	$(call install,$(PACKAGES))
	@for f in /etc/subuid /etc/subgid; do grep -qs '^root:100000:65536$$' $$f || { echo "adding root:100000:65536 to $$f"; echo root:100000:65536 >> $$f; }; done

test-deps: deps
	$(call install,$(TEST_PACKAGES))
	@# Without them their tests skip themselves.
	@for p in $(NAME_PACKAGES); do test -e target/name-programs/$$p && continue; \
		new=$$(mktemp -d); fetch() { (cd $$new && apt-get download -qq $$p && dpkg -x *.deb unpacked); }; \
		if fetch || { apt-get update -qq && fetch; }; then \
			mkdir -p target/name-programs && chmod 755 $$new/unpacked && mv $$new/unpacked target/name-programs/$$p; \
		else echo "skipped: tests with $$p (Debian's packages cannot be reached from here)"; fi; rm -rf $$new; done
	@test -e target/guests/runit.tar.zst || { mkdir -p target/guests && \
		{ sh tests/inside/guests.sh target/guests 2>/dev/null || { apt-get update -qq && sh tests/inside/guests.sh target/guests; }; } || \
		{ rm -rf target/guests; echo "skipped: tests with other distributions as guests (Debian's packages cannot be reached from here)"; }; }

build: ## the release binary and the lab
	cargo build --release --bin pvemesh --example pvemesh-lab

demo: deps build ## the main job, end to end; KEEP=1 leaves the lab up
	$(LAB) demo --binary $(OUT)/pvemesh --result target/demo.json $(if $(KEEP),--keep)

demo-down: ## remove every trace of the lab
	$(LAB) down

check: ## formatting, lints, the cores alone, documentation, dependencies
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --lib --no-default-features -- -D warnings
	cargo check --lib --no-default-features
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --no-deps --document-private-items
	command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny check bans licenses sources
	@if timeout 20 git ls-remote -q https://github.com/RustSec/advisory-db HEAD >/dev/null 2>&1; then cargo deny check advisories; \
	else echo "skipped: advisories (the RustSec database cannot be reached from here)"; fi

test: test-deps build ## every test, the scenario in real containers included
	PVEMESH_BINARY=$(abspath $(OUT)/pvemesh) PVEMESH_LAB=$(abspath $(LAB)) cargo test --no-fail-fast -- $(TEST_FLAGS)

fuzz: ## each fuzz target for FUZZ_SECONDS (60), beginning with the kept corpus; what is found lies in fuzz/artifacts
	command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	@# Without a sanitizer the stable toolchain will do; what is looked for are panics, endless loops and memory without bound.
	cd fuzz && cargo fuzz build -s none
	@set -e; for target in $(FUZZ_TARGETS); do echo "fuzzing $$target for $(FUZZ_SECONDS) s"; new=$$(mktemp -d); \
		(cd fuzz && cargo fuzz run -s none $$target $$new corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1) || { rm -rf $$new; exit 1; }; \
		rm -rf $$new; done

peers: deps ## build stock Tailscale, Headscale and tailscale-rs into target/interop/bin (needs Go; about 10 minutes, once)
	cargo build --release --bin pvemesh --example pvemesh-interop
	$(PEERS) --binary $(OUT)/pvemesh --build

nat-matrix: peers ## our nodes and stock ones behind NATs of every kind: target/nat-matrix.json
	cargo test --test nat -- --nocapture matrix

interop: deps ## stock Tailscale, Headscale and tailscale-rs against this program: the matrix (needs Go; ONLY=text plays some rows)
	cargo build --release --bin pvemesh --example pvemesh-interop
	$(PEERS) --binary $(OUT)/pvemesh --result target/interop.json $(if $(ONLY),--only "$(ONLY)")

bench: deps build ## throughput and latency through the tunnel, next to the bare path of the same run
	$(LAB) bench --binary $(OUT)/pvemesh --result target/bench.json
	$(LAB) bench --binary $(OUT)/pvemesh --forwarding --result target/bench-forwarding.json

bench-peers: deps build ## our node next to tailscaled, wireguard-go, boringtun-cli and gotatun in one run: target/bench-peers.json (the first two need Go; about 25 minutes)
	@mkdir -p target/bench-peers/bin
	@if command -v go >/dev/null; then bin=$(abspath target/bench-peers/bin); \
		(cd tests/interop && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $$bin/ tailscale.com/cmd/tailscaled tailscale.com/cmd/tailscale) && \
		(cd / && GOBIN=$$bin go install golang.zx2c4.com/wireguard@latest); \
	else echo "skipped: tailscaled and wireguard-go (there is no Go here to build them)"; fi
	@for crate in boringtun-cli gotatun-cli; do cargo install --locked --quiet --root target/bench-peers $$crate || exit 1; done
	$(LAB) bench-peers --binary $(OUT)/pvemesh --peers target/bench-peers/bin --result target/bench-peers.json $(BENCH_FLAGS)

bench-stress: deps build ## a thousand peers, a heavy one beside light ones, floods of junk: target/bench-stress.json
	$(LAB) bench-stress --binary $(OUT)/pvemesh --result target/bench-stress.json $(BENCH_FLAGS)

bench-failover: ## how long a network is away when its router dies, as a distribution: target/bench-failover.json (RUNS=50)
	PVEMESH_RUNS=$(or $(RUNS),50) PVEMESH_RESULT=$(abspath target/bench-failover.json) cargo test --test node -- --ignored --exact --nocapture failover::distribution_of_failover_times

bench-coord: build ## what nodes cost the coordinator, next to Headscale if Go is there to build it
	@if [ -f tests/interop/go.mod ] && command -v go >/dev/null; then cd tests/interop && \
		go build -trimpath -ldflags '-s -w' -o $(abspath target)/headscale github.com/juanfont/headscale/cmd/headscale; \
	else echo "skipped: Headscale (there is no Go here to build it)"; fi
	cargo build --release --example pvemesh-load
	ulimit -n $$(ulimit -H -n); $(OUT)/examples/pvemesh-load --binary $(abspath $(OUT)/pvemesh) \
		--result $(abspath target)/bench-coord.json --headscale $(abspath target)/headscale $(BENCH_FLAGS)

bench-relay: build ## what relaying costs, next to stock derper if Go is there to build it
	@if [ -f tests/interop/go.mod ] && command -v go >/dev/null; then cd tests/interop && \
		go build -trimpath -ldflags '-s -w' -o $(abspath target)/derper tailscale.com/cmd/derper; \
	else echo "skipped: derper (there is no Go here to build it)"; fi
	cargo build --release --example pvemesh-relay-load
	ulimit -n $$(ulimit -H -n); $(OUT)/examples/pvemesh-relay-load --binary $(abspath $(OUT)/pvemesh) \
		--result $(abspath target)/bench-relay.json --derper $(abspath target)/derper $(BENCH_FLAGS)

clean: ## remove what was built
	-$(LAB) down
	cargo clean
