package bpf_test

import (
	"maps"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/twtrace/twtrace/bpf"
	"github.com/twtrace/twtrace/internal/tcp"
)

// objects returns what the programs' own types look like in the embedded object
// and in each committed one: a reader of one architecture must understand the
// programs of the other.
func objects(t *testing.T) map[string]*btf.Spec {
	t.Helper()
	embedded, err := bpf.LoadProbes()
	if err != nil {
		t.Fatal(err)
	}
	specs := map[string]*btf.Spec{"embedded": embedded.Types}
	files, err := filepath.Glob("probes_*_bpfel.o")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 2 {
		t.Fatalf("committed objects %v, want one for each of two architectures", files)
	}
	for _, file := range files {
		spec, err := ebpf.LoadCollectionSpec(file)
		if err != nil {
			t.Fatal(err)
		}
		specs[file] = spec.Types
	}
	return specs
}

// TestStructs compares the C structs with the Go structs that read them, member
// by member, and looks for bytes that no member writes.
func TestStructs(t *testing.T) {
	for object, types := range objects(t) {
		for name, goType := range map[string]reflect.Type{
			"event":   reflect.TypeFor[bpf.ProbesEvent](),
			"account": reflect.TypeFor[bpf.ProbesAccount](),
			"frame":   reflect.TypeFor[bpf.ProbesFrame](),
			"owner":   reflect.TypeFor[bpf.ProbesOwner](),
		} {
			t.Run(object+"/"+name, func(t *testing.T) {
				var c *btf.Struct
				if err := types.TypeByName(name, &c); err != nil {
					t.Fatal(err)
				}
				compareStruct(t, c, goType)
			})
		}
	}
}

func compareStruct(t *testing.T, c *btf.Struct, goType reflect.Type) {
	t.Helper()
	if uintptr(c.Size) != goType.Size() {
		t.Errorf("%d bytes in C, %d in Go", c.Size, goType.Size())
	}
	var fields []reflect.StructField
	for f := range goType.Fields() {
		if f.Name != "_" { // structs.HostLayout
			fields = append(fields, f)
		}
	}
	if len(c.Members) != len(fields) {
		t.Fatalf("%d members in C, %d in Go", len(c.Members), len(fields))
	}
	end := uint32(0)
	for i, m := range c.Members {
		f := fields[i]
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(m.Name, "_", ""); !strings.EqualFold(got, f.Name) {
			t.Errorf("member %d is %s in C, %s in Go", i, m.Name, f.Name)
		}
		if uintptr(m.Offset.Bytes()) != f.Offset || uintptr(size) != f.Type.Size() {
			t.Errorf("%s: %d bytes at %d in C, %d at %d in Go", m.Name, size, m.Offset.Bytes(), f.Type.Size(), f.Offset)
		}
		if m.Offset.Bytes() != end || m.BitfieldSize != 0 {
			t.Errorf("%s begins at byte %d, not where the one before ends (%d)", m.Name, m.Offset.Bytes(), end)
		}
		end = m.Offset.Bytes() + uint32(size)
	}
	if end != c.Size {
		t.Errorf("the last member ends at byte %d of %d", end, c.Size)
	}
}

// TestEventWidestFirst: no width follows a smaller one, so that a new member has
// one place to go and never makes a hole. An array counts as a whole.
func TestEventWidestFirst(t *testing.T) {
	var widths []uintptr
	for f := range reflect.TypeFor[bpf.ProbesEvent]().Fields() {
		if f.Name != "_" && f.Name != "Pad" {
			widths = append(widths, min(f.Type.Size(), 8))
		}
	}
	for i := 1; i < len(widths); i++ {
		if widths[i] > widths[i-1] {
			t.Errorf("member %d is wider than the one before: %v", i, widths)
		}
	}
}

// TestEnums holds the numbers of event.h and of internal/tcp together. Kinds and
// causes are told by their names: KIND_TW_ENTER is "tw-enter".
func TestEnums(t *testing.T) {
	for _, tt := range []struct {
		enum, prefix string
		want         map[uint64]string // by number, in the words of internal/tcp
		internal     map[string]uint64 // smallest number for what never leaves the kernel side
	}{
		{
			enum: "event_kind", prefix: "KIND_",
			want:     words[tcp.Kind](1, tcp.NumKinds),
			internal: map[string]uint64{"KIND_MAX": uint64(tcp.NumKinds)},
		},
		{
			enum: "cause", prefix: "CAUSE_",
			want:     withNone(words[tcp.Cause](1, tcp.NumCauses)),
			internal: map[string]uint64{"CAUSE_REARMED": uint64(tcp.NumCauses), "CAUSE_DONE": uint64(tcp.NumCauses)},
		},
		{
			enum: "event_flag", prefix: "FLAG_",
			want: map[uint64]string{
				uint64(tcp.FlagRescued):   "rescued",
				uint64(tcp.FlagNoSegment): "no-segment",
				uint64(tcp.FlagLinger0):   "linger0",
				uint64(tcp.FlagTWMade):    "tw-made",
				uint64(tcp.FlagActive):    "active",
				uint64(tcp.FlagOwner):     "owner",
				uint64(tcp.FlagLate):      "late",
				uint64(tcp.FlagRefusals):  "refusals",
			},
		},
	} {
		for object, types := range objects(t) {
			t.Run(tt.enum+"/"+object, func(t *testing.T) {
				var enum *btf.Enum
				if err := types.TypeByName(tt.enum, &enum); err != nil {
					t.Fatal(err)
				}
				seen := make(map[uint64]bool)
				for _, v := range enum.Values {
					if least, ok := tt.internal[v.Name]; ok {
						if v.Value < least {
							t.Errorf("%s is %d, a number that internal/tcp uses", v.Name, v.Value)
						}
						continue
					}
					word := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(v.Name, tt.prefix), "_", "-"))
					if word != tt.want[v.Value] {
						t.Errorf("%s is %d, which is %q in internal/tcp", v.Name, v.Value, tt.want[v.Value])
					}
					seen[v.Value] = true
				}
				for n, word := range tt.want {
					if !seen[n] {
						t.Errorf("%q (%d) of internal/tcp is not in the enum", word, n)
					}
				}
			})
		}
	}
}

// words are the names of the numbers from first up to, but not including, end.
func words[T interface {
	~uint8
	String() string
}](first, end int) map[uint64]string {
	w := make(map[uint64]string)
	for n := first; n < end; n++ {
		w[uint64(n)] = T(n).String()
	}
	return w
}

// withNone adds the cause of what has not ended, whose word is empty.
func withNone(w map[uint64]string) map[uint64]string {
	w[uint64(tcp.CauseNone)] = "none"
	return w
}

// TestSamePrograms: both architectures have the programs of the embedded object.
func TestSamePrograms(t *testing.T) {
	for object, load := range map[string]func() (*ebpf.CollectionSpec, error){"probes": bpf.LoadProbes, "enrich": bpf.LoadEnrich} {
		embedded, err := load()
		if err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(object + "_*_bpfel.o")
		if err != nil {
			t.Fatal(err)
		}
		if len(files) != 2 {
			t.Errorf("committed objects %v, want one for each of two architectures", files)
		}
		for _, file := range files {
			spec, err := ebpf.LoadCollectionSpec(file)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := sections(spec), sections(embedded); !maps.Equal(got, want) {
				t.Errorf("%s has programs %v, the embedded object %v", file, got, want)
			}
		}
	}
}

// TestSharedMaps: what the programs of one object leave for those of the other
// (notes.h) lies in maps that both describe alike, or the kernel's are never shared.
func TestSharedMaps(t *testing.T) {
	probes, err := bpf.LoadProbes()
	if err != nil {
		t.Fatal(err)
	}
	enrich, err := bpf.LoadEnrich()
	if err != nil {
		t.Fatal(err)
	}
	shared := 0
	for name, m := range enrich.Maps {
		core := probes.Maps[name]
		if core == nil || strings.HasPrefix(name, ".") { // variables
			continue
		}
		shared++
		got := [...]uint32{uint32(m.Type), m.KeySize, m.ValueSize, m.MaxEntries, m.Flags}
		want := [...]uint32{uint32(core.Type), core.KeySize, core.ValueSize, core.MaxEntries, core.Flags}
		if got != want {
			t.Errorf("map %s: type, sizes, entries and flags are %v and %v", name, got, want)
		}
	}
	if shared == 0 {
		t.Error("the two objects share no map")
	}
}

// sections says where each program attaches.
func sections(spec *ebpf.CollectionSpec) map[string]string {
	s := make(map[string]string)
	for name, p := range spec.Programs {
		s[name] = p.SectionName
	}
	return s
}
