package vmtest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"
)

// modinfo makes an ELF file that has only a .modinfo.
func modinfo(t *testing.T, fields ...string) []byte {
	t.Helper()
	text := strings.Join(fields, "\x00") + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	const header, section = 64, 64
	var b bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	put(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Ehsize: header, Shentsize: section, Shnum: 3, Shstrndx: 2,
		Shoff: uint64(header + len(text) + len(names)),
	})
	b.WriteString(text + names)
	put(elf.Section64{})
	put(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: header, Size: uint64(len(text))})
	put(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(header + len(text)), Size: uint64(len(names))})
	return b.Bytes()
}

func compressed(t *testing.T, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err == nil {
		_, err = w.Write(text)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestLoadOrder(t *testing.T) {
	have := map[string][]byte{
		"veth.ko":           modinfo(t, "license=GPL", "depends=", "name=veth"),
		"tcp_diag.ko.xz":    compressed(t, modinfo(t, "depends=inet_diag")),
		"inet_diag.ko.xz":   compressed(t, modinfo(t, "depends=")),
		"nf-conntrack.ko":   modinfo(t, "depends=libcrc32c,nf-defrag-ipv4"),
		"nf_defrag_ipv4.ko": modinfo(t),
		"snake.ko":          modinfo(t, "depends=tail"),
		"tail.ko":           modinfo(t, "depends=snake"),
		"broken.ko":         []byte("no ELF"),
		"truncated.ko.xz":   compressed(t, modinfo(t))[:20],
	}
	for _, tt := range []struct {
		names []string
		want  string // or what the error says
		bad   bool
	}{
		{names: []string{"veth", "inet_diag", "tcp_diag"}, want: "veth inet_diag tcp_diag"},
		{names: []string{"tcp_diag", "inet_diag", "veth"}, want: "inet_diag tcp_diag veth"},
		{names: []string{"built_in", "veth"}, want: "veth"},
		{names: []string{"nf_conntrack"}, want: "nf_defrag_ipv4 nf_conntrack"},
		{names: []string{"snake"}, want: "snake depends on itself", bad: true},
		{names: []string{"broken"}, want: "broken.ko", bad: true},
		{names: []string{"truncated"}, want: "truncated.ko.xz", bad: true},
	} {
		t.Run(strings.Join(tt.names, " "), func(t *testing.T) {
			order, err := loadOrder(have, tt.names)
			if tt.bad {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want one that says %q", err, tt.want)
				}
				return
			}
			var got []string
			for _, m := range order {
				got = append(got, m.name)
				if !bytes.HasPrefix(m.elf, []byte(elf.ELFMAG)) {
					t.Errorf("%s is not plain", m.name)
				}
			}
			if err != nil || strings.Join(got, " ") != tt.want {
				t.Errorf("%v and %v, want %s", got, err, tt.want)
			}
		})
	}
}
