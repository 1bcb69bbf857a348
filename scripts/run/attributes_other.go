//go:build !linux

package main

import "syscall"

// processAttributes puts a service into its own process group, so that Ctrl-C in the
// terminal signals only this program. If this program is killed, a service exits when
// it next writes a log line.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
