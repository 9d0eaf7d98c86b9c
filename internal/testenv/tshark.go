package testenv

import (
	"fmt"
	"os/exec"
)

func probeTshark() error {
	if out, err := exec.Command("tshark", "--version").CombinedOutput(); err != nil {
		return fmt.Errorf("no tshark: %w: %s", err, out)
	}
	return nil
}
