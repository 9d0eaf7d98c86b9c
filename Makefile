# Everything a newcomer needs: `make run` and `make test`. They ask for Go, make
# and root (or sudo), and nothing else; only `make generate` needs clang.

GO    ?= go
SUDO  := $(if $(filter 0,$(shell id -u)),,sudo)
# As root: with the caller's Go, caches and settings.
ASROOT := $(if $(SUDO),$(SUDO) --preserve-env=HOME$(comma)PATH$(comma)GOFLAGS$(comma)GOCACHE$(comma)GOMODCACHE$(comma)TWTRACE_REQUIRE env "PATH=$(PATH)",)
comma := ,
ARGS  ?= --linger

CLANG  := clang-14
FORMAT := clang-format-14
LINT   := $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: all build run test test-vm race lint generate check-generated cross fuzz bench gobench man install clean

all: build

build: ## the program, ./twtrace
	$(GO) build -trimpath -o twtrace ./cmd/twtrace

run: build ## the main job; ARGS="--tw-reuse 1" for another storm
	$(SUDO) ./twtrace run $(ARGS)

test: ## every test; as root also those on the real kernel
	$(ASROOT) $(GO) test -p 1 ./...

# Not as root: QEMU emulates the whole machine. A kernel's packages stay in
# ~/.cache/twtrace/kernels (or TWTRACE_KERNEL_CACHE) until they are removed. VMS
# machines run at the same time; each keeps one processor busy. A kernel that is not
# done after VMLIMIT has failed.
KERNELS ?= all
VMS     ?= 1
VMLIMIT ?= 1h
test-vm: ## the tests on other kernels, in virtual machines; KERNELS="6.1 6.12" PACKAGES=tracer RUN=TestHZ for some
	TWTRACE_VM="$(KERNELS)" TWTRACE_VM_PACKAGES="$(PACKAGES)" TWTRACE_VM_RUN="$(RUN)" TWTRACE_VM_LIMIT="$(VMLIMIT)" \
		$(GO) test -C internal/vmtest -run '^TestKernels$$' -count 1 -timeout 3h -parallel $(VMS) $(VMFLAGS)

race: ## the same under the race detector, but for what takes a minute
	$(ASROOT) $(GO) test -p 1 -race -short ./...

lint: ## formatting, vet and the linters, the import rule among them
	@test -z "$$($(GO) list -f '{{.Dir}}' ./... | xargs gofmt -l)" || { echo "run gofmt -w ."; exit 1; }
	$(FORMAT) --dry-run --Werror bpf/*.c bpf/*.h internal/oracle/*.c internal/fault/*.c bench/cref/*.c
	$(GO) vet ./...
	$(LINT) run ./...

generate: ## BPF objects and their Go side, with the pinned clang
	$(CLANG) --version | head -n 1
	$(GO) generate ./bpf ./internal/oracle ./internal/fault

check-generated: generate ## what is committed is what the compiler makes
	git diff --exit-code -- bpf internal/oracle internal/fault

# go vet looks at tests too, of the program and of all that it is made of there.
cross: ## arm64, and the program on other systems, for what needs no Linux
	GOOS=linux GOARCH=arm64 $(GO) build ./...
	@set -e; for os in darwin windows; do \
		export GOOS=$$os; \
		echo "GOOS=$$os $(GO) build ./cmd/twtrace, and vet"; \
		$(GO) build -o /dev/null ./cmd/twtrace; \
		$(GO) vet $$($(GO) list -deps -f '{{with .Module}}{{if .Main}}{{$$.ImportPath}}{{end}}{{end}}' ./cmd/twtrace); \
	done

# Each is ended by SIGINT, as Ctrl-C does: with -fuzztime Go now and then calls its own end
# a failure ("context deadline exceeded", go.dev/issue/75804). An input of some kilobytes would be made
# shorter for a minute each time it is new: ten tries are enough.
FUZZTIME ?= 20s
FUZZ     ?= ./...
fuzz: ## each fuzz target for FUZZTIME; FUZZ=./tracer for those of one package
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(GO) list -f '{{.ImportPath}} {{.Dir}}' $(FUZZ) | while read -r pkg dir; do \
		for f in $$(grep -hos '^func Fuzz[A-Za-z0-9_]*' "$$dir"/*_test.go | cut -c6-); do \
			$(GO) test -c -o "$$tmp/test" -fuzz "^$$f$$" "$$pkg"; \
			echo "$$pkg $$f"; \
			(cd "$$dir" && timeout --foreground --preserve-status -s INT $(FUZZTIME) "$$tmp/test" -test.run '^$$' \
				-test.fuzz "^$$f$$" -test.fuzzminimizetime 10x -test.fuzzcachedir "$$($(GO) env GOCACHE)/fuzz/$$pkg"); \
		done; \
	done

# BENCH names tables ("shape fin", classic, big, ...: BENCH=-help lists them); ROUNDS, how often
# each row is measured; BENCHFLAGS="-json FILE" keeps every measurement.
BENCH  ?=
ROUNDS ?= 0
bench: build ## the storm against the same one in C, and against other tools; BENCHMARKS.md
	$(ASROOT) $(GO) run ./bench -twtrace ./twtrace -rounds $(ROUNDS) $(BENCHFLAGS) $(BENCH)

# GOBENCH selects by name, as -bench does. OLD, a GOBENCHFILE of before, is compared with.
BENCHSTAT   := $(GO) run golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
GOBENCH     ?= .
GOBENCHFILE ?= gobench.txt
OLD         ?=
gobench: ## Go benchmarks of what runs often, ten times, through benchstat
	$(ASROOT) $(GO) test -p 1 -run '^$$' -bench '$(GOBENCH)' -count 10 ./... > $(GOBENCHFILE) || { cat $(GOBENCHFILE); exit 1; }
	$(BENCHSTAT) $(OLD) $(GOBENCHFILE)

man: build ## man pages into ./man
	mkdir -p man && ./twtrace man man

PREFIX ?= /usr/local
install: build man
	install -D -m 0755 twtrace $(DESTDIR)$(PREFIX)/bin/twtrace
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 0644 man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/

clean:
	rm -rf twtrace man gobench.txt
