package httpserver

import (
	"net"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// holdOffNew makes the kernel drop SYN packets to l, as if they were lost, while
// connections whose handshake has started are still accepted. When l is closed
// later, its queue is empty, and no connection that is open for its client is
// reset. A client that connects in between sends its SYN again after a second, and
// is then refused.
//
// On a kernel without this filter (gVisor), l accepts connections until it is closed.
func holdOffNew(l net.Listener) {
	const flags, syn, synAndACK = 13, 0x02, 0x12 // in the TCP header
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: flags, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: synAndACK},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: syn, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 18}, // more than any packet: accept all of it
		bpf.RetConstant{Val: 0},
	})
	conn, ok := l.(syscall.Conn)
	if err != nil || !ok {
		return
	}
	filter := make([]unix.SockFilter, len(program))
	for i, in := range program {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
				&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}) //nolint:gosec // five instructions
		})
	}
}
