package bpf

// The compiler's major is pinned: Makefile's generate target names it, and CI
// compares what it makes with what is committed.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target amd64,arm64 -go-package bpf -type event -type account -type event_kind -type cause -type event_flag -type refusal -type owner -type slot -type cursor Probes probes.bpf.c -- -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target amd64,arm64 -go-package bpf -no-global-types Enrich enrich.bpf.c -- -O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter
