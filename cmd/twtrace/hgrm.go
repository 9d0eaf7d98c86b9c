package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/twtrace/twtrace/internal/report"
)

// latencyFiles are where --hgrm writes to.
type latencyFiles map[string]*os.File

// openLatencies makes PREFIX-NAME.hgrm for each latency. It happens before the run, which
// gives up the privilege that it may take.
func openLatencies(prefix string) (latencyFiles, error) {
	files := make(latencyFiles)
	for _, name := range report.LatencyNames {
		f, err := createForCaller(prefix + "-" + name + ".hgrm")
		if err != nil {
			return nil, errors.Join(fmt.Errorf("--hgrm %s: %w", prefix, err), files.close())
		}
		files[name] = f
	}
	return files, nil
}

func (files latencyFiles) writers() map[string]io.Writer {
	w := make(map[string]io.Writer)
	for name, f := range files {
		w[name] = f
	}
	return w
}

func (files latencyFiles) close() error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
