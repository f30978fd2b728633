# What one types in a clone. A Rust toolchain (rust-version in Cargo.toml), a C compiler and, for the
# tests, python3 are all that has to be there; `make test` fetches the servers that it starts.

CARGO ?= cargo
# Where tests/servers/install.sh installs.
CACHE = $(or $(SALTERN_TEST_CACHE),$(HOME)/.cache/saltern-tests)
# The tests of real servers wait more than they compute: more of them at once than there are cores.
export RUST_TEST_THREADS ?= 4

.PHONY: help demo test unit kind test-full bench load compare soak fuzz lint fmt fix docs toolchain

help:
	@echo 'make demo    run saltern against a synthetic bus, into ./saltern-demo'
	@echo 'make test    install the servers that the tests need, then run all tests; what fails runs once more, alone'
	@echo 'make unit    the tests of the library alone, which start nothing'
	@echo 'make kind    the server and the tests of one kind of sink or source: make kind KIND=sqlite3'
	@echo 'make test-full    as make test, and then the stores in their other releases'
	@echo 'make lint    formatting, clippy, bans and licences of dependencies'
	@echo 'make fmt     format all code'
	@echo 'make fix     correct what clippy can correct, then format'
	@echo 'make bench   the Criterion benches'
	@echo 'make load    the load tests, with their report and plots, into target/load'
	@echo 'make compare saltern beside rsyslog, Telegraf and Salt, on the same events'
	@echo 'make soak    half an hour with faults; MINUTES=5 for five'
	@echo 'make fuzz    all fuzz targets, one after the other, ten minutes each; MINUTES=1 for one (needs cargo-fuzz)'
	@echo 'make docs    the API documentation, and a check of the links in the Markdown files'

demo: toolchain
	$(CARGO) run --release --locked -- demo

# The servers install while the tests compile.
test: toolchain
	@tests/servers/install.sh & install=$$!; \
	$(CARGO) test --workspace --locked --no-run; built=$$?; \
	wait $$install && exit $$built
	CARGO='$(CARGO)' tests/run.py --workspace --locked

unit: toolchain
	$(CARGO) test --lib --locked

# The tests of a kind are those with its name in their path. Each kind has a page.
KINDS = $(sort $(basename $(notdir $(wildcard docs/sinks/*.md docs/sources/*.md))))
kind: toolchain
	@for kind in $(KINDS); do test "$$kind" != '$(KIND)' || exit 0; done; \
	echo 'make kind: which one? make kind KIND=… with one of: $(KINDS)' >&2; exit 2
	@tests/servers/install.sh '$(KIND)' & install=$$!; \
	$(CARGO) test --lib --test it --locked --no-run; built=$$?; \
	wait $$install && exit $$built
	CARGO='$(CARGO)' tests/run.py --lib --test it --locked -- '$(KIND)'

test-full: test
	tests/servers/install.sh full
	SALTERN_TEST_KAFKA=3.9.1 CARGO='$(CARGO)' tests/run.py --test it --locked -- kafka

bench: toolchain
	$(CARGO) bench --locked

load: toolchain
	load-tests/run.sh

# The peers install while the release compiles; what could not be installed is left out.
compare: toolchain
	@tests/servers/install.sh peers & install=$$!; \
	$(CARGO) build --release --workspace --bins --locked; built=$$?; \
	wait $$install; exit $$built
	load-tests/compare.py

soak: toolchain
	load-tests/run.sh soak --minutes $(or $(MINUTES),30)

fuzz: toolchain
	CARGO='$(CARGO)' fuzz/run.sh $(or $(MINUTES),10)

lint: toolchain
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy --no-default-features --lib --bins --locked -- -D warnings
	@command -v cargo-deny >/dev/null || tests/servers/install.sh lint
	PATH="$$PATH:$(CACHE)/$$(awk '/^server .lint/ { print $$3 }' tests/servers/install.sh)/bin" \
		$(CARGO) deny check bans licenses sources

fmt: toolchain
	$(CARGO) fmt --all

fix: toolchain
	$(CARGO) clippy --fix --allow-dirty --allow-staged --workspace --all-targets --locked
	$(CARGO) fmt --all

docs: toolchain
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --locked
	$(CARGO) test --locked --test it doc_links::

# Says what is missing before a build fails on it with a page of text.
toolchain:
	@command -v $(CARGO) >/dev/null || { \
		echo 'make: there is no cargo; install Rust with rustup' >&2; exit 1; }
	@command -v "$${CC:-cc}" >/dev/null || { \
		echo "make: there is no C compiler ($${CC:-cc}), which SQLite, zstd and mimalloc are built with; on Debian and Ubuntu: apt-get install build-essential" >&2; exit 1; }
