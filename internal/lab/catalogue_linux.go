package lab

// Catalogue is every entry, in the order in which they are listed.
var Catalogue = []Entry{
	{
		Name: "rebind", Question: "When can a server bind its port again?",
		Source:  "experiment 4: restarting a server",
		Seconds: 5, FullSeconds: 5,
		run: rebind,
	},
}
