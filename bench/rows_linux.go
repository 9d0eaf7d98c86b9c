package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/netlab"
)

// row is what a line of a table is of.
type row struct {
	name    string
	command string   // for people
	needs   []string // programs, or needCC
	base    string   // the row that ratios are to; "": this is one
	fixed   string   // the row that has only the fixed part
	least   bool     // it is such a row: its rates mean nothing
	run     func(context.Context, *rig) (measurement, error)
}

func (r row) to(base string) row         { r.base = base; return r }
func (r row) lessEmpty(fixed string) row { r.fixed = fixed; return r }

// storm is a shape that both twtrace and the reference can be told.
type storm struct {
	kind                            netlab.Kind
	loops, connections, concurrency int // concurrency 0: all
	linger                          bool
	single                          bool   // a thread for each end; else twtrace chooses
	reuse                           string // tcp_tw_reuse; "": the kernel's
	ports                           string // ip_local_port_range, LO-HI; likewise
}

// echoPort is the reference's, and is twtrace's.
const echoPort = 7

// storming are the flags of twtrace run about the storm, and twtrace its arguments with
// those about the network.
func (s *storm) storming() (args []string) {
	args = []string{"--loops", strconv.Itoa(s.loops), "--connections", strconv.Itoa(s.connections)}
	if s.concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(s.concurrency))
	}
	if s.linger {
		args = append(args, "--linger")
	}
	return args
}

func (s *storm) twtrace() (args []string) {
	args = append([]string{"run", "--net", s.kind.String()}, s.storming()...)
	if s.single {
		args = append(args, "--shards", "1")
	}
	if s.reuse != "" {
		args = append(args, "--tw-reuse", s.reuse)
	}
	if s.ports != "" {
		args = append(args, "--port-range", s.ports)
	}
	return args
}

func (s *storm) cref(mode, address string, shards int) (args []string) {
	args = []string{"-l", strconv.Itoa(s.loops), "-n", strconv.Itoa(s.connections)}
	if s.concurrency > 0 {
		args = append(args, "-c", strconv.Itoa(s.concurrency))
	}
	if s.linger {
		args = append(args, "-g")
	}
	if shards > 1 {
		args = append(args, "-s", strconv.Itoa(shards))
	}
	return append(args, mode, address, strconv.Itoa(echoPort))
}

// network is what twtrace makes for the same flags.
func (s *storm) network() netlab.Options {
	o := netlab.Options{Kind: s.kind}
	if s.reuse != "" {
		o.Sysctls = append(o.Sysctls, netlab.Sysctl{Key: "net.ipv4.tcp_tw_reuse", Value: s.reuse})
	}
	if s.ports != "" {
		o.Sysctls = append(o.Sysctls, netlab.Sysctl{Key: "net.ipv4.ip_local_port_range", Value: strings.ReplaceAll(s.ports, "-", " ")})
	}
	return o
}

// where says it for people.
func (s *storm) where() string {
	text := map[netlab.Kind]string{netlab.Pair: "in two fresh namespaces", netlab.Loopback: "in one fresh namespace"}[s.kind]
	for _, set := range s.network().Sysctls {
		text += fmt.Sprintf(", %s=%s", strings.TrimPrefix(set.Key, "net.ipv4."), set.Value)
	}
	return text
}

func (s *storm) address() string {
	if s.kind == netlab.Loopback {
		return "127.0.0.1"
	}
	return pairServer
}

// pairServer is the address that netlab gives the server of a pair.
const pairServer = "198.19.0.1"

// serverTarget is where a server is that is not the run's own.
const serverTarget = pairServer + ":7"

// ours is a storm of twtrace's without a trace, its server in the same process.
func ours(name string, s storm, extra ...string) row {
	return traced(name, s, append([]string{"--no-trace"}, extra...)...)
}

// traced is a storm of twtrace's with its trace.
func traced(name string, s storm, extra ...string) row {
	args := append(s.twtrace(), extra...)
	return row{
		name: name, command: "twtrace " + strings.Join(args, " "),
		run: func(ctx context.Context, r *rig) (measurement, error) {
			return r.alone(ctx, part{argv: append([]string{r.twtrace}, append(args, "-o", "json")...)})
		},
	}
}

// recorded is a storm of twtrace's with its trace, kept in a file.
func recorded(name string, s storm) row {
	args := s.twtrace()
	return row{
		name: name, command: "twtrace " + strings.Join(args, " ") + " -w FILE",
		run: func(ctx context.Context, r *rig) (m measurement, err error) {
			file := filepath.Join(r.dir, "storm.twt")
			m, err = r.alone(ctx, part{argv: append([]string{r.twtrace}, append(args, "-w", file, "-o", "json")...)})
			if err != nil {
				return m, err
			}
			return m, errors.Join(m.weigh(ctx, r.twtrace, file), os.Remove(file))
		},
	}
}

// weigh notes how long a recording is, and how many events are in it.
func (m *measurement) weigh(ctx context.Context, twtrace, file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	text, err := exec.CommandContext(ctx, twtrace, "report", file, "-o", "json").Output()
	if err != nil {
		return fmt.Errorf("twtrace report: %w", err)
	}
	var summary struct {
		Events struct{ Recorded, Rescued int }
	}
	if err := json.Unmarshal(text, &summary); err != nil {
		return fmt.Errorf("twtrace report: %w", err)
	}
	m.Bytes, m.Events = info.Size(), summary.Events.Recorded+summary.Events.Rescued
	return nil
}

// reference is the storm in C, its server another process; both of so many shards.
func reference(name string, s storm, shards int) row {
	server, client := s.cref("server", s.address(), shards), s.cref("client", s.address(), shards)
	return row{
		name: name, needs: []string{needCC},
		command: fmt.Sprintf("cref %s & cref %s (%s)", strings.Join(server, " "), strings.Join(client, " "), s.where()),
		run: func(ctx context.Context, r *rig) (measurement, error) {
			return r.served(ctx, s.network(),
				part{argv: append([]string{r.cref}, server...), port: echoPort, sockets: shards},
				part{argv: append([]string{r.cref}, client...)}, parseCref)
		},
	}
}

// ends is the storm of one's client and of the other's server, each a process.
func ends(name string, s storm, cClient, cServer bool) row {
	client := append([]string{"run", "--target", serverTarget, "--yes-i-may-load", pairServer, "--control", "none"}, s.storming()...)
	client = append(client, "--no-trace", "-o", "json")
	server := []string{"serve", "--listen", serverTarget, "--control", "none"}
	parse := parseTwtrace
	var needs []string
	if cClient {
		client, parse, needs = s.cref("client", pairServer, 1), parseCref, []string{needCC}
	}
	if cServer {
		server, needs = s.cref("server", pairServer, 1), []string{needCC}
	}
	names := map[bool]string{true: "cref", false: "twtrace"}
	return row{
		name: name, needs: needs,
		command: fmt.Sprintf("%s %s & %s %s (%s)", names[cServer], strings.Join(server, " "), names[cClient], strings.Join(client, " "), s.where()),
		run: func(ctx context.Context, r *rig) (measurement, error) {
			programs := map[bool]string{true: r.cref, false: r.twtrace}
			return r.served(ctx, s.network(),
				part{argv: append([]string{programs[cServer]}, server...), port: echoPort, sockets: 1},
				part{argv: append([]string{programs[cClient]}, client...)}, parse)
		},
	}
}

// oneLoop is the storm in C with both ends in the same loop, so many of them: as fast
// as the processors allow.
func oneLoop(name string, s storm, shards int) row {
	args := s.cref("both", s.address(), shards)
	return row{
		name: name, needs: []string{needCC}, command: fmt.Sprintf("cref %s (%s)", strings.Join(args, " "), s.where()),
		run: func(ctx context.Context, r *rig) (m measurement, err error) {
			lab, err := netlab.New(s.network())
			if err != nil {
				return m, err
			}
			err = m.run(ctx, lab.Client(), part{argv: append([]string{r.cref}, args...)}, parseCref)
			return m, errors.Join(err, lab.Close())
		},
	}
}

// web is a tool for HTTP and nginx, with a connection for each request.
func web(name, tool string, s storm, parse func([]byte) ([]loop, error), args ...string) row {
	args = append(args, "http://"+pairServer+"/")
	return row{
		name: name, needs: []string{"nginx", tool},
		command: fmt.Sprintf("%s %s (%s; nginx with one worker, that answers with 100 bytes)", tool, quote(args), s.where()),
		run: func(ctx context.Context, r *rig) (m measurement, err error) {
			config := filepath.Join(r.dir, "nginx.conf")
			if err := os.WriteFile(config, []byte(nginxConfig(r.dir)), 0o600); err != nil {
				return m, err
			}
			return r.served(ctx, s.network(),
				part{argv: []string{"nginx", "-e", "stderr", "-p", r.dir, "-c", config}, flags: foreign, port: 80, sockets: 1},
				part{argv: append([]string{tool}, args...), flags: foreign}, parse)
		},
	}
}

// quote writes arguments as a shell takes them.
func quote(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if quoted[i] = a; strings.ContainsAny(a, " ") {
			quoted[i] = "'" + a + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// nginxConfig has a fixed answer and touches nothing outside dir.
func nginxConfig(dir string) string {
	var temporary strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temporary, "\t%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	return fmt.Sprintf(`daemon off;
user root;
worker_processes 1;
worker_rlimit_nofile 20000;
pid %s/nginx.pid;
error_log stderr crit;
events { worker_connections 20000; }
http {
	access_log off;
	default_type text/plain;
%s	server {
		listen 80 backlog=4096;
		location / { return 200 %q; }
	}
}
`, dir, temporary.String(), strings.Repeat("a", 100))
}

// fillRange is the kernel's default ip_local_port_range.
const fillLow, fillHigh = 32768, 60999

// search times so many connects when so many ports are in TIME_WAIT, which
// tcp_tw_reuse=0 leaves alone. By C, or by twtrace.
func search(name string, byC bool, filled, connects int) row {
	s := storm{kind: netlab.Pair, loops: 1, connections: connects, reuse: "0", ports: fmt.Sprintf("%d-%d", fillLow, fillHigh)}
	storming := []string{"run", "--no-trace", "--target", serverTarget, "--yes-i-may-load", pairServer, "--control", "none", "-o", "json", "--loops", "1"}
	// Ports are taken as connect() takes them: the even ones first. When all are to be
	// taken the order makes no difference, and this is faster.
	fill := append(slices.Clone(storming), "--concurrency", "1000", "--connections", strconv.Itoa(filled))
	if filled == fillHigh-fillLow+1 {
		fill = append(fill, "--local-port-range", s.ports)
	}
	argv, parse, needs := append(storming, "--connections", strconv.Itoa(connects)), parseTwtrace, []string(nil)
	said := "twtrace "
	if byC {
		argv, parse, needs, said = s.cref("client", pairServer, 1), parseCref, []string{needCC}, "cref "
	}
	said += strings.Join(argv, " ")
	if filled > 0 {
		said = "twtrace " + strings.Join(fill, " ") + "; " + said
	}
	return row{
		name: name, needs: needs,
		command: fmt.Sprintf("twtrace serve --listen %s & %s (%s)", serverTarget, said, s.where()),
		run: func(ctx context.Context, r *rig) (m measurement, err error) {
			program := map[bool]string{true: r.cref, false: r.twtrace}[byC]
			return r.searched(ctx, s.network(), fill, filled, part{argv: append([]string{program}, argv...)}, parse)
		},
	}
}

// searched fills ports with TIME_WAITs and then runs the client. What filling uses is
// not counted.
func (r *rig) searched(ctx context.Context, o netlab.Options, fill []string, filled int, client part, parse func([]byte) ([]loop, error)) (m measurement, err error) {
	lab, err := netlab.New(o)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	server, err := start(ctx, lab.Server(), part{argv: []string{r.twtrace, "serve", "--listen", serverTarget}})
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	if err := server.listening(echoPort, 1); err != nil {
		return m, err
	}
	if filled > 0 {
		var before measurement
		if err := before.run(ctx, lab.Client(), part{argv: append([]string{r.twtrace}, fill...)}, parseTwtrace); err != nil {
			return m, err
		}
		if before.sumUp(); before.Finished != filled {
			return m, fmt.Errorf("%d of %d ports could be filled", before.Finished, filled)
		}
	}
	err = m.run(ctx, lab.Client(), client, parse)
	return m, err
}

// held is a storm of twtrace's whose connections stay open for a time after their exchange, in
// the hope that all have been opened by then: how many are open at once is counted.
func held(name string, s storm, hold time.Duration, extra ...string) row {
	args := append(append(s.twtrace(), "--hold", hold.String()), extra...)
	return row{
		name: name, command: "twtrace " + strings.Join(args, " "),
		run: func(ctx context.Context, r *rig) (measurement, error) {
			return r.alone(ctx, part{argv: append([]string{r.twtrace}, append(args, "-o", "json")...), countOpen: true})
		},
	}
}
