package export

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/twtrace/twtrace/internal/tcp"
)

// columnType says what the values of a column are. Each format has its own name for it.
type columnType uint8

const (
	number16 columnType = iota // unsigned
	number32
	number64
	signed64
	truth   // 0 or 1
	moment  // time of day, ns since 1970
	word    // text with few different values
	address // of a host
)

// column is one of a table's. A value is taken from a row by num, or by text; an address has both text and raw.
type column[R any] struct {
	name string
	// path is where it is in a JSON object, "local.addr"; "": under its name. Columns of one inner object
	// follow each other.
	path string
	typ  columnType
	null bool // rows may have none: num says false, text is empty
	rare bool // all but those that table.rare picks have none
	num  func(*R) (uint64, bool)
	text func(*R) []byte
	raw  func(*R) [16]byte // IPv6, or IPv4 mapped into it
}

// table is what the formats with columns write. R is a row, without pointers where there are many.
type table[R any] struct {
	name, schema string // of the table, of a JSON line
	columns      []column[R]
	// key is what rows are sorted by where they are: the columns cookie and timeColumn.
	key        func(*R) (tcp.Cookie, int64)
	timeColumn string
	rare       func(R) bool // a row has something in the rare columns
	// group is how many rows are held in memory, to be sorted.
	group int
	// read hands over all rows, as they come. What a row refers to is there until reset.
	read  func(row func(*R) error) error
	full  func() bool // there is so much that rows refer to that reset should be called
	reset func()
}

// blocks hands over the rows by n, or fewer.
func (t *table[R]) blocks(n int, visit func([]R) error) error {
	var rows []R
	err := t.read(func(r *R) error {
		if len(rows) == cap(rows) {
			rows = slices.Grow(rows, min(n-len(rows), max(textBlock, 3*len(rows))))
		}
		rows = append(rows, *r)
		if len(rows) < n && !t.full() {
			return nil
		}
		if err := visit(rows); err != nil {
			return err
		}
		rows = rows[:0]
		if t.full() {
			t.reset()
		}
		return nil
	})
	if err != nil || len(rows) == 0 {
		return err
	}
	return visit(rows)
}

// byTable makes a format of its tables: each has rows of another type.
func byTable(
	events func(*job, *table[eventRow]) error, attempts func(*job, *table[attemptRow]) error,
	connections func(*job, *table[connectionRow]) error,
) func(*job) error {
	return func(j *job) error {
		switch j.opts.Table {
		case TableEvents:
			return events(j, newEventTable(j))
		case TableAttempts:
			return attempts(j, newAttemptTable(j))
		case TableConnections:
			return connections(j, newConnectionTable(j))
		}
		return ErrTable
	}
}

// interned gives values that come again and again a small number, from 1; 0 is the zero value.
type interned[K comparable] struct {
	numbers map[K]uint32
	values  []K
	texts   [][]byte
	text    func(K) string
	last    K // the latest, and its number
	number  uint32
}

func newInterned[K comparable](text func(K) string) *interned[K] {
	t := &interned[K]{text: text}
	t.reset()
	return t
}

// maxInterned bounds the memory: 20 MB of addresses or so.
const maxInterned = 1 << 17

func (t *interned[K]) full() bool { return len(t.values) > maxInterned }

func (t *interned[K]) reset() {
	var none K
	t.numbers, t.values, t.texts = map[K]uint32{none: 0}, []K{none}, [][]byte{nil}
	t.last, t.number = none, 0
}

func (t *interned[K]) of(v K) uint32 {
	if v == t.last {
		return t.number
	}
	n, ok := t.numbers[v]
	if !ok {
		n = uint32(len(t.values))
		t.numbers[v] = n
		t.values = append(t.values, v)
		t.texts = append(t.texts, []byte(t.text(v)))
	}
	t.last, t.number = v, n
	return n
}

// raw16 is an address as 16 bytes; that of none is ::.
func raw16(a netip.Addr) [16]byte {
	if !a.IsValid() {
		return [16]byte{}
	}
	return a.As16()
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// wordsOf has the names of an enumeration's numbers.
func wordsOf[E ~uint8](name func(E) string) *[256][]byte {
	words := new([256][]byte)
	for i := range words {
		words[i] = []byte(name(E(i)))
	}
	return words
}

// stateWord is a state as in JSON, "" for none.
func stateWord(s tcp.State) string {
	if s == tcp.StateNone {
		return ""
	}
	return s.JSON()
}

// setsOf has the names of the bits in each number but those of without, with | between them.
func setsOf(names map[uint32]string, without uint8) *[256][]byte {
	sets := new([256][]byte)
	for set := range sets {
		var in []string
		for bit := uint32(1); bit < 256; bit <<= 1 {
			if name := names[bit]; name != "" && uint32(set)&^uint32(without)&bit != 0 {
				in = append(in, tcp.Printable(name))
			}
		}
		sets[set] = []byte(strings.Join(in, "|"))
	}
	return sets
}

// errnoWords remembers the names of error numbers.
type errnoWords map[tcp.Errno][]byte

func (w errnoWords) of(e tcp.Errno) []byte {
	if e == 0 {
		return nil
	}
	text, ok := w[e]
	if !ok {
		text = []byte(e.String())
		w[e] = text
	}
	return text
}

// known is a number that 0 means is not known.
func known[N ~int64 | ~uint64 | ~uint32 | ~uint16](n N) (uint64, bool) { return uint64(n), n != 0 }

func always[N ~int64 | ~uint64 | ~uint32 | ~uint16](n N) (uint64, bool) { return uint64(n), true }

// yes is a truth.
func yes(is bool) (uint64, bool) {
	if is {
		return 1, true
	}
	return 0, true
}

// machine are the columns that are the same in all rows: so that rows of several recordings can be put together.
func machine[R any](j *job) []column[R] {
	host, boot := []byte(tcp.Printable(j.r.Header().Host)), []byte(tcp.Printable(j.r.Header().BootID))
	return []column[R]{
		{name: "host", typ: word, null: true, text: func(*R) []byte { return host }},
		{name: "boot_id", typ: word, null: true, text: func(*R) []byte { return boot }},
	}
}

// namespaceNames are what the recording calls its network namespaces.
func namespaceNames(j *job) map[tcp.NetNS][]byte {
	names := make(map[tcp.NetNS][]byte)
	for _, ns := range j.r.Header().NetNS {
		names[ns.Cookie] = []byte(tcp.Printable(ns.Name))
	}
	return names
}
