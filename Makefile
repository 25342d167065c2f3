# `make demo` shows Rehome at work, `make test` proves it. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Debian packages, PACKAGE or PACKAGE:COMMAND. With a command, the package counts as there when
# the command is, so that docker-ce or a compiler of your own is left alone.
#
# The first list is what the demo installs: a C compiler for the build, Docker Engine, and small
# tools. None but Docker Engine starts a service.
DEMO_PACKAGES := gcc:cc libc6-dev docker.io:dockerd iptables:iptables iproute2:ip \
	btrfs-progs:mkfs.btrfs util-linux:nsenter
# redis-tools holds the server's program too, without its service and by another name.
REDIS := redis-tools:redis-cli redis-tools:redis-server=redis-check-rdb
# What the tests need besides.
TEST_PACKAGES := $(DEMO_PACKAGES) busybox-static $(REDIS) \
	postgresql-client:psql systemd:systemd-analyze nftables:nft conntrack:conntrack
# What the comparisons need: the tools of who moves a store by hand. The package of haproxy starts
# its service, which listens on no port.
BENCH_PACKAGES := $(DEMO_PACKAGES) busybox-static $(REDIS) haproxy:haproxy \
	rsync:rsync socat:socat
# What the comparison of relays needs: the others. socket-activate comes with systemd itself.
BENCH_PROXY_PACKAGES := gcc:cc libc6-dev iproute2:ip util-linux:nsenter haproxy:haproxy \
	systemd:systemd-socket-activate
# Packages that are only unpacked into target/tools, because installing them starts a service. A
# name with a slash is a file in there: the machine's own is none that will do.
UNPACKED_PACKAGES := prometheus:promtool
UNPACKED_BENCH_PROXY_PACKAGES := nginx:usr/sbin/nginx \
	libnginx-mod-stream:usr/lib/nginx/modules/ngx_stream_module.so

# Root makes the namespaces, mounts and loop devices of the lab; building needs no root.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E)
# A config value for cargo and nextest that runs test programs as root.
COMMA := ,
RUN_AS_ROOT := $(if $(AS_ROOT),--config 'target."cfg(unix)".runner=["sudo"$(COMMA)"-E"]')
NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
CARGO_FLAGS := --workspace --locked
# The daemons with fail points, for the tests of crashes. They are built together with the test
# that runs them, so that they share what they depend on with all other tests.
FAULTY := --features migrated/failpoints,proxyd/failpoints \
	--bin migrated-faulty --bin proxyd-faulty --test matrix
# What a user has: not the programs that only measure and test.
PROGRAMS := --bin rehome --bin proxyd --bin migrated

export CARGO_TERM_COLOR ?= auto
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install what the demo needs; says first what that is
	@.ci/deps $(DEMO_PACKAGES)

.PHONY: deps-test
deps-test: ## install what the tests need; says first what that is
	@.ci/deps $(TEST_PACKAGES) --unpack $(UNPACKED_PACKAGES)

.PHONY: build
build: ## build the three programs into target/debug
	cargo build $(CARGO_FLAGS) $(PROGRAMS)

.PHONY: demo
demo: deps build ## move a database between three hosts under load, on this machine
	$(AS_ROOT) target/debug/rehome demo $(ARGS)

.PHONY: test
test: deps-test ## everything: format, lints, documentation, all tests
	@$(MAKE) lint
	@$(MAKE) docs
	@$(MAKE) test-all

.PHONY: lint
lint: ## format and lints; any finding fails
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	cargo clippy $(CARGO_FLAGS) $(FAULTY) -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --offline check bans licenses sources; fi

.PHONY: docs
docs: ## build the documentation; any warning fails
	RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --no-deps

# The programs are built with the tests, in one profile and one target directory: the
# end-to-end tests run what the unit tests have tested. The test runner comes last, so that its
# own summary ends the output.
.PHONY: test-all
test-all:
	cargo test $(CARGO_FLAGS) --doc
	cargo build $(CARGO_FLAGS) --all-targets
	cargo build $(CARGO_FLAGS) $(FAULTY)
ifeq ($(NEXTEST),yes)
	cargo nextest run $(CARGO_FLAGS) --all-targets $(RUN_AS_ROOT)
else
	RUST_TEST_THREADS=1 cargo test $(CARGO_FLAGS) --lib --bins --tests $(RUN_AS_ROOT)
endif

.PHONY: test-e2e
test-e2e: deps-test ## only the tests on lab hosts
	cargo build $(CARGO_FLAGS) --all-targets
	cargo build $(CARGO_FLAGS) $(FAULTY)
ifeq ($(NEXTEST),yes)
	cargo nextest run $(CARGO_FLAGS) --all-targets $(RUN_AS_ROOT) -E 'package(rehome-tests)'
else
	RUST_TEST_THREADS=1 cargo test -p rehome-tests --locked $(RUN_AS_ROOT)
endif

# The seed of a run that failed makes the same schedule again: make soak SEED=...
.PHONY: soak
soak: deps-test ## break a cluster under load for SECONDS (300), from SEED (a new one), and check it
	cargo build $(CARGO_FLAGS) --bins
	$(AS_ROOT) target/debug/soak --seconds $(or $(SECONDS),300) $(if $(SEED),--seed $(SEED))

.PHONY: soak-proxy
soak-proxy: ## proxies that move, reload, restart and die under load for SECONDS (3600), from SEED
	cargo build $(CARGO_FLAGS) --bins
	$(AS_ROOT) target/debug/soak-proxy --seconds $(or $(SECONDS),3600) $(if $(SEED),--seed $(SEED))

.PHONY: storm-proxy
storm-proxy: ## 20,000 clients at a parked gate, released to a slow application
	cargo build $(CARGO_FLAGS) --bins
	$(AS_ROOT) target/debug/storm-proxy $(ARGS)

# The test keeps its own time: one minute, and at most 20 s for each case.
.PHONY: test-crash
test-crash: deps-test ## a crash at every durable write, about 15 min; CASES=part of their names
	cargo build $(CARGO_FLAGS) --bin rehome --bin migrated --bin proxyd --test matrix
	cargo build $(CARGO_FLAGS) $(FAULTY)
	REHOME_CRASH_CASES='$(or $(CASES),all)' \
		cargo test $(CARGO_FLAGS) --test matrix $(RUN_AS_ROOT) -- --nocapture

.PHONY: bench
bench: bench-window bench-proxy ## measure beside what one would build or install; wants a quiet machine

# Results of both go to bench/results. `ARGS=--quick` shows in some minutes that everything works.
.PHONY: bench-window
bench-window:
	@.ci/deps $(BENCH_PACKAGES)
	cargo build $(CARGO_FLAGS) $(PROGRAMS) --bin window --release
	$(AS_ROOT) target/release/window $(ARGS)

.PHONY: bench-proxy
bench-proxy:
	@.ci/deps $(BENCH_PROXY_PACKAGES) --unpack $(UNPACKED_BENCH_PROXY_PACKAGES)
	cargo build $(CARGO_FLAGS) $(PROGRAMS) --bin proxy --release
	envoy=$$(.ci/envoy); $(AS_ROOT) target/release/proxy $${envoy:+--envoy "$$envoy"} $(ARGS)

.PHONY: install
install: ## install a release build and the units (DESTDIR is honoured)
	cargo build $(CARGO_FLAGS) $(PROGRAMS) --release
	install -D -m 755 -t $(DESTDIR)/usr/local/bin target/release/rehome target/release/proxyd target/release/migrated
	install -D -m 644 -t $(DESTDIR)/etc/systemd/system config/systemd/proxyd.service config/systemd/migrated.service

.PHONY: clean
clean: ## remove everything that was built
	cargo clean
