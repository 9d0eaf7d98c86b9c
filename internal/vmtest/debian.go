package vmtest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// cacheEnv names the directory that keeps the kernels' packages.
const cacheEnv = "TWTRACE_KERNEL_CACHE"

// keyring is what the suites' signatures are checked with. It has the keys of all
// the releases, unlike the one in /etc/apt.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// cacheDir returns the directory that keeps the kernels' packages.
func cacheDir() (string, error) {
	if dir := os.Getenv(cacheEnv); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no directory for the kernels (set %s): %w", cacheEnv, err)
	}
	return filepath.Join(dir, "twtrace", "kernels"), nil
}

// cached is a kernel in the cache: its packages lie beside this file.
type cached struct {
	Release  string   // as uname -r has it
	Packages []string // file names
}

const cachedFile = "kernel.json"

// shellPackage is for tests that run commands: one static file, which is in the suites
// of every kernel.
const shellPackage = "busybox-static"

// complete says that nothing is missing that came into the cache later.
func (c cached) complete() bool {
	return slices.ContainsFunc(c.Packages, func(p string) bool { return strings.HasPrefix(p, shellPackage+"_") })
}

// fetch returns the kernel's directory in the cache. What is not there yet comes
// from Debian; what is there stays, however old, until it is removed by hand.
// notef is told what a person may want to know about the choice.
func fetch(ctx context.Context, k Kernel, notef func(format string, args ...any)) (string, cached, error) {
	root, err := cacheDir()
	if err != nil {
		return "", cached{}, err
	}
	dir := filepath.Join(root, k.Name)
	text, err := os.ReadFile(filepath.Join(dir, cachedFile))
	if err == nil {
		var c cached
		if err := json.Unmarshal(text, &c); err != nil {
			return "", cached{}, fmt.Errorf("read %s (remove the directory to fetch the kernel again): %w", dir, err)
		}
		if c.complete() {
			return dir, c, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", cached{}, err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", cached{}, err
	}
	// Renamed once complete, so that an interrupted download leaves no half of a
	// kernel behind.
	temp, err := os.MkdirTemp(root, "."+k.Name+"-")
	if err != nil {
		return "", cached{}, err
	}
	defer os.RemoveAll(temp)
	c, err := download(ctx, k, temp, notef)
	if err != nil {
		return "", cached{}, err
	}
	text, err = json.MarshalIndent(c, "", "\t")
	if err != nil {
		return "", cached{}, err
	}
	if err := os.WriteFile(filepath.Join(temp, cachedFile), append(text, '\n'), 0o644); err != nil {
		return "", cached{}, err
	}
	if err := os.Chmod(temp, 0o755); err != nil {
		return "", cached{}, err
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(temp, dir)); err != nil {
		return "", cached{}, err
	}
	return dir, c, nil
}

// download puts the packages of the newest release that can be had into dir.
func download(ctx context.Context, k Kernel, dir string, notef func(string, ...any)) (cached, error) {
	a, err := newApt(k.Suites)
	if err != nil {
		return cached{}, err
	}
	defer a.close()
	if _, err := a.run(ctx, dir, "apt-get", "update", "-q"); err != nil {
		return cached{}, fmt.Errorf("list the packages of %s: %w", strings.Join(k.Suites, ", "), err)
	}
	list, err := a.run(ctx, dir, "apt-cache", "search", "--names-only", "^linux-.*-cloud-amd64")
	if err != nil {
		return cached{}, err
	}
	var names []string
	for line := range strings.Lines(list) {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	found := candidates(names, k.Series)
	if len(found) == 0 {
		return cached{}, fmt.Errorf("no cloud kernel %q in %s of %s", k.Series, strings.Join(k.Suites, ", "), a.mirrors.main)
	}
	// A suite lists packages that its mirrors no longer have.
	var failed []error
	for _, c := range found {
		c.packages = append(slices.Clip(c.packages), shellPackage)
		if _, err := a.run(ctx, dir, "apt-get", append([]string{"download", "-q"}, c.packages...)...); err != nil {
			err = fmt.Errorf("download %s: %w", strings.Join(c.packages, " "), err)
			notef("%v", err)
			failed = append(failed, err)
			if ctx.Err() != nil {
				break
			}
			continue
		}
		got := cached{Release: c.release}
		for _, p := range c.packages {
			files, err := filepath.Glob(filepath.Join(dir, p+"_*.deb"))
			if err != nil || len(files) != 1 {
				return cached{}, fmt.Errorf("%s was downloaded as %v: %w", p, files, cmp.Or(err, fs.ErrNotExist))
			}
			got.Packages = append(got.Packages, filepath.Base(files[0]))
		}
		return got, nil
	}
	return cached{}, fmt.Errorf("no kernel of %s can be had: %w", strings.Join(k.Suites, ", "), errors.Join(failed...))
}

// candidate is a kernel that a suite offers.
type candidate struct {
	release  string
	packages []string
}

// packageOf finds the release in a package's name. Those without three numbers
// are empty packages that depend on the newest one.
var packageOf = regexp.MustCompile(`^(linux-(?:image|binary-unsigned|binary|modules))-(\d+\.\d+\.\d+.*-cloud-amd64)(-unsigned)?$`)

// candidates returns what can be made of the packages, the newest release first.
func candidates(names []string, series string) []candidate {
	have := make(map[string]bool)
	var releases []string
	for _, name := range names {
		m := packageOf.FindStringSubmatch(name)
		if m == nil || !strings.HasPrefix(m[2], series) {
			continue
		}
		have[name] = true
		releases = append(releases, m[2])
	}
	slices.SortFunc(releases, func(a, b string) int { return compareVersions(b, a) })
	var found []candidate
	for _, r := range slices.Compact(releases) {
		// Image and modules are packages of their own since 7.1. What has been
		// signed is the same kernel, and stays in the suites longer.
		for _, packages := range [][]string{
			{"linux-binary-unsigned-" + r, "linux-modules-" + r},
			{"linux-binary-" + r, "linux-modules-" + r},
			{"linux-image-" + r + "-unsigned"},
			{"linux-image-" + r},
		} {
			missing := slices.ContainsFunc(packages, func(p string) bool { return !have[p] })
			// linux-image-R is an empty package where there is linux-binary-R.
			empty := len(packages) == 1 && (have["linux-binary-"+r] || have["linux-binary-unsigned-"+r])
			if !missing && !empty {
				found = append(found, candidate{r, packages})
			}
		}
	}
	return found
}

// compareVersions compares runs of digits as numbers and all else as text.
func compareVersions(a, b string) int {
	for a != "" && b != "" {
		na, nb := digits(a), digits(b)
		if na == 0 || nb == 0 {
			if c := cmp.Compare(a[0], b[0]); c != 0 {
				return c
			}
			a, b = a[1:], b[1:]
			continue
		}
		x, y := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
		if c := cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(x, y)); c != 0 {
			return c
		}
		a, b = a[na:], b[nb:]
	}
	return cmp.Compare(len(a), len(b))
}

// digits is how many digits s begins with.
func digits(s string) int {
	return len(s) - len(strings.TrimLeft(s, "0123456789"))
}

// apt asks Debian's own tool, which checks signatures, with sources and lists of
// its own: the machine's are neither read nor changed.
type apt struct {
	dir     string
	mirrors mirrors
}

func newApt(suites []string) (*apt, error) {
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("kernels are fetched by Debian's tools: %w", err)
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("no keys of Debian's archive; apt-get install debian-archive-keyring: %w", err)
	}
	m, err := machineMirrors()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "twtrace-apt-")
	if err != nil {
		return nil, err
	}
	a := &apt{dir, m}
	var sources strings.Builder
	for _, s := range suites {
		url := m.main
		if strings.HasSuffix(s, "-security") {
			url = m.security
		}
		fmt.Fprintf(&sources, "deb [arch=amd64 targets=Packages signed-by=%s] %s %s main\n", keyring, url, s)
	}
	err = errors.Join(
		os.MkdirAll(filepath.Join(dir, "lists", "partial"), 0o755),
		os.MkdirAll(filepath.Join(dir, "cache", "archives", "partial"), 0o755),
		os.WriteFile(filepath.Join(dir, "sources.list"), []byte(sources.String()), 0o644),
		os.WriteFile(filepath.Join(dir, "status"), nil, 0o644), // as if nothing were installed
	)
	if err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

func (a *apt) close() { _ = os.RemoveAll(a.dir) }

// run runs one of apt's commands in the directory dir and returns its stdout.
func (a *apt) run(ctx context.Context, dir, name string, args ...string) (string, error) {
	options := []string{
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(a.dir, "sources.list"),
		"-o", "Dir::Etc::sourceparts=/dev/null",
		"-o", "Dir::Etc::preferences=/dev/null",
		"-o", "Dir::Etc::preferencesparts=/dev/null",
		"-o", "Dir::State::lists=" + filepath.Join(a.dir, "lists"),
		"-o", "Dir::State::status=" + filepath.Join(a.dir, "status"),
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		// The directories are this user's own; the user _apt could not write there.
		"-o", "APT::Sandbox::User=",
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::Retries=2",
		// Suites are served long after they were last signed.
		"-o", "Acquire::Check-Valid-Until=false",
		"-o", "APT::Update::Error-Mode=any",
	}
	cmd := exec.CommandContext(ctx, name, append(options, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, firstError(errs.String()))
	}
	return out.String(), nil
}

// firstError finds apt's first error among its warnings.
func firstError(stderr string) string {
	for line := range strings.Lines(stderr) {
		if text, ok := strings.CutPrefix(line, "E: "); ok {
			return strings.TrimSpace(text)
		}
	}
	return strings.TrimSpace(stderr)
}

// mirrors are where the suites come from.
type mirrors struct{ main, security string }

// machineMirrors returns the mirrors that this machine is configured with.
func machineMirrors() (mirrors, error) {
	paths := []string{"/etc/apt/sources.list"}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob("/etc/apt/sources.list.d/" + pattern)
		if err != nil {
			return mirrors{}, err
		}
		paths = append(paths, more...)
	}
	var all strings.Builder
	for _, p := range paths {
		text, err := os.ReadFile(p)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return mirrors{}, err
		}
		all.Write(text)
		all.WriteByte('\n')
	}
	return parseMirrors(all.String()), nil
}

var sourceURL = regexp.MustCompile(`\bhttps?://[^\s\]]+`)

// parseMirrors finds the mirrors in apt's sources, of either format. A machine of
// another distribution gets Debian's own.
func parseMirrors(sources string) mirrors {
	m := mirrors{"http://deb.debian.org/debian", "http://deb.debian.org/debian-security"}
	var main, security bool
	for line := range strings.Lines(sources) {
		line, _, _ = strings.Cut(line, "#")
		if !strings.HasPrefix(line, "deb ") && !strings.HasPrefix(line, "URIs:") {
			continue
		}
		for _, url := range sourceURL.FindAllString(line, -1) {
			url = strings.TrimRight(url, "/")
			switch {
			case !main && strings.HasSuffix(url, "/debian"):
				m.main, main = url, true
			case !security && strings.HasSuffix(url, "/debian-security"):
				m.security, security = url, true
			}
		}
	}
	return m
}
