package cgroup

import "strings"

// Container returns the id of the container that a cgroup's path names, "" if it
// names none: 64 hexadecimal digits, as Docker, containerd, CRI-O and Podman give them,
// under either of their cgroup drivers. A cgroup inside a container belongs to it;
// of nested ones the innermost counts.
func Container(path string) string {
	parts := strings.Split(path, "/")
	for i := len(parts) - 1; i >= 0; i-- {
		if id := containerOf(parts[i]); id != "" {
			return id
		}
	}
	return ""
}

// scopes are how the systemd driver names a container's scope: PREFIX-ID.scope. Those of
// its monitor (crio-conmon-, libpod-conmon-) are not the container.
var scopes = []string{"docker-", "cri-containerd-", "containerd-", "crio-", "libpod-", "podman-"}

func containerOf(name string) string {
	name, isScope := strings.CutSuffix(name, ".scope")
	if isScope {
		for _, prefix := range scopes {
			if id, ok := strings.CutPrefix(name, prefix); ok && isID(id) {
				return id
			}
		}
		return ""
	}
	// The cgroupfs drivers: docker/ID, kubepods/…/ID, libpod_parent/libpod-ID.
	id := strings.TrimPrefix(strings.TrimPrefix(name, "libpod-"), "crio-")
	// containerd's cri plugin with the systemd driver and no slice: …:cri-containerd:ID.
	if i := strings.LastIndexByte(id, ':'); i >= 0 {
		id = id[i+1:]
	}
	if isID(id) {
		return id
	}
	return ""
}

func isID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}
