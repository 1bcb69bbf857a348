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
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/limiter"
	"example.com/tandem/kit/telemetry"
)

// longestCall bounds a unary call, from its headers to its response, as package
// httpserver bounds a request. What takes longer is a stream.
const longestCall = 15 * time.Second

// internal reports whether a method is gRPC's own: health or reflection. Calls of
// those are not logged, shed or made faulty.
func internal(method string) bool { return strings.HasPrefix(method, "/grpc.") }

// observe logs a call that has ended.
func observe(ctx context.Context, log *slog.Logger, method string, start time.Time, err error) {
	level := slog.LevelInfo
	code := codeOf(err)
	switch {
	case internal(method):
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

// codeOf is the code of an error; a handler may return its context's as it is.
func codeOf(err error) codes.Code {
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	return status.FromContextError(err).Code()
}

// recovered turns a panic into INTERNAL, as the caller sees it, and a log line.
func recovered(ctx context.Context, log *slog.Logger, err *error) {
	if p := recover(); p != nil {
		log.ErrorContext(ctx, "panic", "error", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "internal error; see the server log")
	}
}

func observedUnary(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
		start := time.Now()
		defer func() { observe(ctx, log, info.FullMethod, start, err) }()
		defer recovered(ctx, log, &err)
		resp, err = next(ctx, req)
		return resp, asDeadline(ctx, err)
	}
}

func observedStream(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
		start := time.Now()
		defer func() { observe(ss.Context(), log, info.FullMethod, start, err) }()
		defer recovered(ss.Context(), log, &err)
		return asDeadline(ss.Context(), next(srv, ss))
	}
}

// asDeadline returns DEADLINE_EXCEEDED for a call that was canceled because its
// deadline passed: grpc-go then cancels the context from two timers, and the
// wrong one may be first.
func asDeadline(ctx context.Context, err error) error {
	if deadline, ok := ctx.Deadline(); ok && codeOf(err) == codes.Canceled && !time.Now().Before(deadline) {
		return status.FromContextError(context.DeadlineExceeded).Err()
	}
	return err
}

// bounded gives a unary call longestCall if its caller set no deadline, or a later
// one. It runs when the headers of a call arrive, before the message: an
// interceptor runs after it, and would let half a message hold a stream for ever.
// (Streams end with their connection, at MaxConnectionAge.)
//
// A deadline that the caller set, and that is near enough, needs nothing here:
// grpc-go ends the handler's context by it, and the stream.
func (s *Server) bounded(ctx context.Context, call *tap.Info) (context.Context, error) {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= longestCall {
		return ctx, nil
	}
	if !s.unary[call.FullMethodName] {
		return ctx, nil
	}
	ctx, _ = context.WithTimeout(ctx, longestCall) //nolint:gosec,govet // grpc-go cancels the parent when the call ends
	return ctx, nil
}

// drainingStream ends a stream's context when the server drains: a stream that
// never ends would hold the exit.
func (s *Server) drainingStream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(ErrDraining) })()
	err := next(srv, &stream{ss, ctx})
	if errors.Is(context.Cause(ctx), ErrDraining) {
		return status.Error(codes.Unavailable, ErrDraining.Error())
	}
	return err
}

type stream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // a ServerStream is how gRPC hands a stream its context
}

func (s *stream) Context() context.Context { return s.ctx }

// shed is the error of a call beyond the concurrency limit. Its code is
// UNAVAILABLE, not RESOURCE_EXHAUSTED: the call was not begun, other instances
// may have room, and UNAVAILABLE is what retry policies retry. (RESOURCE_EXHAUSTED
// also stands for quotas and for messages that are too large, where a retry is of
// no use.) Its RetryInfo says what Retry-After says over HTTP.
var shed = sync.OnceValue(func() error {
	s := status.New(codes.Unavailable, limiter.ErrFull.Error())
	detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(limiter.RetryAfter)})
	if err != nil { // only a message that cannot be marshalled
		return s.Err()
	}
	return detailed.Err()
})

// refuse returns the error of a call that was not begun.
func refuse(err error) error {
	switch {
	case errors.Is(err, limiter.ErrFull):
		return shed()
	case errors.Is(err, fault.ErrInjected):
		return status.Error(codes.Unavailable, err.Error())
	default:
		return status.FromContextError(err).Err()
	}
}

func sheddingUnary(limit *limiter.Limiter) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if internal(info.FullMethod) {
			return next(ctx, req)
		}
		if err := limit.Acquire(ctx); err != nil {
			return nil, refuse(err)
		}
		defer limit.Release()
		return next(ctx, req)
	}
}

func sheddingStream(limit *limiter.Limiter) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if internal(info.FullMethod) {
			return next(srv, ss)
		}
		if err := limit.AcquireStream(ss.Context()); err != nil {
			return refuse(err)
		}
		defer limit.ReleaseStream()
		return next(srv, ss)
	}
}

func faultyUnary(s *fault.Switch) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if !internal(info.FullMethod) {
			if err := s.Inject(ctx); err != nil {
				return nil, refuse(err)
			}
		}
		return next(ctx, req)
	}
}

func faultyStream(s *fault.Switch) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if !internal(info.FullMethod) {
			if err := s.Inject(ss.Context()); err != nil {
				return refuse(err)
			}
		}
		return next(srv, ss)
	}
}
