package recording

import (
	"os"
	"runtime"
	"strings"
	"time"
)

// Here returns a Header with what is true of this machine and this moment.
func Here(twtrace, command string) Header {
	now := Now()
	h := Header{
		Twtrace: twtrace, Command: command, Started: time.Unix(0, now.RealNS).UTC(), StartMonoNS: now.MonoNS,
		Arch:   runtime.GOARCH,
		BootID: line("/proc/sys/kernel/random/boot_id"), Kernel: line("/proc/sys/kernel/osrelease"),
	}
	// Without a name the recording is no worse.
	h.Host, _ = os.Hostname()
	return h
}

// line is what a file of one line says; empty where there is none.
func line(name string) string {
	text, err := os.ReadFile(name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
