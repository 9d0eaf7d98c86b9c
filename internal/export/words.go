package export

import (
	"strconv"
	"strings"
)

// printable is a text from a recording without what could upset a terminal, as tcp.Comm.String does it.
func printable(s string) string {
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
