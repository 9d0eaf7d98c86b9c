package vmtest

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"

	"github.com/ulikunitz/xz"
)

// files are those of the packages that a machine needs.
type files struct {
	image   []byte
	shell   []byte            // busybox
	config  []byte            // nil: the packages have none
	modules map[string][]byte // by name, as the package has them: "veth.ko.xz"
}

// unpack reads the packages of a kernel and of the shell.
func unpack(ctx context.Context, packages []string) (files, error) {
	f := files{modules: make(map[string][]byte)}
	for _, p := range packages {
		if err := f.add(ctx, p); err != nil {
			return files{}, fmt.Errorf("unpack %s: %w", p, err)
		}
	}
	if f.image == nil {
		return files{}, fmt.Errorf("no vmlinuz in %v", packages)
	}
	if f.shell == nil {
		return files{}, fmt.Errorf("no busybox in %v", packages)
	}
	return f, nil
}

func (f *files) add(ctx context.Context, deb string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = f.addTar(out)
	if err != nil {
		_, _ = io.Copy(io.Discard, out) // or it would wait for a reader
	}
	if waited := cmd.Wait(); waited != nil {
		err = errors.Join(err, fmt.Errorf("dpkg-deb: %w: %s", waited, strings.TrimSpace(errs.String())))
	}
	return err
}

func (f *files) addTar(r io.Reader) error {
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r) // the padding
			return err
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := path.Base(h.Name)
		image, config := strings.HasPrefix(name, "vmlinuz"), strings.HasPrefix(name, "config-")
		shell := name == "busybox" && h.FileInfo().Mode()&0o111 != 0
		_, module := moduleName(name)
		if !image && !config && !shell && !module {
			continue
		}
		text, err := io.ReadAll(t)
		if err != nil {
			return err
		}
		switch {
		case image:
			f.image = text
		case config:
			f.config = text
		case shell:
			f.shell = text
		default:
			f.modules[name] = text
		}
	}
}

// moduleName returns the name that the kernel has for the module in a file.
func moduleName(file string) (name string, ok bool) {
	name, ok = strings.CutSuffix(strings.TrimSuffix(file, ".xz"), ".ko")
	return strings.ReplaceAll(name, "-", "_"), ok
}

// module is one that goes into the kernel, as an ELF file.
type module struct {
	name string
	elf  []byte
}

// loadOrder returns those of the modules named that exist, each after what it
// depends on. What does not exist is part of the kernel, or of another series.
func loadOrder(have map[string][]byte, names []string) ([]module, error) {
	files := make(map[string]string)
	for file := range have {
		name, _ := moduleName(file)
		files[name] = file
	}
	var order []module
	var add func(name string, path []string) error
	add = func(name string, path []string) error {
		file, ok := files[name]
		if !ok || slices.ContainsFunc(order, func(m module) bool { return m.name == name }) {
			return nil
		}
		if slices.Contains(path, name) {
			return fmt.Errorf("module %s depends on itself through %v", name, path)
		}
		text, err := plain(file, have[file])
		if err != nil {
			return fmt.Errorf("module %s: %w", file, err)
		}
		needs, err := depends(text)
		if err != nil {
			return fmt.Errorf("module %s: %w", file, err)
		}
		for _, n := range needs {
			if err := add(n, append(path, name)); err != nil {
				return err
			}
		}
		order = append(order, module{name, text})
		return nil
	}
	for _, name := range names {
		if err := add(name, nil); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// plain returns the contents of a file that may be compressed.
func plain(name string, text []byte) ([]byte, error) {
	if !strings.HasSuffix(name, ".xz") {
		return text, nil
	}
	r, err := xz.NewReader(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// depends reads what a module needs from the module itself: modules.dep is made
// by depmod when a package is installed, and is in none. Names are those of the
// kernel, which knows no "-".
func depends(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo")
	}
	text, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range strings.SplitSeq(string(text), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
