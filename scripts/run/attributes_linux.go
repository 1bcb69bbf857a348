package main

import "syscall"

// processAttributes puts a service into its own process group, so that Ctrl-C in the
// terminal signals only this program. The kernel kills the service if this program is
// killed.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
