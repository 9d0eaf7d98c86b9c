package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func probeCC() error {
	for _, name := range []string{"cc", "gcc", "clang"} {
		if path, err := exec.LookPath(name); err == nil {
			return buildsC(path)
		}
	}
	return errors.New("no C compiler: cc, gcc or clang")
}

// buildsC builds a program that needs a header.
func buildsC(compiler string) error {
	dir, err := os.MkdirTemp("", "twtrace-cc-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command(compiler, "-x", "c", "-o", filepath.Join(dir, "probe"), "-")
	cmd.Stdin = strings.NewReader("#include <stdio.h>\nint main(void) { return puts(\"\") < 0; }\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s builds nothing (install libc6-dev or its like): %w: %s", compiler, err, out)
	}
	return nil
}
