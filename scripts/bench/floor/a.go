package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/encoding/protojson"

	datav1 "example.com/tandem/proto/data/v1"
)

// callTimeout is service-a's default of CALL_TIMEOUT.
const callTimeout = 2 * time.Second

// callResponse is service-a's response, without the fields that cost CPU time to fill in.
type callResponse struct {
	ServedBy instance        `json:"servedBy"`
	Call     call            `json:"call"`
	Data     json.RawMessage `json:"data"`
}

type instance struct {
	Service string `json:"service"`
	Version string `json:"version"`
	Pod     string `json:"pod"`
	IP      string `json:"ip,omitempty"`
}

type call struct {
	Transport  string  `json:"transport"`
	Target     string  `json:"target"`
	Peer       string  `json:"peer,omitempty"`
	DurationMS float64 `json:"durationMs"`
}

type client struct {
	me          instance
	url, target string
	http        *http.Client
	grpc        datav1.DataServiceClient
}

// a serves GET /api/data as service-a does.
func a(addr, url, target string) error {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	pod, ip := me()
	c := &client{
		me:     instance{Service: "service-a", Version: "dev", Pod: pod, IP: ip},
		url:    url,
		target: target,
		http:   &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}},
		grpc:   datav1.NewDataServiceClient(conn),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/data", c.get)
	mux.HandleFunc("GET /readyz", ready)
	return http.ListenAndServe(addr, mux) //nolint:gosec // the floor sets no time-outs
}

func (c *client) get(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout)
	defer cancel()
	query := r.URL.Query()
	start := time.Now()
	var data *datav1.Data
	var how call
	var err error
	switch via := query.Get("via"); via {
	case "", "http":
		data, how, err = c.overHTTP(ctx)
	case "grpc":
		data, how, err = c.overGRPC(ctx)
	default:
		http.Error(w, "via: want http or grpc", http.StatusBadRequest)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	how.DurationMS = float64(time.Since(start).Microseconds()) / 1000
	body, err := protojson.Marshal(data)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(callResponse{c.me, how, body}) // the client may have disconnected
}

func (c *client) overHTTP(ctx context.Context) (*datav1.Data, call, error) {
	how := call{Transport: "http", Target: c.url}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/api/data", nil)
	if err != nil {
		return nil, how, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, how, err
	}
	defer resp.Body.Close() //nolint:errcheck // it has been read
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, how, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, how, fmt.Errorf("b responded with status %d", resp.StatusCode)
	}
	var response datav1.GetDataResponse
	err = protojson.Unmarshal(body, &response)
	return response.GetData(), how, err
}

func (c *client) overGRPC(ctx context.Context) (*datav1.Data, call, error) {
	how := call{Transport: "grpc", Target: c.target}
	var p peer.Peer
	response, err := c.grpc.GetData(ctx, &datav1.GetDataRequest{}, grpc.Peer(&p))
	if err != nil {
		return nil, how, err
	}
	how.Peer = p.Addr.String()
	return response.GetData(), how, nil
}
