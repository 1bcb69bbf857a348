package main

import (
	"errors"

	"example.com/tandem/kit/config"
)

// Config is what an operator may set, and what it is otherwise.
type Config struct {
	config.Server
	GRPCAddr string `env:"GRPC_ADDR" envDefault:":9090" help:"where gRPC listens"`
	Message  string `env:"MESSAGE" envDefault:"hello from service-b" help:"what the data says"`
}

// Validate returns an error for every value that parses but cannot work.
func (c Config) Validate() error {
	return errors.Join(c.Server.Validate(), config.Addr("GRPC_ADDR", c.GRPCAddr))
}
