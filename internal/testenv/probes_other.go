//go:build !linux

package testenv

import "errors"

var errNotLinux = errors.New("this is not Linux")

func probeRoot() error   { return errNotLinux }
func probeNetNS() error  { return errNotLinux }
func probeVeth() error   { return errNotLinux }
func probeBPF() error    { return errNotLinux }
func probeFentry() error { return errNotLinux }
