package main

import (
	"errors"

	"example.com/tandem/kit/config"
)

// Config holds the settings of the service and their defaults.
type Config struct {
	config.Server
	GRPCAddr   string       `env:"GRPC_ADDR" envDefault:":9090" help:"address that gRPC listens on"`
	Reflection config.OnOff `env:"REFLECTION" envDefault:"off" help:"whether to serve gRPC reflection, on or off: grpcurl then needs no .proto file"`
	Message    string       `env:"MESSAGE" envDefault:"hello from service-b" help:"message in the data"`
}

// Validate returns an error for each value that parses but is not valid.
func (c Config) Validate() error {
	return errors.Join(c.Server.Validate(), config.Addr("GRPC_ADDR", c.GRPCAddr))
}
