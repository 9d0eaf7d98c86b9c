package lab

// Catalogue is every entry, in the order in which they are listed.
var Catalogue = []Entry{
	{
		Name: "classic", Question: "Why do short connections fail after 28,232 of them, and what helps?",
		Source:  "experiment 1: the client storm",
		Seconds: 70, FullSeconds: 1200,
		run: classic,
	},
	{
		Name: "params", Question: "What does each setting about TIME_WAIT do, on a client and on a server?",
		Source:  "experiment 2: the parameters",
		Seconds: 15, FullSeconds: 20,
		run: params,
	},
	{
		Name: "rebind", Question: "When can a server bind its port again?",
		Source:  "experiment 4: restarting a server",
		Seconds: 5, FullSeconds: 5,
		run: rebind,
	},
	{
		Name: "port-search", Question: "What does connect() cost as ports run out, and who gets which port?",
		Source:  "experiment 1's slow loops; Linux' __inet_hash_connect and inet_csk_find_open_port",
		Seconds: 6, FullSeconds: 40, Alone: true,
		run: portSearch,
	},
	{
		Name: "bound-port", Question: "Can a client that binds its own ports use those in TIME_WAIT at once?",
		Source:  "Linux' tcp_twsk_unique; port allocators of load generators",
		Seconds: 5, FullSeconds: 100,
		run: boundPort,
	},
}
