package cgroup

import (
	"strings"
	"testing"
)

func TestContainer(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	other := strings.Repeat("f", 64)
	for path, want := range map[string]string{
		// Docker: systemd and cgroupfs drivers, and inside a container with cgroups of its own.
		"/system.slice/docker-" + id + ".scope":                            id,
		"/docker/" + id:                                                    id,
		"/system.slice/docker-" + id + ".scope/init":                       id,
		"/docker/" + other + "/docker/" + id:                               id,
		"/docker/" + id + "/system.slice/nginx.service":                    id,
		"/docker/buildkit/" + id:                                           id,
		"/kubepods.slice/kubepods-burstable.slice/docker-" + id + ".scope": id,
		// containerd's CRI plugin, both drivers.
		"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-" + id + ".scope": id,
		"/kubepods/burstable/pod0f6d/" + id:                                        id,
		"/system.slice/containerd.service/kubepods-burstable:cri-containerd:" + id: id,
		// CRI-O; its monitor is not the container.
		"/kubepods.slice/kubepods-pod1.slice/crio-" + id + ".scope":        id,
		"/kubepods.slice/kubepods-pod1.slice/crio-conmon-" + id + ".scope": "",
		"/kubepods/besteffort/pod1/crio-" + id:                             id,
		// Podman, as root, without root, and with cgroupfs.
		"/machine.slice/libpod-" + id + ".scope/container":                                 id,
		"/machine.slice/libpod-conmon-" + id + ".scope":                                    "",
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope": id,
		"/libpod_parent/libpod-" + id:                                                      id,
		// What is no container.
		"": "", "/": "", "/system.slice/nginx.service": "", "/user.slice/user-0.slice/session-1.scope": "",
		"/system.slice/docker.service": "", "/docker/" + id[:63]: "", "/docker/" + id + "0": "",
		"/docker/" + strings.ToUpper(id): "", "/x/docker-" + id[1:] + "g.scope": "",
	} {
		if got := Container(path); got != want {
			t.Errorf("Container(%q) = %q, want %q", path, got, want)
		}
	}
}
