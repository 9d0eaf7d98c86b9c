package vmtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	// vmEnv names the kernels to run the tests on, or "all".
	vmEnv = "TWTRACE_VM"
	// packagesEnv names packages by their directories, runEnv is -test.run: for
	// who works on some tests.
	packagesEnv = "TWTRACE_VM_PACKAGES"
	runEnv      = "TWTRACE_VM_RUN"
	// limitEnv is how long a kernel may take, its download included, in the form of
	// time.ParseDuration. Empty: an hour.
	limitEnv = "TWTRACE_VM_LIMIT"
)

// TestKernels boots kernels with the test binaries inside. It takes minutes and
// needs QEMU and Debian's apt, so it has to be asked for.
func TestKernels(t *testing.T) {
	list := os.Getenv(vmEnv)
	if list == "" {
		t.Skipf("boots virtual machines: run `make test-vm`, or set %s to kernels (or all)", vmEnv)
	}
	kernels, err := Choose(list)
	if err != nil {
		t.Fatalf("%s: %v", vmEnv, err)
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	files := t.TempDir()
	if err := build(t.Context(), root, files); err != nil {
		t.Fatal(err)
	}
	limit, err := limitOf(os.Getenv(limitEnv))
	if err != nil {
		t.Fatalf("%s: %v", limitEnv, err)
	}
	some := selection{strings.Fields(os.Getenv(packagesEnv)), os.Getenv(runEnv)}
	columns := make([]column, len(kernels))
	// Once all kernels are done. Shown without -v too, as go test in a package's
	// own directory does.
	t.Cleanup(func() {
		fmt.Println()
		if err := writeMatrix(os.Stdout, columns); err != nil {
			t.Error(err)
		}
	})
	for i, k := range kernels {
		c := &columns[i]
		*c = column{kernel: k, jobs: jobsFor(k, some)}
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel() // a machine keeps one processor busy
			if len(c.jobs) == 0 {
				t.Fatalf("%s: no such package is run in a virtual machine: %q", packagesEnv, some.packages)
			}
			ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("not done after %v", limit))
			defer cancel()
			c.outcome, c.err = runKernel(ctx, t, k, c.jobs, files)
			if c.err != nil && ctx.Err() != nil {
				c.err = context.Cause(ctx)
			}
			if c.err != nil {
				t.Error(c.err)
			}
			if c.outcome == nil {
				return
			}
			for _, crash := range c.crashes {
				t.Logf("a boot crashed and was repeated: %s", crash)
			}
			for _, r := range c.results {
				report(t, r)
			}
		})
	}
}

// limitOf reads limitEnv.
func limitOf(text string) (time.Duration, error) {
	if text == "" {
		return time.Hour, nil
	}
	limit, err := time.ParseDuration(text)
	if err == nil && limit <= 0 {
		err = fmt.Errorf("%v leaves no time", limit)
	}
	return limit, err
}

// runKernel says on stdout what it does, since it takes its time.
func runKernel(ctx context.Context, t *testing.T, k Kernel, jobs []job, files string) (*outcome, error) {
	sayf := func(format string, args ...any) {
		fmt.Printf("%-7s %s\n", k.Name, fmt.Sprintf(format, args...))
	}
	dir, c, err := fetch(ctx, k, sayf)
	if err != nil {
		return nil, err
	}
	sayf("%s", strings.Join(c.Packages, " "))
	var paths []string
	for _, p := range c.Packages {
		paths = append(paths, filepath.Join(dir, p))
	}
	kernel, err := unpack(ctx, paths)
	if err != nil {
		return nil, err
	}
	mods, err := loadOrder(kernel.modules, modules)
	if err != nil {
		return nil, err
	}
	return runJobs(ctx, booter(k, t.TempDir(), t.ArtifactDir(), files, kernel, c.Release, mods), jobs, func(r result) {
		words := fmt.Sprintf("%-16s %-4s %4.0f s", r.job.Name, r.verdict, r.took.Seconds())
		if len(r.tests) > 0 {
			words += fmt.Sprintf("  %d passed, %d failed, %d skipped", r.count(success), r.count(failure), r.count(skipped))
		}
		if r.reason != "" {
			words += "  " + r.reason
		}
		sayf("%s", words)
	})
}

// report makes the guest's tests subtests of this one.
func report(t *testing.T, r result) {
	t.Run(r.job.Name, func(t *testing.T) {
		for _, u := range leaves(r.tests) {
			t.Run(u.name, func(t *testing.T) {
				switch u.verdict {
				case failure:
					t.Errorf("failed in the guest:\n%s", u.output)
				case skipped:
					t.Skip(u.reason)
				}
			})
		}
		if r.verdict == failure {
			t.Error(strings.TrimSpace(fmt.Sprintf("%s, after %v\n%s", r.reason, r.took, tail(r.output, 200))))
		}
	})
}
