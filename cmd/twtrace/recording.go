package main

import (
	"github.com/twtrace/twtrace/internal/recording"
)

// recording is how commands write one.
func (a *app) recording() recording.Options {
	return recording.Options{
		Create: createForCaller,
		OnStop: func(err error) {
			a.log.Warn("the recording ends here, and what it is of goes on: what was written can be read", "why", err)
		},
	}
}
