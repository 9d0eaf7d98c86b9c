// Package privilege knows which capabilities each command needs, says which are
// missing, and gives up those that are not needed any more.
//
// Needs is the table, as measured; doctor prints it and Explain names what is
// missing of it when the kernel has refused something:
//
//	err := run.Run(ctx, opts)
//	return privilege.Explain(privilege.RunPair, err)
//
// Nothing is asked for beforehand: whether something is permitted is decided by
// the kernel, which also knows of user namespaces, of system call filters and of
// lockdown. The bits of a process only explain a refusal.
//
// Drop is called once a command has made its namespaces, attached its programs
// and started its threads. What it takes away is gone for the life of the
// process, on each of its threads: see there for what has to come before.
package privilege
