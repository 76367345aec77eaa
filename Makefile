# Everything a newcomer needs: `make demo` and `make test`.

TARGET := $(shell rustc -vV | sed -n 's/^host: //p')
PREFIX ?= /usr/local
HOOKS_DIR ?= /usr/share/containers/oci/hooks.d

.PHONY: build node-image lint-kubernetes demo test test-faults soak mutants fuzz test-suites bench bench-counts budget test-vm vm-shell support completions packages lint-packages test-package-scripts test-packages lint-workflows lint-scripts release-check install uninstall clean

# The static release binary. An explicit target keeps the flag away from procedural macros.
build:
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --target $(TARGET)
	install -D target/$(TARGET)/release/pinfold target/dist/pinfold
	ln -sf pinfold target/dist/pinfold-runtime

# The image of the DaemonSet in packaging/kubernetes: the static programs, and nothing else.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
node-image: build
	packaging/install-packages podman
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --package pinfold-node --target $(TARGET)
	install -D target/$(TARGET)/release/pinfold-node target/dist/image/pinfold-node
	install target/dist/pinfold target/dist/image/pinfold
	podman build --file packaging/kubernetes/Containerfile --tag pinfold-node:$(VERSION) target/dist/image

# A Python of its own in $(2), with what the file $(1) names, whose every file has to have a hash that is written down there. Made
# anew where that file is another one.
python-tools = cmp -s $(1) $(2)/requirements.txt || { \
	/usr/bin/python3 -m venv --clear $(2) && $(2)/bin/pip install --quiet --require-hashes --requirement $(1) && \
	cp $(1) $(2)/requirements.txt; }

# Do the manifests in packaging/kubernetes follow Kubernetes' schemas, and agree with each other and with the program?
lint-kubernetes:
	packaging/install-packages python:ensurepip=python3-venv
	$(call python-tools,packaging/kubernetes/requirements.txt,target/tools/kubernetes-validate)
	cargo test --quiet --locked --workspace --test kubelet --no-run
	target/tools/kubernetes-validate/bin/python packaging/kubernetes/validate target/debug/pinfold-node

# Three real containers side by side, and one that is refused.
demo: build
	packaging/install-packages runc crun busybox=busybox-static
	packaging/demo target/dist/pinfold

# All tests, with the real runtimes, and those of pinfold-node.
test:
	packaging/install-packages runc crun podman conmon busybox=busybox-static strace python3 podman-compose \
		python:prometheus_client=python3-prometheus-client
	mkdir -p target/reports
	rm -f target/reports/here.jsonl
	PINFOLD_TEST_COMMIT=$$(git describe --always --dirty) PINFOLD_TEST_REPORT=$(CURDIR)/target/reports/here.jsonl \
		cargo test --locked --workspace

# Every system call of every verb fails, with each of its errors, alone and in pairs; files rot, storms pass. It prints its counts,
# and where it fails, a seed: PINFOLD_TEST_FAULTS_SEED=, and the number of a trial: PINFOLD_TEST_FAULTS_ONLY=. TIME= is how
# many seconds each verb has; in 20 of them a few hundred trials are made of some thousands.
TIME ?= 20
test-faults:
	PINFOLD_TEST_FAULTS_SECONDS=$(TIME) cargo test --locked --workspace --test faults

# The storm alone, for an hour or for SOAK= seconds.
SOAK ?= 3600
soak:
	PINFOLD_TEST_SOAK_SECONDS=$(SOAK) cargo test --locked --test faults -- soak::

# Changes the code in one small way after another, and lists the changes that no quick test sees. SHARD=1/8 for a part of
# them; what only tests on real processes see is listed as well: docs/MUTANTS.md. cargo-mutants is installed below target/tools, in
# the version that packaging/tools names.
SHARD ?= 0/1
mutants:
	packaging/install-tools target/tools cargo-mutants
	target/tools/bin/cargo-mutants mutants --jobs 1 --timeout 120 --shard $(SHARD) --output target/mutants \
		--file 'src/placement/*.rs' --file 'src/claims/*.rs' --file 'src/pools/**/*.rs' -- --lib

# The test suites of runc and crun, directly and through pinfold-runtime: what they find has to be the same.
test-suites:
	tests/suites/run

# Random inputs for all that parses what others write, for so many seconds each. cargo-fuzz is installed below fuzz/target.
FUZZ_SECONDS ?= 60
fuzz:
	fuzz/run $(FUZZ_SECONDS)

# What a start and an end cost, beside an empty program and under runc and crun: a table with every target, and
# target/bench/bench.json with charts. Some minutes; ROUNDS= for another number of runs of each.
ROUNDS ?= 200
# Built as `make test` builds: what of the crates is turned on depends on which packages are built together.
BENCH = cargo build --quiet --locked --workspace --example start && target/debug/examples/start
bench: build
	packaging/install-packages runc crun valgrind strace
	cargo bench --locked --bench choose
	$(BENCH) --rounds $(ROUNDS) target/dist/pinfold

# Instructions of a start's parts, by callgrind. gungraun-runner, of the version that Cargo.lock has of the library, is
# installed below target/tools.
bench-counts:
	packaging/install-packages valgrind
	version=$$(sed -n '/^name = "gungraun"/{n;s/^version = "\(.*\)"/\1/p}' Cargo.lock); \
	target/tools/bin/gungraun-runner --version 2>/dev/null | grep -qF " $$version" || \
		cargo install --locked --root target/tools --version "$$version" gungraun-runner
	GUNGRAUN_RUNNER=$(CURDIR)/target/tools/bin/gungraun-runner cargo bench --locked --bench counts --bench hook

# The short form: instructions and system calls, which are the same each time. Fails where they are 5 % over what
# benches/budget.json says; UPDATE=1 records what they are now.
budget: build
	packaging/install-packages valgrind strace
	$(BENCH) --counts benches/budget.json $(if $(call is_set,$(UPDATE)),--update) target/dist/pinfold

# The demo and the tests on real parts in a machine under qemu: Debian with systemd and cgroup v2. Slow: it is emulated.
# SUITE=bookworm or sid for others, LEGACY=1 for cgroup v1 on bookworm, BRIEF=1 for the part that shows most, TIMEOUT= for
# another number of seconds.
SUITE ?= trixie
is_set = $(filter-out 0 no,$(1))
IN_MACHINE = --suite $(SUITE) $(if $(call is_set,$(LEGACY)),--legacy)
test-vm:
	tests/vm/test $(IN_MACHINE) $(if $(call is_set,$(BRIEF)),--brief) $(if $(TIMEOUT),--timeout $(TIMEOUT))

# A root shell in that machine, with what `make build` made in /share.
vm-shell:
	tests/vm/shell $(IN_MACHINE)

# docs/SUPPORT.md, from the reports that `make test` and `make test-vm` left in target/reports.
support:
	cargo run --quiet --locked --example support-table -- target/reports/*.jsonl >target/SUPPORT.md
	mv target/SUPPORT.md docs/SUPPORT.md

# Completions of bash, zsh and fish.
completions:
	cargo run --quiet --locked --example generate -- target/dist/completions

# For each target a .deb and an .rpm of each program, and a tarball of both, and SBOMs, below target/packages. A release names both architectures; Debian's own
# cargo has the library of this machine's alone.
TARGETS ?= $(TARGET)
packages: completions
	packaging/install-packages $(if $(findstring aarch64,$(TARGETS)), \
		"aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
	packaging/packages target/packages $(TARGETS)

# What Debian's and Fedora's checkers say of those packages; packaging/deb/lintian-overrides and packaging/rpmlint.toml explain
# what they are not asked about.
lint-packages:
	packaging/install-packages lintian rpmlint rpm
	lintian --fail-on error,warning target/packages/*.deb
	rpmlint --config packaging/rpmlint.toml target/packages/*.rpm

# What the scripts in those packages do: installed, upgraded, removed and purged, by dpkg and by rpm, in a root that is thrown away,
# with dash and with bash, with systemd and without. As root.
test-package-scripts:
	packaging/install-packages rpm dash deb-systemd-invoke=init-system-helpers systemctl=systemd
	tests/packages/scripts

# The .deb files in the test machine: installed, set up, used, upgraded under a container, downgraded, removed, purged.
test-packages: completions
	tests/packages/run

# Do the workflows follow their schema? actionlint, which knows more, looks at them where it is installed.
lint-workflows:
	packaging/install-packages python:ensurepip=python3-venv
	$(call python-tools,packaging/workflows.txt,target/tools/check-jsonschema)
	target/tools/check-jsonschema/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	if command -v actionlint >/dev/null; then actionlint; else echo "there is no actionlint here: the schema alone"; fi

# What shellcheck says of every script.
lint-scripts:
	packaging/install-packages shellcheck
	shellcheck --external-sources --severity warning $$(git grep -lE '^#!(/usr)?/bin/(env )?(ba)?sh')

# What has to hold before a release; as root. TAG=v1.2.3 for the tag that it is to be of, MACHINE=1 for `make test-packages` as
# well, which is slow.
release-check:
	packaging/release-check $(if $(call is_set,$(MACHINE)),--machine) $(TAG)

# The binary, the manual page, completions, and the hooks for podman and CRI-O with the binary's real path.
install: build completions
	install -D target/dist/pinfold $(DESTDIR)$(PREFIX)/bin/pinfold
	ln -sf pinfold $(DESTDIR)$(PREFIX)/bin/pinfold-runtime
	install -D -m 644 docs/pinfold.8 $(DESTDIR)$(PREFIX)/share/man/man8/pinfold.8
	install -D -m 644 target/dist/completions/pinfold.bash \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/pinfold
	install -D -m 644 target/dist/completions/_pinfold $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_pinfold
	install -D -m 644 target/dist/completions/pinfold.fish \
		$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/pinfold.fish
	install -d $(DESTDIR)$(HOOKS_DIR)
	for stage in createRuntime poststop; do \
		sed 's,/usr/local/bin/pinfold,$(PREFIX)/bin/pinfold,' hooks/pinfold-$$stage.json \
			>$(DESTDIR)$(HOOKS_DIR)/pinfold-$$stage.json || exit 1; \
	done

# Without the program nobody gives the host's units back the CPUs that they are kept off, until the next boot: stop what runs
# `pinfold reconcile` before.
uninstall:
	[ -n "$(DESTDIR)" ] || [ ! -x $(PREFIX)/bin/pinfold ] || [ ! -d /etc/kcm/pools ] || \
		$(PREFIX)/bin/pinfold reconcile >/dev/null || echo "not all could be put back: see above"
	[ -n "$(DESTDIR)" ] || [ ! -x $(PREFIX)/bin/pinfold ] || $(PREFIX)/bin/pinfold reconcile --let-host-in
	rm -f $(DESTDIR)$(HOOKS_DIR)/pinfold-createRuntime.json $(DESTDIR)$(HOOKS_DIR)/pinfold-poststop.json
	rm -f $(DESTDIR)$(PREFIX)/bin/pinfold $(DESTDIR)$(PREFIX)/bin/pinfold-runtime $(DESTDIR)$(PREFIX)/share/man/man8/pinfold.8
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/pinfold
	rm -f $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_pinfold
	rm -f $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/pinfold.fish

clean:
	cargo clean
