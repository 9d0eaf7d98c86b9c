package lab

// Catalogue is every entry, in the order in which they are listed.
var Catalogue = []Entry{
	{
		Name: "classic", Question: "Why do short connections fail after 28,232 of them, and what helps?",
		Source:  "experiment 1: the client storm",
		Seconds: 70, FullSeconds: 900,
		run: classic,
	},
	{
		Name: "rebind", Question: "When can a server bind its port again?",
		Source:  "experiment 4: restarting a server",
		Seconds: 5, FullSeconds: 5,
		run: rebind,
	},
}
