// Package identity proves to a callee who calls, with a bearer token that an issuer
// signed: the API server of the cluster, or Microsoft Entra ID.
//
//	source.go    the caller's side: Source, a token from a file or from Entra
//	verifier.go  the callee's side: Verifier checks the issuer, the audience, the expiry and the subject of a token
//	keys.go      the issuer's keys, by OpenID Connect discovery
//	cache.go     how tokens and keys are loaded, kept and renewed
//
// The clients and servers of kit send and check the tokens: Options.Token of packages
// httpclient and grpcclient, Options.Callers of packages httpserver and grpcserver.
//
// A token is a secret: who reads it can call as its owner until it expires. Nothing
// here encrypts it. Use TLS, or a mesh, wherever others can read the network.
//
// Do not use it for users of a web page: it has no sign-in and no sessions.
package identity

import (
	"errors"
	"time"
)

// The errors of Verifier.Verify. Their texts are for the caller: they tell nothing about
// the token or about what would be accepted. The log has the reason.
var (
	// ErrNoToken means that the call has no bearer token.
	ErrNoToken = errors.New("a bearer token is required")
	// ErrInvalidToken means that the token is not a valid one of the issuer for this service.
	ErrInvalidToken = errors.New("the bearer token is not valid")
	// ErrDenied means that the token is valid, and that its subject may not call.
	ErrDenied = errors.New("this caller is not allowed")
	// ErrUnavailable means that the issuer's keys cannot be loaded, so that the token
	// cannot be checked. A retry may help.
	ErrUnavailable = errors.New("the bearer token cannot be checked now")
	// ErrExpired is the cause with which the context of a stream ends at Caller.Expiry.
	ErrExpired = errors.New("the bearer token has expired; open the stream again")
)

// Caller is who calls, as a verified token says.
type Caller struct {
	Subject string
	// Expiry is when the token is no longer accepted. A server ends streams then.
	Expiry time.Time
}
