//go:build !linux

package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
)

const (
	tryFirst   = "twtrace --help" // for those who call twtrace without a command
	whereLinux = " (on Linux)"    // in help, of commands that need Linux
)

var errNeedsLinux = errors.New("needs Linux")

var meanings = []meaning{{errNeedsLinux, exitMachine, ""}}

func (a *app) runCommand() *cobra.Command    { return needsLinux() }
func (a *app) traceCommand() *cobra.Command  { return needsLinux() }
func (a *app) serveCommand() *cobra.Command  { return needsLinux() }
func (a *app) doctorCommand() *cobra.Command { return needsLinux() }
func (a *app) labCommand() *cobra.Command    { return needsLinux() }
func (a *app) clientCommand() *cobra.Command { return needsLinux() }

// elsewhere marks the commands that only say what they need.
const elsewhere = "elsewhere"

// needsLinux makes a command that takes whatever it takes on Linux, and does nothing but say
// that it is not there.
func needsLinux() *cobra.Command {
	return &cobra.Command{
		Long:               "This command needs Linux. See `twtrace --help` for those that work here too.",
		Annotations:        map[string]string{elsewhere: "Linux"},
		Args:               cobra.ArbitraryArgs,
		FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fmt.Errorf("%s %w, and this is %s: what works here is %s",
				cmd.Name(), errNeedsLinux, runtime.GOOS, strings.Join(worksHere(cmd.Root()), ", "))
		},
	}
}

// worksHere lists the commands of help that do their work on this system.
func worksHere(root *cobra.Command) (names []string) {
	for _, cmd := range root.Commands() {
		if cmd.IsAvailableCommand() && cmd.Annotations[elsewhere] == "" {
			names = append(names, cmd.Name())
		}
	}
	return names
}
