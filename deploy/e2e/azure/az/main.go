// Command az is the client of testdata/azserver.py: the server at the socket of
// TANDEM_AZ_SERVER runs the command with the arguments, the environment, the folder and the
// standard streams of this process. If this process is killed, so is the command.
package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "az: the client of azserver.py:", err)
		code = 1
	}
	os.Exit(code)
}

// run returns the exit code of the command.
func run() (int, error) {
	folder, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	environment := map[string]string{}
	for _, setting := range os.Environ() {
		name, value, _ := strings.Cut(setting, "=")
		environment[name] = value
	}
	request, err := json.Marshal(map[string]any{"args": os.Args[1:], "env": environment, "folder": folder})
	if err != nil {
		return 0, err
	}
	server, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: os.Getenv("TANDEM_AZ_SERVER"), Net: "unix"})
	if err != nil {
		return 0, err
	}
	size := binary.BigEndian.AppendUint32(nil, uint32(len(request))) //nolint:gosec // far below 4 GiB
	streams := syscall.UnixRights(syscall.Stdin, syscall.Stdout, syscall.Stderr)
	if _, _, err := server.WriteMsgUnix(size, streams, nil); err != nil {
		return 0, err
	}
	if _, err := server.Write(request); err != nil {
		return 0, err
	}
	response, err := io.ReadAll(server)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(response)) // the server is gone if the response is empty
}
