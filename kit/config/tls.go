package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// ClientTLS holds the settings of a client for TLS. All of them are optional.
type ClientTLS struct {
	// CAFile is a file of the accepted certificate authorities, in PEM; if it is
	// empty, those of the system.
	CAFile string
	// ServerName is the name in the server's certificate; if it is empty, the host
	// in the target.
	ServerName string
	// CertFile and KeyFile are the files of the client's certificate and key, in PEM.
	CertFile, KeyFile string
}

// Config reads the files. The client's certificate is read again for each handshake,
// because a mounted Secret changes when the certificate is renewed.
func (c ClientTLS) Config() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("CA file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA file %s: no certificate found", c.CAFile)
		}
	}
	if c.CertFile == "" && c.KeyFile == "" {
		return config, nil
	}
	if c.CertFile == "" || c.KeyFile == "" {
		return nil, errors.New("client certificate: set both the certificate file and the key file, or neither")
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
