// Command twtrace records the end of TCP connections: it runs a storm of short
// ones, or watches others', and says why each that failed did so.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// The first signal ends the run with a report; after that a second one ends
	// the process, which takes everything it made along.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	a := newApp(os.Stdout, os.Stderr)
	a.dropPrivilege = true
	os.Exit(a.main(ctx, os.Args[1:]))
}
