//go:build !linux

package netlab

import (
	"errors"
	"net/netip"
)

// Lab can't be made on this system; see the Linux version.
type Lab struct{}

// Namespace can't be made on this system; see the Linux version.
type Namespace struct{}

// New reports the problems of o, or [errors.ErrUnsupported].
func New(o Options) (*Lab, error) {
	return nil, errors.Join(o.Validate(), errors.ErrUnsupported)
}

func (*Lab) Client() *Namespace        { return nil }
func (*Lab) Server() *Namespace        { return nil }
func (*Lab) ServerAddr() netip.Addr    { return netip.Addr{} }
func (*Lab) ClientAddrs() []netip.Addr { return nil }
func (*Lab) Close() error              { return nil }

func (*Lab) Set(*Namespace, ...Sysctl) error { return errors.ErrUnsupported }

func (*Namespace) Cookie() uint64                { return 0 }
func (*Namespace) Enter() error                  { return errors.ErrUnsupported }
func (*Namespace) Do(func() error) error         { return errors.ErrUnsupported }
func (*Namespace) Sysctl(string) (string, error) { return "", errors.ErrUnsupported }
func (*Namespace) Counters() (Counters, error)   { return nil, errors.ErrUnsupported }
