package vmtest

import (
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"

	"github.com/twtrace/twtrace/internal/vmtest/guest"
)

// image is the guest's first and only file system, an initramfs. It is not
// compressed: QEMU copies it at once, but unpacking it is work for an emulated
// processor.
type image struct {
	w    *cpio.Writer
	dirs map[string]bool
}

// writeImage writes the file system with the tree below files on the host, the
// modules, the kernel's configuration where a distribution has it, and the plan,
// to which the modules are added.
func writeImage(to io.Writer, files string, release string, config []byte, modules []module, plan guest.Plan) error {
	m := &image{w: cpio.NewWriter(to), dirs: make(map[string]bool)}
	err := filepath.WalkDir(files, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(files, p)
		if err != nil {
			return err
		}
		return m.add(filepath.ToSlash(rel), info.Mode().Perm(), text)
	})
	if err != nil {
		return err
	}
	for _, mod := range modules {
		name := path.Join("lib", "modules", release, mod.name+".ko")
		plan.Modules = append(slices.Clip(plan.Modules), "/"+name)
		if err := m.add(name, 0o644, mod.elf); err != nil {
			return err
		}
	}
	if config != nil {
		if err := m.add("boot/config-"+release, 0o644, config); err != nil {
			return err
		}
	}
	text, err := json.Marshal(plan)
	if err != nil {
		return err
	}
	if err := m.add(strings.TrimPrefix(guest.PlanFile, "/"), 0o644, text); err != nil {
		return err
	}
	return m.w.Close()
}

// add writes a file, after the directories that it is in: the kernel makes none.
func (m *image) add(name string, perm fs.FileMode, text []byte) error {
	var missing []string
	for dir := path.Dir(name); dir != "." && !m.dirs[dir]; dir = path.Dir(dir) {
		m.dirs[dir] = true
		missing = append(missing, dir)
	}
	for _, dir := range slices.Backward(missing) {
		if err := m.w.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755, Links: 2}); err != nil {
			return err
		}
	}
	err := m.w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | cpio.FileMode(perm), Links: 1, Size: int64(len(text))})
	if err != nil {
		return err
	}
	_, err = m.w.Write(text)
	return err
}
