package main

import (
	"errors"

	"example.com/tandem/kit/config"
)

// Config holds the settings of the service and their defaults.
type Config struct {
	config.Server
	GRPCAddr   string       `env:"GRPC_ADDR" envDefault:":9090" help:"where gRPC listens"`
	Reflection config.OnOff `env:"REFLECTION" envDefault:"off" help:"on lets grpcurl list the gRPC services and call them without their .proto"`
	Message    string       `env:"MESSAGE" envDefault:"hello from service-b" help:"what the data says"`
}

// Validate returns an error for every value that parses but cannot work.
func (c Config) Validate() error {
	return errors.Join(c.Server.Validate(), config.Addr("GRPC_ADDR", c.GRPCAddr))
}
