package main

import (
	"context"
	"net"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	datav1 "example.com/tandem/proto/data/v1"
)

// b serves GET /api/data and GetData as service-b does.
func b(httpAddr, grpcAddr string) error {
	listener, err := net.Listen("tcp", grpcAddr)
	if err != nil {
		return err
	}
	pod, ip := me()
	s := &server{me: &datav1.Instance{Service: "service-b", Version: "dev", Pod: pod, Ip: ip}}
	rpcs := grpc.NewServer()
	datav1.RegisterDataServiceServer(rpcs, s)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/data", s.get)
	mux.HandleFunc("GET /readyz", ready)

	failed := make(chan error, 2)
	go func() { failed <- rpcs.Serve(listener) }()
	go func() { failed <- http.ListenAndServe(httpAddr, mux) }() //nolint:gosec // the floor sets no time-outs
	return <-failed
}

type server struct {
	datav1.UnimplementedDataServiceServer
	me *datav1.Instance
}

// GetData implements [datav1.DataServiceServer].
func (s *server) GetData(_ context.Context, req *datav1.GetDataRequest) (*datav1.GetDataResponse, error) {
	return s.data(req.GetKey()), nil
}

// get responds to GET /api/data with the JSON of the same message.
func (s *server) get(w http.ResponseWriter, r *http.Request) {
	body, err := protojson.Marshal(s.data(r.URL.Query().Get("key")))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // the client may have disconnected
}

func (s *server) data(key string) *datav1.GetDataResponse {
	return &datav1.GetDataResponse{Data: &datav1.Data{
		Key: key, Message: "hello from service-b", ServedBy: s.me, ServedAt: timestamppb.Now(),
	}}
}
