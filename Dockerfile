# syntax=docker/dockerfile:1
# Builds the image of one service, with BuildKit (Docker ≥ 23 uses it by default):
#   docker buildx build --build-arg SERVICE=service-a --tag service-a:dev .

# BUILDPLATFORM: Go cross-compiles, so the build runs without emulation for any target platform.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
ARG SERVICE
# GOWORK=off: the workspace lists modules that are not copied. The replace lines of go.mod refer to ../kit and ../proto.
# CGO_ENABLED=0: the final image has no C library.
ENV GOWORK=off CGO_ENABLED=0
WORKDIR /src/${SERVICE:?is not set; add --build-arg SERVICE=NAME with a name that scripts/services.sh prints}
# The files that change least come first: these layers and the download are reused until a dependency changes.
COPY proto/go.mod proto/go.sum ../proto/
COPY kit/go.mod kit/go.sum ../kit/
COPY $SERVICE/go.mod $SERVICE/go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY proto ../proto
COPY kit ../kit
COPY $SERVICE ./
# Declared after the download, so that another platform or version reuses it.
ARG TARGETOS TARGETARCH VERSION=dev
# -trimpath: the binary does not depend on the directory of the build.
# -s -w: no symbols and no debug information, a third of the size.
# grpcnotrace: without golang.org/x/net/trace, which prevents the linker from dropping unused methods.
# nethttpomithttp2: without net/http's HTTP/2, which plaintext HTTP/1.1 does not use; gRPC has its own.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -tags grpcnotrace,nethttpomithttp2 \
      -ldflags "-s -w -X example.com/tandem/kit/instance.version=$VERSION" -o /service .

# CA certificates, time zones and /etc/passwd; no shell and no package manager.
FROM gcr.io/distroless/static-debian13:nonroot
ARG SERVICE VERSION=dev REVISION=unknown
LABEL org.opencontainers.image.title="$SERVICE" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="gcr.io/distroless/static-debian13:nonroot"
COPY --from=build /service /service
# A number: for runAsNonRoot, kubelet must know that the user is not 0, and it cannot look up a name.
USER 65532:65532
# Documentation only: http, admin, and grpc if the service has it.
EXPOSE 8080 8081 9090
ENTRYPOINT ["/service"]
