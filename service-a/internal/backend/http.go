package backend

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"example.com/tandem/kit/call"
	"example.com/tandem/kit/httpclient"
	datav1 "example.com/tandem/proto/data/v1"
)

// maxReason is the longest reason for a refusal that an error quotes, in bytes.
const maxReason = 100

// HTTP calls service-b over HTTP.
type HTTP struct {
	client *http.Client
	base   url.URL
	target string
	url    url.URL
}

// NewHTTP returns a Backend that calls service-b at base with a client of kit's
// httpclient.
func NewHTTP(client *http.Client, base url.URL) *HTTP {
	return &HTTP{client: client, base: base, target: base.String(), url: *base.JoinPath("api", "data")}
}

// Target returns the configured name of service-b.
func (h *HTTP) Target() string { return h.target }

// Endpoints returns the addresses behind it, as the client knows them now.
func (h *HTTP) Endpoints() []call.Endpoint { return httpclient.Endpoints(h.client, &h.base) }

// Get implements Backend.
func (h *HTTP) Get(ctx context.Context, key string) (*datav1.Data, CallInfo, error) {
	start := time.Now()
	ctx, record := call.WithRecord(ctx)
	data, err := h.get(ctx, key)
	return data, newCallInfo(ctx, "http", h.target, start, record), err
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
	defer resp.Body.Close() //nolint:errcheck // the client has read the whole body
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	return decode(resp.StatusCode, resp.Header.Get("Content-Type"), body)
}

// decode returns the data of a response. The response may come from a proxy
// instead of service-b.
func decode(status int, contentType string, body []byte) (*datav1.Data, error) {
	mediaType, _, _ := mime.ParseMediaType(contentType) // "" if it is malformed
	class := call.ClassOfStatus(status)
	switch {
	case status == http.StatusBadRequest && mediaType == "application/problem+json":
		var p struct{ Detail string }
		if err := json.Unmarshal(body, &p); err != nil || p.Detail == "" {
			p.Detail = "service-b rejected the request without a detail"
		}
		return nil, &InvalidError{p.Detail}
	case class == call.Denied:
		return nil, &call.Error{Class: class, Err: refusal(status, mediaType, body)}
	case class != call.OK:
		return nil, &call.Error{Class: class, Err: fmt.Errorf("service-b responded with status %d", status)}
	case status != http.StatusOK:
		return nil, fmt.Errorf("service-b responded with status %d: want 200", status)
	case mediaType != "application/json":
		return nil, fmt.Errorf("service-b responded with content type %q: want application/json", contentType)
	}
	var response datav1.GetDataResponse
	// A newer service-b may send fields that this version does not have.
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, &response); err != nil {
		return nil, fmt.Errorf("decode service-b's response: %w", err)
	}
	return dataOf(&response)
}

// refusal describes a response that refuses the caller. A proxy may send its reason as
// a line of text: Istio's is "RBAC: access denied".
func refusal(status int, mediaType string, body []byte) error {
	reason, _, _ := strings.Cut(string(body), "\n")
	if mediaType != "text/plain" || reason == "" || len(reason) > maxReason {
		return fmt.Errorf("service-b refused the call with status %d", status)
	}
	return fmt.Errorf("service-b refused the call with status %d: %q", status, reason)
}
