package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that a caller can decide on, with [errors.Is].
var (
	// ErrNoCgroup2: cgroup v2 is not mounted.
	ErrNoCgroup2 = errors.New("cgroup v2 is not mounted")
	// ErrNotCgroup: the path is not the directory of a cgroup.
	ErrNotCgroup = errors.New("not a cgroup (v2)")
)

// rescan is how long the tree is not walked again for an id that was not in it.
const rescan = time.Second

// maxPaths bounds what a Tree remembers of cgroups, also of those that are gone.
const maxPaths = 1 << 16

// Tree is a hierarchy of cgroups. It is not safe for use by several goroutines.
type Tree struct {
	root   string // where it is mounted
	paths  map[uint64]string
	walked time.Time
}

// Mounted returns the hierarchy of cgroup v2 as this process sees it. The error is
// ErrNoCgroup2, or of reading /proc.
func Mounted() (*Tree, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup v2: %w", err)
	}
	defer f.Close()
	root, err := mountPoint(f)
	if err != nil {
		return nil, err
	}
	return &Tree{root: root, paths: make(map[uint64]string)}, nil
}

// mountPoint finds cgroup2 in a text like /proc/PID/mountinfo (proc_pid_mountinfo(5)).
func mountPoint(mountinfo io.Reader) (string, error) {
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if ok && strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return unescape.Replace(fields[4]), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	return "", ErrNoCgroup2
}

// unescape undoes what the kernel does to a path there (show_mountinfo, mangle).
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// ID returns the number of the cgroup at a path: that of its directory, or below
// the root of the hierarchy, as /proc/PID/cgroup has it. The error is ErrNotCgroup.
func (t *Tree) ID(path string) (uint64, error) {
	places := []string{path}
	if !strings.HasPrefix(path, ".") { // which is where the caller is
		places = append(places, filepath.Join(t.root, path))
	}
	for _, p := range places {
		var fs unix.Statfs_t
		var st unix.Stat_t
		if unix.Statfs(p, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC &&
			unix.Stat(p, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return st.Ino, nil
		}
	}
	return 0, fmt.Errorf("%s: %w: want a directory below %s", path, ErrNotCgroup, t.root)
}

// Path returns the path of a cgroup below the root of the hierarchy, "/" for the
// root itself; "" if there is none with this number, or it is too new: for a second
// after it was read the tree is not read again.
func (t *Tree) Path(id uint64) string {
	path, ok := t.paths[id]
	if !ok && time.Since(t.walked) >= rescan {
		t.walk()
		path = t.paths[id]
	}
	return path
}

// walk reads the tree. A cgroup that was removed keeps its path: its connections
// outlive it in TIME_WAIT.
func (t *Tree) walk() {
	if len(t.paths) > maxPaths {
		clear(t.paths)
	}
	// What can't be read, or is removed meanwhile, stays without a name.
	_ = filepath.WalkDir(t.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			t.paths[st.Ino] = "/" + strings.TrimPrefix(strings.TrimPrefix(path, t.root), "/")
		}
		return nil
	})
	t.walked = time.Now()
}
