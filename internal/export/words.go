package export

import (
	"strconv"
	"strings"
)

// nanoseconds is time.RFC3339Nano with all nine digits, as in package eventline.
const nanoseconds = "2006-01-02T15:04:05.000000000Z07:00"

// printable is a text from a recording without what could upset a terminal, as tcp.Comm.String does it.
func printable(s string) string {
	quoted := strconv.Quote(s)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
