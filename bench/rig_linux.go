package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
)

//go:embed cref/cref.c
var crefSource []byte

// rig is what rows are run with.
type rig struct {
	dir     string // of our own, removed at the end
	twtrace string
	cref    string // "": there is no C compiler
	random  *rand.Rand
}

// newRig finds the program to measure, and builds the reference if it can.
func newRig(twtrace string) (r *rig, err error) {
	r = &rig{random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}
	if r.twtrace, err = filepath.Abs(twtrace); err != nil {
		return nil, err
	}
	if _, err := os.Stat(r.twtrace); err != nil {
		return nil, fmt.Errorf("%w: run `make build` first, or name it with -twtrace", err)
	}
	if r.dir, err = os.MkdirTemp("", "twtrace-bench-"); err != nil {
		return nil, err
	}
	if err := r.buildCref(); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *rig) close() error { return os.RemoveAll(r.dir) }

// compilers are tried in this order.
var compilers = []string{"cc", "gcc", "clang"}

func compiler() string {
	for _, name := range compilers {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

func (r *rig) buildCref() error {
	cc := compiler()
	if cc == "" {
		return nil
	}
	source, program := filepath.Join(r.dir, "cref.c"), filepath.Join(r.dir, "cref")
	if err := os.WriteFile(source, crefSource, 0o600); err != nil {
		return err
	}
	out, err := exec.Command(cc, "-O2", "-Wall", "-Werror", "-o", program, source).CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the C reference: %w: %s", err, out)
	}
	r.cref = program
	return nil
}

// needCC is the need of rows that run the C reference.
const needCC = "a C compiler (" + "cc, gcc or clang)"

// able returns the rows that can be run here, and says why the others can't.
func (r *rig) able(rows []row) (able []row, missing []string) {
	for _, row := range rows {
		var lacks []string
		for _, need := range row.needs {
			_, err := exec.LookPath(need)
			if need == needCC && r.cref != "" || need != needCC && err == nil {
				continue
			}
			lacks = append(lacks, need)
		}
		if len(lacks) > 0 {
			missing = append(missing, fmt.Sprintf("%s (not installed: %s)", row.name, strings.Join(lacks, ", ")))
			continue
		}
		able = append(able, row)
	}
	return able, missing
}

// oneLimit bounds a measurement: the longest, the classic storm of one that searches for ports,
// takes some minutes.
const oneLimit = 20 * time.Minute

// one measures a row once.
func (r *rig) one(ctx context.Context, row *row) (m measurement, err error) {
	ctx, cancel := context.WithTimeout(ctx, oneLimit)
	defer cancel()
	busyBefore, err := busy()
	if err != nil {
		return m, err
	}
	begun := time.Now()
	m, err = row.run(ctx, r)
	if err != nil {
		return m, err
	}
	whole := time.Since(begun)
	busyAfter, err := busy()
	if err != nil {
		return m, err
	}
	m.sumUp()
	m.Whole = whole.Seconds()
	others := busyAfter - busyBefore - time.Duration((m.User+m.System)*float64(time.Second))
	m.Others = min(1, max(0, others.Seconds()/(whole.Seconds()*float64(runtime.NumCPU()))))
	return m, nil
}

// served runs a client against a server, each in its part of a fresh network, and adds
// up what both used. The client prints what parse reads.
func (r *rig) served(ctx context.Context, o netlab.Options, server, client part, parse func([]byte) ([]loop, error)) (m measurement, err error) {
	lab, err := netlab.New(o)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	s, err := start(ctx, lab.Server(), server)
	if err != nil {
		return m, err
	}
	ready := s.listening(server.port, server.sockets)
	if ready == nil {
		ready = m.run(ctx, lab.Client(), client, parse)
	}
	if err := errors.Join(ready, s.stop()); err != nil {
		return m, err
	}
	m.add(s.used)
	m.ServerCPU = s.used.user.Seconds() + s.used.system.Seconds()
	return m, nil
}

// part is one end's command.
type part struct {
	argv  []string
	flags uintptr
	// Of a server: where it listens, and with how many sockets.
	port, sockets int
	// countOpen: have an eye on how many connections are open at once.
	countOpen bool
}

// run runs a command to its end and adds what it used and what it says of the storm.
func (m *measurement) run(ctx context.Context, ns *netlab.Namespace, client part, parse func([]byte) ([]loop, error)) error {
	p, err := start(ctx, ns, client)
	if err != nil {
		return err
	}
	if err := p.wait(); err != nil {
		return err
	}
	m.add(p.used)
	m.Loops, err = parse(p.stdout.Bytes())
	return err
}

// alone runs a command that makes its own network.
func (r *rig) alone(ctx context.Context, what part) (m measurement, err error) {
	host, err := netlab.Own()
	if err != nil {
		return m, err
	}
	defer host.Close()
	err = m.run(ctx, host, what, parseTwtrace)
	return m, err
}

// machine is where the measurements are of.
type machine struct {
	Kernel     string    `json:"kernel"`
	Arch       string    `json:"arch"`
	Processors int       `json:"processors"`
	Go         string    `json:"go"`
	C          string    `json:"c"`
	Load       float64   `json:"load"` // average of the minute before
	Started    time.Time `json:"started"`
}

func thisMachine(ctx context.Context) machine {
	m := machine{Arch: runtime.GOARCH, Processors: runtime.NumCPU(), Go: runtime.Version(), C: "no C compiler", Started: time.Now().UTC()}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	if cc := compiler(); cc != "" {
		out, err := exec.CommandContext(ctx, cc, "--version").Output()
		if line, _, _ := strings.Cut(string(out), "\n"); err == nil {
			m.C = line
		}
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		minute, _, _ := strings.Cut(string(text), " ")
		m.Load, _ = strconv.ParseFloat(minute, 64)
	}
	return m
}

func (m machine) String() string {
	return fmt.Sprintf("%s: Linux %s, %s, %d processors, %s, %s; load average before %.2f",
		m.Started.Format(time.DateOnly), m.Kernel, m.Arch, m.Processors, m.Go, m.C, m.Load)
}
