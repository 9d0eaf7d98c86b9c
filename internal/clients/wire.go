package clients

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"unsafe"

	"github.com/twtrace/twtrace/loadgen"
)

// kind says what a message is.
type kind uint32

const (
	// To a client.
	kindPlan  kind = 1 + iota // the storm, as JSON
	kindBegin                 // the next loop, which may be the first
	kindStop                  // end what is under way

	// From a client.
	kindReady    // every thread is set up
	kindAttempts // as they are in memory
	kindLoopEnd  // all attempts of the loop have been sent
	kindResult   // the last message: outcome, as JSON
)

const (
	headerSize = 8 // kind and length of the body, 32 bits each, in this machine's byte order
	// maxJSON bounds a plan: 4096 IPv6 sources take some 100 KiB.
	maxJSON     = 1 << 20
	attemptSize = int(unsafe.Sizeof(loadgen.Attempt{}))
	// maxAttempts is more than a storm hands over at once.
	maxAttempts = 4096
)

// outcome is what a client has come to.
type outcome struct {
	PortSkips, Stalls, HeldBack uint64
	Canceled, TimeIsUp          bool
	Error                       string // of the set-up; "": none
}

// link is one end of the connection between the parent and a client. Several
// goroutines may send, and one may receive.
type link struct {
	conn *net.UnixConn
	out  sync.Mutex
}

func (l *link) send(k kind, body []byte) error {
	header := make([]byte, headerSize)
	binary.NativeEndian.PutUint32(header, uint32(k))
	binary.NativeEndian.PutUint32(header[4:], uint32(len(body)))
	message := net.Buffers{header, body}
	l.out.Lock()
	defer l.out.Unlock()
	_, err := message.WriteTo(l.conn)
	return err
}

func (l *link) sendJSON(k kind, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return l.send(k, body)
}

// next returns the kind of the next message and the length of its body, which must be
// received next.
func (l *link) next() (kind, int, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(l.conn, header[:]); err != nil {
		return 0, 0, err
	}
	return kind(binary.NativeEndian.Uint32(header[:])), int(binary.NativeEndian.Uint32(header[4:])), nil
}

// errMessage says that the other end is not what it should be.
var errMessage = errors.New("not a message of this program")

func (l *link) receiveJSON(length int, v any) error {
	if length > maxJSON {
		return fmt.Errorf("%w: %d bytes", errMessage, length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(l.conn, body); err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%w: %w", errMessage, err)
	}
	return nil
}

// receiveAttempts reads a body of attempts into buf, which has room for maxAttempts.
func (l *link) receiveAttempts(length int, buf []loadgen.Attempt) ([]loadgen.Attempt, error) {
	if length == 0 || length%attemptSize != 0 || length/attemptSize > len(buf) {
		return nil, fmt.Errorf("%w: %d bytes of attempts", errMessage, length)
	}
	attempts := buf[:length/attemptSize]
	if _, err := io.ReadFull(l.conn, inMemory(attempts)); err != nil {
		return nil, err
	}
	return attempts, nil
}

// inMemory is the attempts as bytes: both ends are the same program on the same
// machine, and an attempt has no pointers.
func inMemory(attempts []loadgen.Attempt) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(attempts))), len(attempts)*attemptSize)
}
