package recording

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestFormatDocument holds FORMAT.md and what is written together.
func TestFormatDocument(t *testing.T) {
	text, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(text)
	for _, table := range own().describe() {
		var want strings.Builder
		fmt.Fprintf(&want, "### %s (table %d, %d bytes)\n\n| offset | type | name | unit, enumeration |\n|---:|---|---|---|\n",
			table.Name, table.ID, table.RecordSize)
		for _, f := range table.Fields {
			note := f.Unit
			if f.Enum != "" {
				note = "enumeration `" + f.Enum + "`"
			}
			fmt.Fprintf(&want, "| %d | %s | `%s` | %s |\n", f.Offset, f.Type, f.Name, note)
		}
		if !strings.Contains(doc, want.String()+"\n") {
			t.Errorf("FORMAT.md has not this table:\n%s", want.String())
		}
	}
	if head := fmt.Sprintf("# The format of a recording, version %d\n", Version); !strings.HasPrefix(doc, head) {
		t.Errorf("FORMAT.md begins with %q, want %q", doc[:len(head)], head)
	}
}
