// Package fault makes the network of an experiment fail on purpose, segment by segment: "drop the third segment
// with FIN on its way to the server".
//
//	f, err := fault.Open(lab.Server(), lab.Client(), fault.Rule{Flags: fault.FIN, Mask: fault.FIN, First: 3, Action: fault.Drop})
//
// A BPF program on the receiving end of the link counts the segments that fit a [Rule], and drops those that it names
// by their number, or takes them off the wire until [Fault.Release] sends them on. It is attached by tcx (since 6.6) or
// by a clsact queue discipline (for which the kernel may load its modules sch_ingress and cls_bpf); it ends with the
// process, as the namespace does.
//
// A [Segment] is what is on the wire: parsed from a frame, or made up and sent by [Send].
package fault
