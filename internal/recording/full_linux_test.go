package recording_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/recording"
)

// mounted returns a directory that is the root of a new file system, which nobody else sees and which is gone
// with the test: it is mounted nowhere. A machine that does not let us skips the test.
func mounted(t *testing.T, fs string, options map[string]string) string {
	t.Helper()
	fd, err := unix.Fsopen(fs, unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skipf("fsopen %s: %v", fs, err)
	}
	defer unix.Close(fd)
	for key, value := range options {
		if err := unix.FsconfigSetString(fd, key, value); err != nil {
			t.Fatalf("%s: %s=%s: %v", fs, key, value, err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		t.Fatalf("make a %s: %v", fs, err)
	}
	dir, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("fsmount %s: %v", fs, err)
	}
	t.Cleanup(func() { _ = unix.Close(dir) })
	return fmt.Sprintf("/proc/self/fd/%d", dir)
}

// loopDevice is a block device of so many bytes, in a file.
func loopDevice(t *testing.T, size int64) string {
	t.Helper()
	image, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if err := image.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", image.Name()).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v %s", err, out)
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		t.Skipf("a free loop device: %v", err)
	}
	name := fmt.Sprintf("/dev/loop%d", n)
	loop, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = loop.Close() })
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(image.Fd())); err != nil {
		t.Skipf("loop device: %v", err)
	}
	// It goes with its last user: the file system.
	status := unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}
	if err := unix.IoctlLoopSetStatus64(int(loop.Fd()), &status); err != nil {
		t.Fatal(err)
	}
	return name
}

// writeUntilFull hands over more than there is room for, and goes on for a while. It returns how
// many events it handed over.
func writeUntilFull(t *testing.T, name string, want error) int {
	t.Helper()
	stops := make(chan error, 100)
	w, err := recording.Create(name, recording.Header{Host: "example"}, recording.Options{OnStop: func(err error) { stops <- err }})
	if err != nil {
		t.Fatal(err)
	}
	n, stopped := 0, 0
	for stopped < 20 {
		events := storm(2000)
		for i := range events {
			// What can't be compressed.
			events[i].Seq = uint64(n + i)
			events[i].Reason, events[i].Ticks = uint32(i)*2654435761, uint32(n+i)*2246822519
		}
		w.Events(events)
		n += len(events)
		if n > 10e6 {
			t.Fatal("it was never full")
		}
		if len(stops) > 0 {
			stopped++ // the run goes on
		}
	}
	if err := w.Close(json.RawMessage(`{"whole":"summary"}`)); err != nil {
		t.Errorf("close: %v", err)
	}
	if len(stops) != 1 {
		t.Errorf("OnStop was called %d times", len(stops))
	}
	if err := <-stops; !errors.Is(err, want) {
		t.Errorf("stopped by %v, want %v", err, want)
	}
	return n
}

// stoppedWell fails the test unless a file has all events up to the last flush, and says why there are
// no more.
func stoppedWell(t *testing.T, name string, handed int, want error) {
	t.Helper()
	events, c, _ := readAll(t, name)
	if !c.Complete() {
		t.Errorf("what is there is not whole: %+v", c)
	}
	if c.Footer == nil || c.Footer.Stopped == nil {
		t.Fatalf("footer %+v", c.Footer)
	}
	stop := c.Footer.Stopped
	if stop.MonoNS == 0 || !strings.Contains(stop.Cause, want.Error()) || string(c.Footer.Summary) != `{"whole":"summary"}` {
		t.Errorf("footer %+v, stopped %+v", c.Footer, stop)
	}
	inOrder(t, events, handed-int(stop.Dropped["events"]))
	if len(events) == 0 || len(events) == handed {
		t.Errorf("%d of %d events", len(events), handed)
	}
}

func TestDiskFull(t *testing.T) {
	t.Run("tmpfs", func(t *testing.T) {
		name := filepath.Join(mounted(t, "tmpfs", map[string]string{"size": "2m"}), "a.twt")
		n := writeUntilFull(t, name, unix.ENOSPC)
		stoppedWell(t, name, n, unix.ENOSPC)
	})
	t.Run("ext4", func(t *testing.T) {
		name := filepath.Join(mounted(t, "ext4", map[string]string{"source": loopDevice(t, 16<<20)}), "a.twt")
		n := writeUntilFull(t, name, unix.ENOSPC)
		stoppedWell(t, name, n, unix.ENOSPC)
	})
	t.Run("too full to begin", func(t *testing.T) {
		dir := mounted(t, "tmpfs", map[string]string{"size": "4k"})
		if err := os.WriteFile(filepath.Join(dir, "other"), make([]byte, 4096), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := recording.Create(filepath.Join(dir, "a.twt"), recording.Header{}, recording.Options{}); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("next file", func(t *testing.T) {
		dir := mounted(t, "tmpfs", map[string]string{"size": "3m"})
		stops := make(chan error, 10)
		w, err := recording.Create(filepath.Join(dir, "a.twt"), recording.Header{}, recording.Options{
			RotateSize: 500 << 10, OnStop: func(err error) { stops <- err },
		})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for len(stops) == 0 {
			if w.RotationDue() {
				w.Rotate()
			}
			events := storm(2000)
			for i := range events {
				events[i].Seq, events[i].Reason = uint64(n+i), uint32(n+i)*2654435761
			}
			w.Events(events)
			n += len(events)
		}
		if err := w.Close(nil); err != nil {
			t.Error(err)
		}
		names := w.Names()
		if len(names) < 2 {
			t.Errorf("files %q", names)
		}
		_, c, _ := readAll(t, names[len(names)-1])
		if c.Footer == nil || c.Footer.Stopped == nil {
			t.Fatalf("footer %+v", c.Footer)
		}
		inOrder(t, parts(t, names), n-int(c.Footer.Stopped.Dropped["events"]))
	})
}

// TestFileTooLong: write(2) fails in the middle of a segment with EFBIG, and SIGXFSZ, for any file
// of this process that grows beyond the limit.
func TestFileTooLong(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	const limit = 300_001
	name := filepath.Join(t.TempDir(), "a.twt")
	n := func() int {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limit, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
				t.Error(err)
			}
		}()
		return writeUntilFull(t, name, unix.EFBIG)
	}()
	// A limit leaves no room for a footer either way, if the file is just as long: then it says nothing.
	events, c, _ := readAll(t, name)
	if c.Cut != 0 || len(c.Damage) != 0 || len(events) == 0 || len(events) >= n {
		t.Errorf("%d of %d events, %+v", len(events), n, c)
	}
	inOrder(t, events, len(events))
	if c.Footer != nil {
		stoppedWell(t, name, n, unix.EFBIG)
	}
}

// TestNoFile: what can't be written at a place is refused at once.
func TestNoFile(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, tt := range []struct {
		what   string
		create func(string) (*os.File, error)
	}{
		{"a pipe", func(string) (*os.File, error) { return w, nil }},
		{"a file that is read only", func(string) (*os.File, error) { return os.Open(os.DevNull) }},
		{"no file", func(name string) (*os.File, error) { return os.Create(filepath.Join(name, "no", "such", "directory")) }},
	} {
		if _, err := recording.Create(filepath.Join(t.TempDir(), "a.twt"), recording.Header{}, recording.Options{Create: tt.create}); err == nil {
			t.Errorf("%s: no error", tt.what)
		}
	}
	// What has no disk behind it is written to all the same.
	rec, err := recording.Create(os.DevNull, recording.Header{}, recording.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rec.Events(storm(100))
	if err := rec.Close(nil); err != nil {
		t.Error(err)
	}
}
