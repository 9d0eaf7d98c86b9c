package loadgen

import (
	"fmt"
	"slices"
	"strings"
)

// nameOf returns the name of a value of a small enumeration, or what of it is no such value.
func nameOf[T ~uint8](names []string, value T, kind string) string {
	if int(value) < len(names) {
		return names[value]
	}
	return fmt.Sprintf("%s-%d", kind, uint8(value))
}

// parseName is the reverse.
func parseName[T ~uint8](names []string, name string) (T, error) {
	i := slices.Index(names, name)
	if i < 0 {
		return 0, fmt.Errorf("%q is none of %s", name, strings.Join(names, ", "))
	}
	return T(i), nil
}
