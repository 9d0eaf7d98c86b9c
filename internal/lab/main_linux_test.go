package lab

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"testing"

	"github.com/twtrace/twtrace/internal/clients"
)

// TestMain makes the test binary the client processes too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == clients.Command {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		defer stop()
		if err := clients.Serve(ctx, func() error { return nil }); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
