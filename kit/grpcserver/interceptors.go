package grpcserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"example.com/tandem/kit/fault"
	"example.com/tandem/kit/shed"
)

const (
	// deadlineMargin is how long before the caller's deadline a call is given
	// up: enough for the answer that says so to arrive, where otherwise the
	// caller would see a time-out that names no culprit.
	deadlineMargin = 20 * time.Millisecond
	// longestCall bounds a call whose caller set no deadline.
	longestCall = 30 * time.Second
)

// internal reports whether a method is gRPC's own: health, reflection. Those
// are not logged, shed or made faulty.
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
		slog.String("method", method),
		slog.String("code", code.String()),
		slog.Int64("duration_us", time.Since(start).Microseconds()),
	}
	if p, ok := peer.FromContext(ctx); ok {
		attrs = append(attrs, slog.String("from", p.Addr.String()))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", status.Convert(err).Message()))
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
		*err = status.Error(codes.Internal, "a fault of ours; the log has more")
	}
}

func observedUnary(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
		start := time.Now()
		defer func() { observe(ctx, log, info.FullMethod, start, err) }()
		defer recovered(ctx, log, &err)
		return next(ctx, req)
	}
}

func observedStream(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
		start := time.Now()
		defer func() { observe(ss.Context(), log, info.FullMethod, start, err) }()
		defer recovered(ss.Context(), log, &err)
		return next(srv, ss)
	}
}

// deadlineUnary gives a call up a little before its caller does, and says so.
func deadlineUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	left, why := longestCall, "the longest that a call may take"
	if deadline, ok := ctx.Deadline(); ok {
		why = "shortly before the caller's deadline"
		left = time.Until(deadline)
		left -= min(deadlineMargin, left/10)
	}
	shaved, cancel := context.WithTimeout(ctx, left)
	defer cancel()
	resp, err := next(shaved, req)
	if errors.Is(shaved.Err(), context.DeadlineExceeded) && codeOf(err) == codes.DeadlineExceeded {
		return nil, status.Errorf(codes.DeadlineExceeded, "the server gave up after %s, %s", left.Round(time.Millisecond), why)
	}
	return resp, err
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

// refuse says no with UNAVAILABLE, not RESOURCE_EXHAUSTED: the call was not
// begun and other instances may have room, and UNAVAILABLE is the code that
// clients' retry policies repeat elsewhere. (RESOURCE_EXHAUSTED also stands
// for quotas and for messages that are too large, where a repeat is of no use.)
func refuse(err error) error {
	if errors.Is(err, shed.ErrFull) || errors.Is(err, fault.ErrInjected) {
		return status.Error(codes.Unavailable, err.Error())
	}
	return status.FromContextError(err).Err()
}

func sheddingUnary(limit *shed.Limiter) grpc.UnaryServerInterceptor {
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

func sheddingStream(limit *shed.Limiter) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if internal(info.FullMethod) {
			return next(srv, ss)
		}
		if err := limit.Acquire(ss.Context()); err != nil {
			return refuse(err)
		}
		defer limit.Release()
		return next(srv, ss)
	}
}

func faultyUnary(s *fault.Switch) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if !internal(info.FullMethod) {
			if err := s.Strike(ctx); err != nil {
				return nil, refuse(err)
			}
		}
		return next(ctx, req)
	}
}

func faultyStream(s *fault.Switch) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if !internal(info.FullMethod) {
			if err := s.Strike(ss.Context()); err != nil {
				return refuse(err)
			}
		}
		return next(srv, ss)
	}
}
