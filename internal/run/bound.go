package run

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/report"
	"github.com/twtrace/twtrace/internal/tcp"
)

// include/uapi/linux/sock_diag.h and inet_diag.h.
const (
	sockDiagByFamily = 20
	diagReqSize      = 56 // struct inet_diag_req_v2
	diagMsgSize      = 72 // struct inet_diag_msg
)

// boundStates are those of sockets that are bound and not connected. Of connected ones nothing tells whether connect() chose
// their port. Kernels list BOUND_INACTIVE since 6.8, others pass over the bit.
const boundStates = 1<<tcp.Listen | 1<<tcp.BoundInactive

// boundPorts lists the ports from lo to hi that sockets of the calling thread's namespace are bound to, in the kernel's order.
func boundPorts(lo, hi int) ([]report.BoundPort, error) {
	found := make(map[uint32][]int) // by the socket's inode
	var ports []report.BoundPort
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := dumpSockets(family, boundStates, func(m []byte) {
			port := int(binary.BigEndian.Uint16(m[4:]))
			if port < lo || port > hi {
				return
			}
			addr := netip.AddrFrom4([4]byte(m[8:12]))
			if m[0] == unix.AF_INET6 {
				addr = netip.AddrFrom16([16]byte(m[8:24]))
			}
			inode := binary.NativeEndian.Uint32(m[68:])
			found[inode] = append(found[inode], len(ports))
			state := tcp.State(m[1])
			if state == tcp.Close {
				state = tcp.BoundInactive // which it is asked for by, and does not answer
			}
			ports = append(ports, report.BoundPort{Port: port, Addr: addr.String(), State: state.String()})
		})
		if err != nil {
			return nil, err
		}
	}
	if len(ports) > 0 {
		findOwners(func(inode uint32, pid int, comm string) {
			for _, i := range found[inode] {
				if ports[i].PID == 0 {
					ports[i].PID, ports[i].Comm = pid, comm
				}
			}
		})
	}
	return ports, nil
}

// dumpSockets asks sock_diag for the TCP sockets of a family that are in one of the states.
func dumpSockets(family uint8, states uint32, each func(msg []byte)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return fmt.Errorf("list bound ports: %w", err)
	}
	defer unix.Close(fd)
	req := make([]byte, unix.NLMSG_HDRLEN+diagReqSize)
	binary.NativeEndian.PutUint32(req, uint32(len(req)))
	binary.NativeEndian.PutUint16(req[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	body := req[unix.NLMSG_HDRLEN:]
	body[0], body[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(body[4:], states)
	if err := unix.Sendto(fd, req, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("list bound ports: %w", err)
	}
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return fmt.Errorf("list bound ports: %w", err)
		}
		done, err := readDump(buf[:n], each)
		if done || err != nil {
			return err
		}
	}
}

// readDump hands out the sockets of one answer.
func readDump(b []byte, each func(msg []byte)) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		h := (*unix.NlMsghdr)(unsafe.Pointer(&b[0]))
		size := int(h.Len)
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return false, fmt.Errorf("list bound ports: an answer of %d bytes has a part of %d", len(b), size)
		}
		body := b[unix.NLMSG_HDRLEN:size]
		switch {
		case h.Type == unix.NLMSG_DONE:
			return true, nil
		case h.Type == unix.NLMSG_ERROR && len(body) >= 4:
			return false, fmt.Errorf("list bound ports: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(body))))
		case len(body) >= diagMsgSize:
			each(body)
		}
		b = b[min(len(b), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return false, nil
}

// findOwners hands out the sockets that processes have open, by inode. Threads of this process have tables of their own.
func findOwners(each func(inode uint32, pid int, comm string)) {
	own, _ := filepath.Glob("/proc/self/task/*/fd")
	others, _ := filepath.Glob("/proc/[0-9]*/fd")
	for i, dir := range append(own, others...) {
		pid := os.Getpid()
		if i >= len(own) {
			pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		}
		comm := ""
		entries, _ := os.ReadDir(dir) // a process may be gone, or hidden
		for _, e := range entries {
			link, err := os.Readlink(filepath.Join(dir, e.Name()))
			number, ok := strings.CutPrefix(link, "socket:[")
			if err != nil || !ok {
				continue
			}
			if comm == "" {
				text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
				comm = strings.TrimSpace(string(text))
			}
			if inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32); err == nil {
				each(uint32(inode), pid, comm)
			}
		}
	}
}

// listBound notes which ports of the range are bound as the run begins.
func (r *session) listBound(s *report.Summary) error {
	lo, hi, ok := report.PortRange(s)
	if !ok {
		return nil
	}
	return r.lab.Client().Do(func() (err error) {
		s.BoundPorts, err = boundPorts(lo, hi)
		return err
	})
}
