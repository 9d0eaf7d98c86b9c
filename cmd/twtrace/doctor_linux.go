package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/twtrace/twtrace/internal/doctor"
)

func (a *app) doctorCommand() *cobra.Command {
	output := newChoice("text", "text", "json")
	color := newChoice("auto", "auto", "always", "never")
	cmd := &cobra.Command{
		Long: "doctor tries what the other commands need: it loads and attaches programs, joins two network\n" +
			"namespaces, and takes all of it off again. It reads the settings that decide how connections end\n" +
			"here, and says what each means. It changes nothing. It works without root, and then says what\n" +
			"root would add. The exit code is 4 where `twtrace run` can't trace.",
		Example: "  sudo twtrace doctor\n" +
			"  twtrace doctor -o json | jq '.checks[] | select(.status != \"ok\")'",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			machine, err := doctor.ThisMachine()
			if err != nil {
				return err
			}
			report := doctor.Examine(machine)
			if output.value == "json" {
				err = report.WriteJSON(a.stdout)
			} else {
				err = report.WriteText(a.stdout, useColor(color.value, a.stdout))
			}
			return errors.Join(err, report.Err())
		},
	}
	fl := cmd.Flags()
	fl.VarP(output, "output", "o", "form of the result")
	fl.Var(color, "color", "colour in text output")
	return cmd
}
