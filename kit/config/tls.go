package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// ClientTLS names what a client needs to call a server over TLS. All of it is
// optional.
type ClientTLS struct {
	// CAFile holds the certificates, as PEM, that a server's certificate must
	// descend from; the system's if it is empty.
	CAFile string
	// ServerName is the name in the server's certificate; the host that is
	// called if it is empty.
	ServerName string
	// CertFile and KeyFile hold the client's own certificate and key, as PEM.
	CertFile, KeyFile string
}

// Config reads the files. The client's certificate is read again for each
// handshake, as a mounted Secret changes when it is renewed.
func (c ClientTLS) Config() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("CA file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA file %s: holds no certificate", c.CAFile)
		}
	}
	if c.CertFile == "" && c.KeyFile == "" {
		return config, nil
	}
	if c.CertFile == "" || c.KeyFile == "" {
		return nil, errors.New("client certificate: want both the certificate's and the key's file, or neither")
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return config, nil
}
