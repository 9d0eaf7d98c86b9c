package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/netlab"
)

// usage is what a process and its children have used.
type usage struct {
	user, system time.Duration
	peak         int // kB: the sum of each process's peak
	open         int // see openNow; 0 unless it was asked for
}

// process is a command under way in a namespace. It ends with this program, however
// that ends.
type process struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer // to be read when it is done
	done           chan struct{}
	err            error // of Wait, once it is done
	used           usage // likewise
}

// peakEvery is the pause between two looks at a process's peak of memory. What it grows
// in its last moments is missed.
const peakEvery = 10 * time.Millisecond

// foreign has a tool and all its children in a namespace of process numbers, whose first
// takes the others along when it ends.
const foreign = unix.CLONE_NEWPID

// start starts a command in the namespace. The thread that starts it stays until it is
// done, because a parent-death signal comes when that thread dies.
func start(ctx context.Context, ns *netlab.Namespace, what part) (*process, error) {
	argv := what.argv
	p := &process{cmd: exec.CommandContext(ctx, argv[0], argv[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Cloneflags: what.flags}
	started := make(chan error, 1) // one answer
	go func() {
		defer close(p.done)
		err := ns.Do(func() error {
			err := p.cmd.Start()
			started <- err
			if err != nil {
				return nil
			}
			p.watch(what.countOpen)
			return nil
		})
		if err != nil {
			started <- err
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	return p, nil
}

// watch waits for the process, and looks at its memory meanwhile. (ru_maxrss is of no
// use: it includes that of the program that forked.)
func (p *process) watch(countOpen bool) {
	ended := make(chan struct{})
	go func() {
		p.err = p.cmd.Wait()
		close(ended)
	}()
	peaks := make(map[int]int)
	tick := time.NewTicker(peakEvery)
	defer tick.Stop()
	for {
		look(p.cmd.Process.Pid, peaks)
		if countOpen {
			p.used.open = max(p.used.open, openNow(p.cmd.Process.Pid))
		}
		select {
		case <-tick.C:
			continue
		case <-ended:
		}
		break
	}
	for _, kb := range peaks {
		p.used.peak += kb
	}
	p.used.user, p.used.system = p.cmd.ProcessState.UserTime(), p.cmd.ProcessState.SystemTime()
}

// look notes the peaks of a process and its descendants. One that has just ended has none.
func look(pid int, peaks map[int]int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return
	}
	if _, rest, ok := strings.Cut(string(text), "\nVmHWM:"); ok {
		var kb int
		if n, _ := fmt.Sscan(rest, &kb); n == 1 {
			peaks[pid] = kb
		}
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return
	}
	for _, child := range strings.Fields(string(children)) {
		if n, err := strconv.Atoi(child); err == nil {
			look(n, peaks)
		}
	}
}

// openNow is how many TCP sockets are open in each of the namespaces that threads of the
// process have entered: the fewest, which in a pair is the client's, who has no listener.
func openNow(pid int) int {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return 0
	}
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return 0
	}
	counts := map[string]int{host: 0} // by namespace
	fewest := 0
	for _, thread := range threads {
		ns, err := os.Readlink(thread + "/ns/net")
		if _, known := counts[ns]; known || err != nil {
			continue
		}
		text, err := os.ReadFile(thread + "/net/sockstat")
		if err != nil {
			continue // it has just ended
		}
		counts[ns] = inUse(string(text))
		if len(counts) == 2 || counts[ns] < fewest {
			fewest = counts[ns]
		}
	}
	return fewest
}

// inUse reads "TCP: inuse N" (net/ipv4/proc.c, sockstat_seq_show).
func inUse(text string) int {
	for line := range strings.Lines(text) {
		var n int
		if got, _ := fmt.Sscanf(line, "TCP: inuse %d", &n); got == 1 {
			return n
		}
	}
	return 0
}

// wait waits for the end of a process that ends by itself.
func (p *process) wait() error {
	<-p.done
	if p.err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(p.cmd.Args, " "), p.err, bytes.TrimSpace(p.stderr.Bytes()))
	}
	return nil
}

// stopLimit is how long a server may take to end when asked to.
const stopLimit = 5 * time.Second

// stop ends a process that would go on, and waits for it.
func (p *process) stop() error {
	err := p.cmd.Process.Signal(unix.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		<-p.done
		return fmt.Errorf("%s ended by itself: %w: %s", p.cmd.Args[0], p.err, bytes.TrimSpace(p.stderr.Bytes()))
	}
	select {
	case <-p.done:
		return err
	case <-time.After(stopLimit):
	}
	err = errors.Join(err, fmt.Errorf("%s did not end within %v", p.cmd.Args[0], stopLimit), p.cmd.Process.Kill())
	<-p.done
	return err
}

// listening waits until so many sockets listen on the port in the process's namespace.
// Asking the kernel sends nothing to the server.
func (p *process) listening(port, sockets int) error {
	const limit = 10 * time.Second
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it listened: %w: %s", p.cmd.Args[0], p.err, bytes.TrimSpace(p.stderr.Bytes()))
		default:
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", p.cmd.Process.Pid))
		if err == nil && listeners(string(text), port) >= sockets {
			return nil
		}
		if time.Since(begun) > limit {
			return fmt.Errorf("%s does not listen on port %d after %v", p.cmd.Args[0], port, limit)
		}
	}
}

// listeners counts the sockets in state LISTEN (0A) on the port, in a text as
// tcp4_seq_show (net/ipv4/tcp_ipv4.c) writes it.
func listeners(text string, port int) (n int) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
			n++
		}
	}
	return n
}

// busy is how long all processors have worked since boot, and how many there are
// worth of time, in the kernel's ticks of 10 ms.
func busy() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseBusy(string(text))
}

// parseBusy adds up user, nice, system, irq, softirq and steal of the first line of
// /proc/stat: all but idle and iowait. Guests are in user.
func parseBusy(text string) (time.Duration, error) {
	f := strings.Fields(text)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, errors.New("/proc/stat does not begin with the processors' times")
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
