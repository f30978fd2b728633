# What one types in a clone. A Rust toolchain (rust-version in Cargo.toml), a C compiler and, for the
# tests, python3 are all that has to be there; `make test` fetches the servers that it starts.

CARGO ?= cargo
# The tests of real servers wait more than they compute: more of them at once than there are cores.
export RUST_TEST_THREADS ?= 4

.PHONY: help demo test bench load compare soak fuzz lint docs toolchain

help:
	@echo 'make demo    run saltern against a synthetic bus, into ./saltern-demo'
	@echo 'make test    install the servers that the tests need, then run all tests; what fails runs once more, alone'
	@echo 'make lint    formatting, clippy, bans and licences of dependencies'
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
	@if command -v cargo-deny >/dev/null; then \
		echo '$(CARGO) deny check bans licenses sources'; \
		$(CARGO) deny check bans licenses sources; \
	else \
		echo 'make lint: cargo-deny is not installed, so bans, licences and sources were not checked (cargo install cargo-deny)'; \
	fi

docs: toolchain
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --locked
	$(CARGO) test --locked --test it doc_links::

# Says what is missing before a build fails on it with a page of text.
toolchain:
	@command -v $(CARGO) >/dev/null || { \
		echo 'make: there is no cargo; install Rust with rustup' >&2; exit 1; }
	@command -v "$${CC:-cc}" >/dev/null || { \
		echo "make: there is no C compiler ($${CC:-cc}), which SQLite, zstd and mimalloc are built with; on Debian and Ubuntu: apt-get install build-essential" >&2; exit 1; }
