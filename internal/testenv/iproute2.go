package testenv

import (
	"fmt"
	"os/exec"
)

func probeIPRoute2() error {
	for _, tool := range []string{"ss", "nstat"} {
		if out, err := exec.Command(tool, "-V").CombinedOutput(); err != nil {
			return fmt.Errorf("no %s: %w: %s", tool, err, out)
		}
	}
	return nil
}
