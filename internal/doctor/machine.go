package doctor

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/twtrace/twtrace/internal/privilege"
	"github.com/twtrace/twtrace/internal/tcp"
)

// Machine is what the checks look at, and what they try.
type Machine struct {
	FS   fs.FS          // the root of the file system, of which /proc, /sys and /lib/modules are read
	Held privilege.Held // by the process
	// Release and Arch are uname's.
	Release, Arch string
	CPUs          int
	OpenFiles     uint64 // RLIMIT_NOFILE, hard: Go raises the soft limit to it
	LockedMemory  uint64 // RLIMIT_MEMLOCK, hard, in bytes

	// Trace loads and attaches all that a trace consists of, and takes it off again.
	Trace func() (tcp.Coverage, error)
	// Attach loads a program that does nothing, and attaches and detaches it.
	Attach func(t ebpf.AttachType, target string) error
	// Arguments is the number of a tracepoint's arguments, from BTF.
	Arguments func(tracepoint string) (int, error)
	// Rings makes room for n rings of a size in bytes, and frees it.
	Rings func(n, size int) error
	// Network makes two namespaces that are joined, and frees them.
	Network func() error

	symbols map[string]uint64 // see symbol
}

// read returns a file's text without its last newline.
func (m *Machine) read(path string) (string, error) {
	text, err := fs.ReadFile(m.FS, path)
	return strings.TrimSpace(string(text)), err
}

// sysctl returns a setting, by its name with dots, with one space between its parts.
func (m *Machine) sysctl(key string) (string, error) {
	text, err := m.read("proc/sys/" + strings.ReplaceAll(key, ".", "/"))
	return strings.Join(strings.Fields(text), " "), err
}

// number is a setting that is one number; ok says that it is there, and is one.
func (m *Machine) number(key string) (n int, ok bool) {
	text, err := m.sysctl(key)
	if err != nil {
		return 0, false
	}
	n, err = strconv.Atoi(text)
	return n, err == nil
}

// initialUser reports whether the process is in the initial user namespace, which maps
// every number to itself (user_namespaces(7)).
func (m *Machine) initialUser() bool {
	text, err := m.read("proc/self/uid_map")
	return err != nil || strings.Join(strings.Fields(text), " ") == "0 0 4294967295"
}

// symbol returns the address of the first of the kernel's functions that exists,
// whatever suffix the compiler gave it (tcp_v4_rcv.cold). The address is 0 for who
// may not see it (kernel/kallsyms.c); the name is there for everyone.
func (m *Machine) symbol(functions ...string) (address uint64, ok bool, err error) {
	if m.symbols == nil {
		f, err := m.FS.Open("proc/kallsyms")
		if err != nil {
			return 0, false, err
		}
		defer f.Close()
		if m.symbols, err = parseSymbols(f); err != nil {
			return 0, false, fmt.Errorf("read /proc/kallsyms: %w", err)
		}
	}
	for _, f := range functions {
		if address, ok = m.symbols[f]; ok {
			return address, true, nil
		}
	}
	return 0, false, nil
}

// parseSymbols keeps the functions that the checks ask for.
func parseSymbols(r io.Reader) (map[string]uint64, error) {
	wanted := map[string]bool{twTimerHandler: true, vethFunction: true}
	for _, c := range causes {
		for _, f := range c.functions {
			wanted[f] = true
		}
	}
	symbols := make(map[string]uint64)
	scan := bufio.NewScanner(r)
	for scan.Scan() {
		// ffffffff8141cc50 t __run_timers.part.0 [module]
		address, rest, ok := bytes.Cut(scan.Bytes(), []byte(" "))
		if !ok || len(rest) < 3 || !strings.ContainsRune("tTwW", rune(rest[0])) {
			continue
		}
		name, _, _ := bytes.Cut(rest[2:], []byte("\t"))
		base, _, _ := bytes.Cut(name, []byte("."))
		if !wanted[string(base)] {
			continue
		}
		n, err := strconv.ParseUint(string(address), 16, 64)
		if err != nil {
			return nil, err
		}
		symbols[string(base)] = max(symbols[string(base)], n)
	}
	return symbols, scan.Err()
}
