// Package vmtest runs this project's tests on other kernels: it boots each in an
// emulated machine (QEMU, without KVM) with the test binaries inside, and says for
// each kernel which tests passed, failed and were skipped.
//
//	make test-vm                    # all of Kernels
//	make test-vm KERNELS="6.1 6.12" # some
//
// which is `go test` in this directory with the kernels' names in TWTRACE_VM.
// Without it only the fast tests of the harness are run. What happens to a kernel:
//
//	fetch      its Debian packages, by apt, into a cache       debian.go
//	unpack     image and modules, out of the packages          deb.go
//	build      init, twtrace and the test binaries, static     job.go
//	writeImage all of it as an initramfs                       image.go
//	machine    one boot: console to a file, results to a pipe  machine.go
//	  init     the guest's first process: runs the jobs        init, guest
//	runJobs    repeats a boot whose kernel crashed             machine.go
//	parseTests what the test binaries printed                  result.go
//	writeMatrix                                                matrix.go
//
// A test that fails has failed: it is never repeated. Only a kernel that crashes
// is booted again, with the jobs that have no result yet, at most three times
// a job; each crash is listed, also when all went well at last. A test that failed
// before the crash has failed.
package vmtest
