// Package cgroup names the cgroups (v2) that connections belong to.
//
//	tree, err := cgroup.Mounted()
//	id, err := tree.ID("/sys/fs/cgroup/system.slice/nginx.service")
//	path := tree.Path(id)           // /system.slice/nginx.service
//	container := cgroup.Container(path)
//
// The kernel's number of a cgroup (bpf_skc_cgroup_id, in Event.Owner) is the inode
// number of its directory (kernfs_id, on 64-bit machines since Linux 5.5). It is not
// given twice: the upper half counts generations.
package cgroup
