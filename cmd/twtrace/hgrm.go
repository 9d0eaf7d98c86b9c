package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

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

// createForCaller makes a file, or empties it. Under sudo it belongs to who called sudo.
func createForCaller(name string) (*os.File, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	uid, errUID := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, errGID := strconv.Atoi(os.Getenv("SUDO_GID"))
	if os.Geteuid() != 0 || errUID != nil || errGID != nil {
		return f, nil
	}
	if err := f.Chown(uid, gid); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
