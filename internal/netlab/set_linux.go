package netlab

import (
	"errors"
	"fmt"
)

// Set sets sysctls in one of the lab's namespaces alone, the client's or the server's. The errors are those of
// New about settings. A lab on Host is never changed.
func (l *Lab) Set(ns *Namespace, set ...Sysctl) error {
	if err := (Options{Sysctls: set}).Validate(); err != nil {
		return err
	}
	if ns == nil || ns.host || ns != l.client && ns != l.server {
		return fmt.Errorf("set sysctls in a namespace that the lab has not made: %w", ErrHostSetting)
	}
	host, err := hostNamespace()
	if err != nil {
		return err
	}
	defer host.close()
	early, late := splitSysctls(set)
	return errors.Join(setSysctls(host, ns, early), setSysctls(host, ns, late))
}
