package arm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// createCertificate returns a certificate for loopback, and writes the one of its
// authority to a file. Python demands an authority apart from the server's certificate.
func createCertificate(file string) (*tls.Config, error) {
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serverKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Tandem test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"},
		NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost", "*.localhost"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	authorityDER, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	if err != nil {
		return nil, err
	}
	if authority, err = x509.ParseCertificate(authorityDER); err != nil {
		return nil, err
	}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, authority, serverKey.Public(), authorityKey)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
		return nil, err
	}
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authorityDER})
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{{Certificate: [][]byte{serverDER, authorityDER}, PrivateKey: serverKey}},
	}, os.WriteFile(file, bundle, 0o600)
}

// issueToken returns the response of a managed identity's endpoint.
func (s *Server) issueToken(audience string) object {
	expires := time.Now().Add(24 * time.Hour).Unix()
	return object{
		"access_token": unsignedToken(object{
			"aud": audience, "iss": "https://sts.windows.net/" + Tenant + "/", "tid": Tenant, "oid": Caller, "sub": Caller, "appid": callerApp,
			"iat": time.Now().Unix(), "exp": expires, "idtyp": "app",
			"xms_mirid": "/subscriptions/" + Subscription + "/resourcegroups/caller/providers/Microsoft.ManagedIdentity/userAssignedIdentities/caller",
		}),
		"expires_on": strconv.FormatInt(expires, 10), "resource": audience, "token_type": "Bearer", "client_id": callerApp,
	}
}

// unsignedToken returns a JWT. az reads it, and nothing checks a signature.
func unsignedToken(claims object) string {
	var parts []string
	for _, part := range []object{{"alg": "none", "typ": "JWT"}, claims} {
		encoded, _ := json.Marshal(part)
		parts = append(parts, base64.RawURLEncoding.EncodeToString(encoded))
	}
	return strings.Join(append(parts, "none"), ".")
}
