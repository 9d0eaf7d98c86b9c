package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/twtrace/twtrace/internal/clients"
	"github.com/twtrace/twtrace/internal/privilege"
)

// clientCommand is one of the processes of `twtrace run --clients`, which starts them.
func (a *app) clientCommand() *cobra.Command {
	return &cobra.Command{
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := clients.Serve(cmd.Context(), func() error {
				if a.dropPrivilege {
					return privilege.Drop()
				}
				return nil
			})
			if errors.Is(err, clients.ErrByHand) {
				return usageError{err}
			}
			return err
		},
	}
}
