package testenv

import (
	"bytes"
	"fmt"
	"os/exec"
)

func probeDuckDB() error {
	const load = "try { require('@duckdb/node-api') } catch (err) { console.log(err.code); process.exit(1) }"
	if out, err := exec.Command("node", "-e", load).Output(); err != nil {
		return fmt.Errorf("no DuckDB (npm install @duckdb/node-api, and NODE_PATH=…/node_modules): %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
