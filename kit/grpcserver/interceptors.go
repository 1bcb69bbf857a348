package grpcserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/identity"
	"example.com/tandem/kit/lifecycle"
	"example.com/tandem/kit/limiter"
	"example.com/tandem/kit/telemetry"
)

// longestCall is the time limit of a unary call, from its headers to its response;
// package httpserver has the same for a request. Calls that take longer are streams.
const longestCall = 15 * time.Second

// setDeadline gives a unary call the deadline longestCall if its caller set none, or a
// later one. It is a tap handle, which grpc-go calls when the headers of a call
// arrive: an interceptor runs after the message has arrived, and half a message
// would hold a stream without limit. (A stream ends with its connection, at
// MaxConnectionAge.)
//
// An earlier deadline of the caller needs nothing here: grpc-go ends the handler's
// context and the stream when it passes.
func (s *Server) setDeadline(ctx context.Context, call *tap.Info) (context.Context, error) {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= longestCall {
		return ctx, nil
	}
	if !s.unary[call.FullMethodName] {
		return ctx, nil
	}
	ctx, _ = context.WithTimeout(ctx, longestCall) //nolint:gosec,govet // grpc-go cancels the parent when the call ends
	return ctx, nil
}

// logUnary logs each call when it ends, and turns a panic into INTERNAL.
func logUnary(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
		start := time.Now()
		defer func() { logCall(ctx, log, info.FullMethod, start, err) }()
		defer recoverPanic(ctx, log, &err)
		resp, err = next(ctx, req)
		return resp, asDeadline(ctx, err)
	}
}

// logStream is logUnary for streams.
func logStream(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
		start := time.Now()
		defer func() { logCall(ss.Context(), log, info.FullMethod, start, err) }()
		defer recoverPanic(ss.Context(), log, &err)
		return asDeadline(ss.Context(), next(srv, ss))
	}
}

// recoverPanic turns a panic into INTERNAL, which the caller sees, and a log line.
func recoverPanic(ctx context.Context, log *slog.Logger, err *error) {
	if p := recover(); p != nil {
		log.ErrorContext(ctx, "panic", "error", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal error; see the server log")
	}
}

// asDeadline returns DEADLINE_EXCEEDED for a call that was canceled because its
// deadline passed: two timers of grpc-go cancel the context at that moment, one
// with Canceled, and either may be first.
func asDeadline(ctx context.Context, err error) error {
	if deadline, ok := ctx.Deadline(); ok && codeOf(err) == codes.Canceled && !time.Now().Before(deadline) {
		return status.FromContextError(context.DeadlineExceeded).Err()
	}
	return err
}

// logCall logs a call that has ended.
func logCall(ctx context.Context, log *slog.Logger, method string, start time.Time, err error) {
	level := slog.LevelInfo
	code := codeOf(err)
	switch {
	case isInternal(method):
		level = slog.LevelDebug
	case code == codes.Unknown || code == codes.Internal || code == codes.Unavailable || code == codes.DeadlineExceeded || code == codes.DataLoss:
		level = slog.LevelWarn
	}
	if !log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("method", telemetry.Truncate(method)),
		slog.String("code", code.String()),
		slog.Int64("duration_us", time.Since(start).Microseconds()),
	}
	if p, ok := peer.FromContext(ctx); ok {
		attrs = append(attrs, slog.String("from", telemetry.Truncate(p.Addr.String())))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", telemetry.Truncate(status.Convert(err).Message())))
	}
	log.LogAttrs(ctx, level, "grpc", attrs...)
}

// codeOf returns the code of an error; a handler may return its context's error as
// it is.
func codeOf(err error) codes.Code {
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	return status.FromContextError(err).Code()
}

// isInternal reports whether a method is gRPC's own: health or reflection. Such
// calls are logged at debug only, need no token, are never shed, and get no injected
// faults.
func isInternal(method string) bool { return strings.HasPrefix(method, "/grpc.") }

// endOnShutdown ends a stream's context when the server shuts down: a stream
// without an end would delay the exit until its time limit.
func (s *Server) endOnShutdown(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.shutdownCtx, func() { cancel(lifecycle.ErrDraining) })()
	err := next(srv, &streamWithContext{ss, ctx})
	if errors.Is(context.Cause(ctx), lifecycle.ErrDraining) {
		return status.Error(codes.Unavailable, lifecycle.ErrDraining.Error())
	}
	return err
}

// streamWithContext is a ServerStream with another context.
type streamWithContext struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // gRPC hands a stream its context through the ServerStream
}

func (s *streamWithContext) Context() context.Context { return s.ctx }

// guardUnary refuses each call for which check returns an error; otherwise it calls the
// handler, and then done. gRPC's own calls are not checked.
func guardUnary(check func(context.Context) error, done func()) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if isInternal(info.FullMethod) {
			return next(ctx, req)
		}
		if err := check(ctx); err != nil {
			return nil, refusal(err)
		}
		defer done()
		return next(ctx, req)
	}
}

// guardStream is guardUnary for streams.
func guardStream(check func(context.Context) error, done func()) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if isInternal(info.FullMethod) {
			return next(srv, ss)
		}
		if err := check(ss.Context()); err != nil {
			return refusal(err)
		}
		defer done()
		return next(srv, ss)
	}
}

// nothing is the done of a check that acquires nothing.
func nothing() {}

// authenticate returns a check for guardUnary: has the call a valid token?
func authenticate(callers *identity.Verifier) func(context.Context) error {
	return func(ctx context.Context) error {
		if callers == nil {
			return nil
		}
		_, err := verify(ctx, callers)
		return err
	}
}

// authenticateStream refuses streams without a valid token. A stream ends when its token
// expires. The code is UNAVAILABLE, as at the end of a connection's age: the caller may
// open the stream again, with its present token.
func authenticateStream(callers *identity.Verifier) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if callers == nil || isInternal(info.FullMethod) {
			return next(srv, ss)
		}
		caller, err := verify(ss.Context(), callers)
		if err != nil {
			return refusal(err)
		}
		ctx, cancel := context.WithDeadlineCause(ss.Context(), caller.Expiry, identity.ErrExpired)
		defer cancel()
		err = next(srv, &streamWithContext{ss, ctx})
		if errors.Is(context.Cause(ctx), identity.ErrExpired) {
			return status.Error(codes.Unavailable, identity.ErrExpired.Error())
		}
		return err
	}
}

// verify returns the caller that a call's token names.
func verify(ctx context.Context, callers *identity.Verifier) (identity.Caller, error) {
	var authorization string
	if values := metadata.ValueFromIncomingContext(ctx, "authorization"); len(values) > 0 {
		authorization = values[0]
	}
	return callers.Verify(ctx, authorization)
}

// refusal returns the error of a call whose handler was not called.
func refusal(err error) error {
	switch {
	case errors.Is(err, identity.ErrNoToken), errors.Is(err, identity.ErrInvalidToken):
		return status.Error(codes.Unauthenticated, err.Error())
	case errors.Is(err, identity.ErrDenied):
		return status.Error(codes.PermissionDenied, err.Error())
	case errors.Is(err, limiter.ErrFull):
		return errShed()
	case errors.Is(err, identity.ErrUnavailable), errors.Is(err, fault.ErrInjected):
		return status.Error(codes.Unavailable, err.Error())
	default:
		return status.FromContextError(err).Err()
	}
}

// errShed returns the error of a call beyond the concurrency limit. Its code is
// UNAVAILABLE, not RESOURCE_EXHAUSTED: no handler was called, other instances may
// be below their limit, and retry policies retry UNAVAILABLE. (RESOURCE_EXHAUSTED
// also means quotas and messages that are too large, where a retry is of no use.)
// Its RetryInfo has the same delay as the header Retry-After over HTTP.
var errShed = sync.OnceValue(func() error {
	s := status.New(codes.Unavailable, limiter.ErrFull.Error())
	detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(limiter.RetryAfter)})
	if err != nil { // only a message that cannot be marshalled
		return s.Err()
	}
	return detailed.Err()
})
