package recording

import (
	"fmt"
	"path/filepath"
	"strings"
)

// partName is the name of a file of the recording: of one that is rotated with a number before its
// extension, so that names sort by age: watch.twt, watch-00001.twt.
func (w *Writer) partName(part int) string {
	if !w.Rotates() {
		return w.name
	}
	ext := filepath.Ext(w.name)
	return fmt.Sprintf("%s-%05d%s", strings.TrimSuffix(w.name, ext), part, ext)
}
