// Command enlarge makes a long recording out of a real one, to measure with:
//
//	go run ./bench/enlarge -events 10000000 storm.twt long.twt
//
// It repeats the first until the second has so many events, each time as other connections: cookies, numbers,
// times, loops and source ports are shifted. The summary is left out: it is of the first.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/twtrace/twtrace/internal/recording"
	"github.com/twtrace/twtrace/internal/recording/enlarge"
)

func main() {
	n := flag.Uint64("events", 10_000_000, "how many events to write")
	flag.Parse()
	if flag.NArg() != 2 || *n == 0 {
		fmt.Fprintln(os.Stderr, "usage: enlarge [-events N] FROM TO")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), flag.Arg(1), *n); err != nil {
		fmt.Fprintln(os.Stderr, "enlarge:", err)
		os.Exit(1)
	}
}

func run(from, to string, n uint64) error {
	if same(from, to) {
		return errors.New("a recording can't be enlarged in its place")
	}
	r, err := recording.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	var stopped error
	w, err := recording.Create(to, *r.Header(), recording.Options{OnStop: func(err error) { stopped = err }})
	if err != nil {
		return err
	}
	began := time.Now()
	err = errors.Join(enlarge.Events(w, r, n), w.Close(nil))
	if err = errors.Join(err, stopped); err != nil {
		return err
	}
	fmt.Printf("%s: %d events, %d bytes, %.1f s\n", to, n, w.Size(), time.Since(began).Seconds())
	return nil
}

func same(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}
