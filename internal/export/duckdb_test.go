package export

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twtrace/twtrace/internal/testenv"
)

// ask runs queries in DuckDB, in a directory, and prints their rows.
const ask = `
const { DuckDBInstance } = require('@duckdb/node-api');
(async () => {
	process.chdir(process.argv[1]);
	const db = await (await DuckDBInstance.create(':memory:')).connect();
	const rows = [];
	for (const query of JSON.parse(process.argv[2])) rows.push((await db.runAndReadAll(query)).getRowsJson());
	console.log(JSON.stringify(rows));
})().catch(err => { console.error(err); process.exit(1); });
`

// TestDuckDB has another program answer questions about a storm whose answers are known.
func TestDuckDB(t *testing.T) {
	testenv.Require(t, testenv.DuckDB)
	const n = 3000
	r := open(t, writeStorm(t, n))
	dir := t.TempDir()
	for _, table := range tables {
		for _, format := range []string{"parquet", "csv"} {
			if err := os.WriteFile(filepath.Join(dir, table+"."+format), write(t, r, format, table), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	var queries []string
	var want [][][]any
	for _, tt := range []struct {
		query string
		rows  [][]any
	}{
		{"select count(*), count(distinct cookie), min(seq), max(seq) from 'events.parquet'",
			[][]any{{"36000", "6000", "1", "36000"}}},
		// One connection, in the order of its events, and its times to the nanosecond.
		{"select kind, coalesce(new_state, cause), time, t_ns, local_addr, local_port, netns_name, comm from 'events.parquet' where cookie = 1 order by t_ns limit 2",
			[][]any{
				{"state", "syn_sent", "2026-09-21 14:13:20.123456789", "5000000000000", "198.18.0.1", float64(1024), "client", "curl"},
				{"state", "established", "2026-09-21 14:13:20.123506792", "5000000050003", "198.18.0.1", float64(1024), "client", "curl"},
			}},
		{"select typeof(time), epoch_ns(time) - t_ns, count(*) from 'events.parquet' group by all",
			[][]any{{"TIMESTAMP_NS", fmt.Sprint(bootReal - bootMono), "36000"}}},
		{"select kind, errno, count(*) from 'events.parquet' where errno is not null and kind <> 'kind-255' group by all order by all",
			[][]any{{"bind-failed", "EADDRINUSE", "3"}, {"connect-failed", "EADDRNOTAVAIL", "3"}, {"state", "ECONNRESET", "6"}}},
		{"select phase, errno, count(*), count(connected_ns), max(connected_ns - intended_ns) from 'attempts.parquet' group by all order by all",
			[][]any{{"connect", "EADDRNOTAVAIL", "3", "0", nil}, {"done", nil, "2997", "2997", "50000"}}},
		// How long each connection lived, joined with what the program saw of it.
		// Without the three that failed and the three whose begin is a failed bind(); three more have odd addresses.
		{"select c.role, count(*), count(c.peer_cookie), min(c.closed_ns - c.opened_ns) // 1000000 from 'connections.parquet' c join 'attempts.parquet' a using (cookie) where a.phase = 'done' and c.opened_ns is not null group by all",
			[][]any{{"active", "2994", "2991", "4"}}},
		{"select count(*) from (select seq, kind, cookie, in_state_ns, holder_addr, refused_taken, flags from 'events.parquet' except select seq, kind, cookie, in_state_ns, holder_addr, refused_taken, flags from read_csv('events.csv', all_varchar = false))",
			[][]any{{"0"}}},
		{"select value::varchar from parquet_kv_metadata('connections.parquet') where key::varchar = 'twtrace.schema'",
			[][]any{{"twtrace.connection/1"}}},
	} {
		queries, want = append(queries, tt.query), append(want, tt.rows)
	}
	text, err := json.Marshal(queries)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", "-e", ask, dir, string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got [][][]any
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	for i, q := range queries {
		if diff := cmp.Diff(want[i], got[i]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", q, diff)
		}
	}
}
