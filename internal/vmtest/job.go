package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/vmtest/guest"
)

// modules are those that the tests need, where they are no part of the kernel:
// links between namespaces, sock_diag, which tests compare the trace with, captures, and what
// programs on links are attached by before 6.6.
var modules = []string{"veth", "inet_diag", "tcp_diag", "af_packet", "sch_ingress", "cls_bpf"}

// packages are those with tests that ask something of the kernel, and how long
// they may take in an emulated machine.
var packages = []struct {
	dir   string
	limit time.Duration
	// detail matches the tests that have a line of the matrix each, not only where
	// they are not ok.
	detail string
}{
	{dir: "tracer", limit: 20 * time.Minute, detail: `^Test(Oracle$|(Scenarios|Purge|Stress)/)`},
	{dir: "internal/netlab", limit: 6 * time.Minute},
	{dir: "internal/clients", limit: 6 * time.Minute},
	{dir: "internal/run", limit: 20 * time.Minute},
	{dir: "internal/watch", limit: 6 * time.Minute},
	{dir: "internal/fault", limit: 3 * time.Minute},
	{dir: "internal/lab", limit: 20 * time.Minute},
	{dir: "cmd/twtrace", limit: 12 * time.Minute},
	{dir: "loadgen", limit: 12 * time.Minute},
	{dir: "internal/clock", limit: 2 * time.Minute},
}

// job is one of guest.Plan, with what only the host knows of it.
type job struct {
	guest.Job
	// check judges how a program ended. It is nil for a test binary.
	check func(answer) error
	// detail are the tests that always have a line. Nil: none.
	detail *regexp.Regexp
}

// answer is how a program ended.
type answer struct {
	code           int
	stdout, stderr string
}

// program is where the guest has twtrace.
const program = "/bin/twtrace"

// selection is a part of the jobs, for who works on it.
type selection struct {
	packages []string // directories; empty: all, and twtrace itself
	run      string   // -test.run
}

// jobsFor are the jobs of a kernel.
func jobsFor(k Kernel, s selection) []job {
	// Debian's machines have these; the tests may use all that the machine can.
	env := []string{
		"PATH=/bin", "HOME=/root", "TMPDIR=/tmp", "LANG=C",
		"TWTRACE_REQUIRE=root,netns,veth,bpf,fentry",
		"TWTRACE_DISPOSABLE=1",
	}
	answers := job{
		Job: guest.Job{
			Name: "twtrace run", Dir: "/", Env: env, Limit: 3 * time.Minute,
			Argv: []string{program, "run", "--linger", "--loops", "1", "--connections", "10"},
		},
		check: traces,
	}
	if k.Refused {
		answers.check = refuses
		return []job{answers}
	}
	var jobs []job
	if len(s.packages) == 0 {
		jobs = append(jobs, answers)
	}
	for _, p := range packages {
		if len(s.packages) > 0 && !slices.Contains(s.packages, p.dir) {
			continue
		}
		var detail *regexp.Regexp
		if p.detail != "" {
			detail = regexp.MustCompile(p.detail)
		}
		// The binary's own limit says which test hangs, init's is for the rest.
		jobs = append(jobs, job{detail: detail, Job: guest.Job{
			Name: p.dir, Dir: path.Join("/", p.dir), Env: env, Limit: p.limit + time.Minute, Merge: true,
			Argv: []string{testBinary(p.dir), "-test.v=test2json", "-test.timeout=" + p.limit.String(), "-test.run=" + s.run},
		}})
	}
	return jobs
}

func testBinary(dir string) string {
	return "/bin/" + strings.ReplaceAll(dir, "/", "-") + ".test"
}

// traces: a storm without a failure, on a kernel that twtrace is written for.
func traces(a answer) error {
	if a.code != 0 || a.stderr != "" {
		return fmt.Errorf("exit code %d, want 0 and nothing on stderr, which has %q", a.code, a.stderr)
	}
	if !strings.Contains(a.stdout, "joined by cookie") {
		return errors.New("no report of the events")
	}
	return nil
}

// refuses: exit code 4, and one line that says what the kernel lacks.
func refuses(a answer) error {
	switch {
	case a.code != 4:
		return fmt.Errorf("exit code %d, want 4; stderr %q", a.code, a.stderr)
	case a.stdout != "":
		return fmt.Errorf("stdout has %q", a.stdout)
	case !strings.HasPrefix(a.stderr, "twtrace: ") || strings.Count(a.stderr, "\n") != 1 || !strings.HasSuffix(a.stderr, "\n"):
		return fmt.Errorf("stderr has not one line, but %q", a.stderr)
	case !strings.Contains(a.stderr, "kernel") && !strings.Contains(a.stderr, "Linux 5."):
		return fmt.Errorf("stderr does not say that the kernel is to blame: %q", a.stderr)
	}
	return nil
}

// build puts into the directory to what the guest has: init, twtrace, the test
// binaries, and what these read, at the places where it is in the repository,
// whose root is given.
func build(ctx context.Context, root, to string) error {
	if err := goBuild(ctx, root, "build", filepath.Join(to, "init"), "./internal/vmtest/init"); err != nil {
		return err
	}
	if err := goBuild(ctx, root, "build", filepath.Join(to, program), "./cmd/twtrace"); err != nil {
		return err
	}
	for _, p := range packages {
		if err := goBuild(ctx, root, "test", filepath.Join(to, testBinary(p.dir)), "./"+p.dir, "-c"); err != nil {
			return err
		}
		// The working directory has to be there even if nothing is read from it.
		if err := os.MkdirAll(filepath.Join(to, p.dir), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, p.dir, ".keep"), nil, 0o644); err != nil {
			return err
		}
		data := filepath.Join(root, p.dir, "testdata")
		err := os.CopyFS(filepath.Join(to, p.dir, "testdata"), os.DirFS(data))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// goBuild makes a static binary for the guest, whatever the host is.
func goBuild(ctx context.Context, root, verb, to, pkg string, flags ...string) error {
	args := append([]string{verb, "-trimpath", "-ldflags=-s -w", "-o", to}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	var errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &errs, &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, errs.String())
	}
	return nil
}
