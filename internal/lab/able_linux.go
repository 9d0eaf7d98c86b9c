package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
	"github.com/twtrace/twtrace/internal/tcp"
)

// ErrUnable says that this machine, or this process, lacks what entries ask for.
var ErrUnable = errors.New("no such experiment can be made here")

// AskedBy is all that entries ask for.
func AskedBy(entries []Entry) (asks Asks) {
	for i := range entries {
		asks |= entries[i].Asks
	}
	return asks
}

// Able tries what entries ask for, before one of them has run for a minute and then fails: a network, the server's port
// in it, and what AskedBy says. The error is ErrUnable, and what the kernel said.
func Able(ctx context.Context, asks Asks) error {
	s := &Session{ctx: ctx, opts: &Options{}, entry: &Entry{Name: "able"}, answer: &Answer{Evidence: Evidence{}}}
	if err := errors.Join(s.try(asks), s.end()); err != nil {
		return fmt.Errorf("%w: %w", ErrUnable, err)
	}
	return nil
}

func (s *Session) try(asks Asks) error {
	l, err := s.Network(netlab.Pair)
	if err != nil {
		return err
	}
	if _, err := s.Listener(l.Server(), netip.AddrPortFrom(l.ServerAddr(), serverPort), 1); err != nil {
		return err
	}
	if asks&Packets != 0 {
		if _, err := s.Capture(l.Client()); err != nil {
			return err
		}
	}
	if asks&TimeWaits == 0 {
		return nil
	}
	trace, err := s.Trace(l)
	if err != nil {
		return err
	}
	if trace.t.Coverage()[tcp.FactTWEnter] == tcp.NotObservable {
		// A TIME_WAIT is known by an address, which the kernel shows with CAP_SYSLOG (kallsyms_show_value).
		return fmt.Errorf("a trace does not see TIME_WAIT: %w", unix.EPERM)
	}
	return nil
}
