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

// applets are what tests run beside the binaries of this project.
var applets = []string{"sh", "cat", "sleep", "true"}

// writeImage writes the file system with the tree on the host, the shell, the
// modules, the kernel's configuration where a distribution has it, and the plan, to
// which the modules are added.
func writeImage(to io.Writer, tree, release string, kernel files, modules []module, plan guest.Plan) error {
	m := &image{w: cpio.NewWriter(to), dirs: make(map[string]bool)}
	err := filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
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
		rel, err := filepath.Rel(tree, p)
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
	if err := m.add("bin/busybox", 0o755, kernel.shell); err != nil {
		return err
	}
	for _, a := range applets {
		if err := m.link("bin/"+a, "busybox"); err != nil {
			return err
		}
	}
	if kernel.config != nil {
		if err := m.add("boot/config-"+release, 0o644, kernel.config); err != nil {
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

// link writes a symbolic link, whose directory is there already.
func (m *image) link(name, target string) error {
	err := m.w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeSymlink | 0o777, Links: 1, Size: int64(len(target))})
	if err != nil {
		return err
	}
	_, err = m.w.Write([]byte(target))
	return err
}
