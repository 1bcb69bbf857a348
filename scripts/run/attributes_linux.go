package main

import "syscall"

// processAttributes gives a service a process group of its own, so that the
// Ctrl-C of a terminal reaches only us; and the kernel ends it if we are killed.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
