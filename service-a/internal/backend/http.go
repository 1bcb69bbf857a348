package backend

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"example.com/tandem/kit/call"
	datav1 "example.com/tandem/proto/data/v1"
)

// HTTP calls service-b over HTTP.
type HTTP struct {
	client *http.Client
	target string
	url    url.URL
}

// NewHTTP makes a Backend of a client (kit's httpclient) and service-b's URL.
func NewHTTP(client *http.Client, base url.URL) *HTTP {
	return &HTTP{client: client, target: base.String(), url: *base.JoinPath("api", "data")}
}

// Get makes one call.
func (h *HTTP) Get(ctx context.Context, key string) (*datav1.Data, CallInfo, error) {
	start := time.Now()
	ctx, record := call.WithRecord(ctx)
	data, err := h.get(ctx, key)
	return data, describe(ctx, "http", h.target, start, record), err
}

func (h *HTTP) get(ctx context.Context, key string) (*datav1.Data, error) {
	u := h.url
	if key != "" {
		u.RawQuery = url.Values{"key": {key}}.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := h.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // the client has read it whole
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	return decode(resp.StatusCode, resp.Header.Get("Content-Type"), body)
}

// decode returns the data of a response, which may come from a proxy instead of
// service-b.
func decode(status int, contentType string, body []byte) (*datav1.Data, error) {
	mediaType, _, _ := mime.ParseMediaType(contentType) // "" is refused below
	switch {
	case status == http.StatusBadRequest && mediaType == "application/problem+json":
		var p struct{ Detail string }
		if err := json.Unmarshal(body, &p); err != nil || p.Detail == "" {
			p.Detail = "service-b refused the request without a word"
		}
		return nil, &InvalidError{p.Detail}
	case status >= 500:
		return nil, &call.Error{Class: call.ClassOfStatus(status), Err: fmt.Errorf("service-b answered status %d", status)}
	case status != http.StatusOK:
		return nil, fmt.Errorf("service-b answered status %d: want 200", status)
	case mediaType != "application/json":
		return nil, fmt.Errorf("service-b answered %q: want application/json", contentType)
	}
	var response datav1.GetDataResponse
	// A newer service-b may say more than we know of.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, &response); err != nil {
		return nil, fmt.Errorf("service-b's answer makes no sense: %w", err)
	}
	return dataOf(&response)
}
