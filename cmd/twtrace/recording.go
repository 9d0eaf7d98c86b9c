package main

import (
	"errors"
	"os"
	"strconv"
	"sync/atomic"

	"github.com/twtrace/twtrace/internal/recording"
)

// recording is how commands write one; stopped becomes true if it ends before what it is of.
func (a *app) recording(stopped *atomic.Bool) recording.Options {
	return recording.Options{
		Create: createForCaller,
		OnStop: func(err error) {
			stopped.Store(true)
			a.log.Warn("the recording ends here, and what it is of goes on: what was written can be read", "why", err)
		},
	}
}

// createForCaller makes a file, or empties it. Under sudo it belongs to who called sudo.
func createForCaller(name string) (*os.File, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	if err := giveToCaller(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// giveToCaller gives a file to who called sudo, if anybody did.
func giveToCaller(f *os.File) error {
	uid, errUID := strconv.Atoi(os.Getenv("SUDO_UID"))
	gid, errGID := strconv.Atoi(os.Getenv("SUDO_GID"))
	if os.Geteuid() != 0 || errUID != nil || errGID != nil {
		return nil
	}
	return f.Chown(uid, gid)
}
