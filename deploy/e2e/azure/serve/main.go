// Command serve runs the Azure Resource Manager in memory until it is ended:
//
//	go run ./azure/serve /tmp/arm
//
// Then another shell may source /tmp/arm/env.sh, which exports what az needs and logs in.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"example.com/tandem/deploy/e2e/azure/arm"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: serve FOLDER; KUBECONFIG is what az aks get-credentials receives")
	}
	folder, err := filepath.Abs(os.Args[1])
	if err != nil {
		return err
	}
	options := arm.Options{Log: func(format string, args ...any) { fmt.Fprintf(os.Stderr, "serve: "+format+"\n", args...) }}
	if file := os.Getenv("KUBECONFIG"); file != "" {
		if options.Kubeconfig, err = os.ReadFile(file); err != nil {
			return err
		}
	}
	server, err := arm.Start(folder, options)
	if err != nil {
		return err
	}
	setup := "export '" + strings.Join(server.Environment(), "' '") + "'\n" + server.Login()
	if err := os.WriteFile(filepath.Join(folder, "env.sh"), []byte(setup), 0o600); err != nil {
		return err
	}
	fmt.Print(setup)
	fmt.Println("# control:", server.Control())
	return server.Wait(ctx)
}
