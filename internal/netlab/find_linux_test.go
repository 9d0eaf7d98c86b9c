package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/testenv"
)

// sleeper is a process in a network namespace of its own, and the file of that.
func sleeper(t *testing.T) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
}

func TestFind(t *testing.T) {
	testenv.Require(t, testenv.Root, testenv.NetNS)
	path := sleeper(t)
	ns, err := Find(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	want, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	var got string
	err = ns.Do(func() (err error) {
		got, err = os.Readlink(currentNetNS)
		return err
	})
	if err != nil || got != want {
		t.Errorf("Do is in %s (%v), want %s", got, err, want)
	}
	own, err := Own()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if ns.Cookie() == 0 || ns.Cookie() == own.Cookie() {
		t.Errorf("cookie %d, own %d", ns.Cookie(), own.Cookie())
	}
	again, err := Find("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Cookie() != own.Cookie() {
		t.Errorf("/proc/self/ns/net has the cookie %d, own %d", again.Cookie(), own.Cookie())
	}

	all, err := FindAll()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[uint64]int)
	for _, n := range all {
		seen[n.Cookie()]++
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, n := range []*Namespace{ns, own} {
		if seen[n.Cookie()] != 1 {
			t.Errorf("FindAll has %d %d times", n.Cookie(), seen[n.Cookie()])
		}
	}
	if all[0].Cookie() != own.Cookie() {
		t.Errorf("the own namespace %d is not the first: %v", own.Cookie(), seen)
	}
}

func TestFindNone(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", "/no/such/file", os.DevNull, fifo, t.TempDir(), "/proc/self/ns/mnt"} {
		ns, err := Find(path)
		if !errors.Is(err, ErrNoNamespace) || ns != nil || !strings.Contains(err.Error(), path) {
			t.Errorf("Find(%q) = %v, %v", path, ns, err)
		}
	}
}
