//go:build !linux

package main

import "syscall"

// processAttributes gives a service a process group of its own, so that the
// Ctrl-C of a terminal reaches only us. If we are killed, a service ends when it
// next writes to its log, which no one reads then.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
