package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The texts are of proc_pid_mountinfo(5), systemd's three set-ups.
func TestMountPoint(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"unified": {"24 30 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"},
		"hybrid": {"32 24 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n" +
			"33 32 0:28 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n" +
			"34 32 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n", "/sys/fs/cgroup/unified"},
		"a space": {`24 30 0:26 / /mnt/my\040groups rw - cgroup2 none rw`, "/mnt/my groups"},
		"legacy":  {"34 32 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup2 rw,cpu\n", ""},
		"nothing": {"", ""},
		"no type": {"1 2 3\n - cgroup2 x\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := mountPoint(strings.NewReader(tt.text))
			if got != tt.want || (err != nil) != (tt.want == "") || err != nil && !errors.Is(err, ErrNoCgroup2) {
				t.Errorf("%q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

// TestTree asks for cgroups that exist on this machine; which numbers are right is known
// from the inodes of their directories, which another walk reads.
func TestTree(t *testing.T) {
	tree, err := Mounted()
	if errors.Is(err, ErrNoCgroup2) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	dirs := []string{tree.root}
	below, err := filepath.Glob(tree.root + "/*/")
	if err != nil {
		t.Fatal(err)
	}
	dirs = append(dirs, below...)
	for _, dir := range dirs {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			continue // removed meanwhile
		}
		relative := "/" + strings.Trim(strings.TrimPrefix(dir, tree.root), "/")
		for _, path := range []string{dir, relative} {
			if path == "/" {
				continue // the file system's root comes first, and is no cgroup: the next asks for it
			}
			if id, err := tree.ID(path); err != nil || id != st.Ino {
				t.Errorf("ID(%q) = %d, %v; want %d", path, id, err, st.Ino)
			}
		}
		if got := tree.Path(st.Ino); got != relative {
			t.Errorf("Path(%d) = %q, want %q", st.Ino, got, relative)
		}
	}
	if id, err := tree.ID("/"); err != nil || tree.Path(id) != "/" {
		t.Errorf("the root: %d, %v", id, err)
	}
	for _, path := range []string{"/no/such/cgroup", ".", "../cgroup", os.DevNull, filepath.Join(tree.root, "cgroup.procs"), os.TempDir()} {
		if id, err := tree.ID(path); !errors.Is(err, ErrNotCgroup) || !strings.Contains(err.Error(), path) {
			t.Errorf("ID(%q) = %d, %v", path, id, err)
		}
	}
	if got := tree.Path(1<<63 + 1); got != "" {
		t.Errorf("a cgroup that does not exist is %q", got)
	}
}

// TestGone: a cgroup that was removed keeps its name. The tree is a directory like
// any other here.
func TestGone(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "a.slice", "b.scope")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	tree := &Tree{root: root, paths: make(map[uint64]string)}
	if got := tree.Path(st.Ino); got != "/a.slice/b.scope" {
		t.Fatalf("%q", got)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	tree.walk()
	if got := tree.Path(st.Ino); got != "/a.slice/b.scope" {
		t.Errorf("after it was removed: %q", got)
	}
}
