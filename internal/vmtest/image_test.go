package vmtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"

	"github.com/twtrace/twtrace/internal/vmtest/guest"
)

// TestWriteImage reads the image back, and holds it to what the kernel asks of an
// initramfs: each directory comes before what is in it.
func TestWriteImage(t *testing.T) {
	tree := t.TempDir()
	for name, text := range map[string]string{"init": "I", "bin/a.test": "A", "pkg/testdata/deep/x": "X"} {
		p := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	jobs := []guest.Job{{Name: "a", Argv: []string{"/bin/a.test"}, Limit: time.Minute}}
	err := writeImage(&b, tree, "1.2.3", files{config: []byte("C"), shell: []byte("S")}, []module{{"one", []byte("M1")}, {"two", []byte("M2")}}, guest.Plan{Jobs: jobs})
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	dirs := map[string]bool{".": true}
	for r := cpio.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !dirs[filepath.Dir(h.Name)] {
			t.Errorf("%s comes before its directory", h.Name)
		}
		if h.Mode&^cpio.ModePerm == cpio.TypeDir {
			dirs[h.Name] = true
			continue
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(text) + h.Linkname
		if h.Name == "init" && h.Mode.Perm()&0o100 == 0 {
			t.Errorf("init has mode %v", h.Mode)
		}
	}
	var plan guest.Plan
	if err := json.Unmarshal([]byte(got[strings.TrimPrefix(guest.PlanFile, "/")]), &plan); err != nil {
		t.Fatal(err)
	}
	if want := []string{"/lib/modules/1.2.3/one.ko", "/lib/modules/1.2.3/two.ko"}; !slices.Equal(plan.Modules, want) {
		t.Errorf("modules %v, want %v", plan.Modules, want)
	}
	if len(plan.Jobs) != 1 || plan.Jobs[0].Name != "a" || plan.Jobs[0].Limit != time.Minute {
		t.Errorf("jobs %+v", plan.Jobs)
	}
	delete(got, strings.TrimPrefix(guest.PlanFile, "/"))
	want := map[string]string{
		"init": "I", "bin/a.test": "A", "pkg/testdata/deep/x": "X", "boot/config-1.2.3": "C",
		"bin/busybox": "S", "bin/sh": "busybox", "bin/cat": "busybox", "bin/sleep": "busybox", "bin/true": "busybox",
		"lib/modules/1.2.3/one.ko": "M1", "lib/modules/1.2.3/two.ko": "M2",
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
