package httpclient_test

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"example.com/tandem/kit/httpclient"
	"example.com/tandem/kit/kittest"
)

// An address that accepts and never responds costs requests that are not
// idempotent a handful, however many are made: the first are pending when the
// others begin to avoid it, and time out, which ejects it.
func TestClient_HungAddressCostsFewPosts(t *testing.T) {
	t.Parallel()
	port, hosts := kittest.FreePort(), kittest.Loopbacks(t, 3)
	var hung atomic.Bool
	for i, host := range hosts {
		pod(t, join(host, port), 0, func(w http.ResponseWriter, r *http.Request) {
			if i == 0 && hung.Load() {
				hang(w, r)
				return
			}
			time.Sleep(5 * time.Millisecond)
			ok(w, r)
		})
	}
	names.Set("hung.test", hosts...)
	client := newClient(t, httpclient.Options{Timeout: 2 * time.Second}) // the services' own
	post := func() error {
		return do(client, request(t, t.Context(), http.MethodPost, "http://hung.test:"+port, nil)).err
	}
	together(60, 20, func(int) { assert.NoError(t, post()) })

	hung.Store(true)
	var failed, calls atomic.Int64
	until := time.Now().Add(5 * time.Second)
	together(20, 20, func(int) {
		for time.Now().Before(until) {
			calls.Add(1)
			if post() != nil {
				failed.Add(1)
			}
		}
	})
	assert.LessOrEqual(t, failed.Load(), int64(20), "of %d: those in flight when it hung", calls.Load())
	assert.Greater(t, calls.Load(), int64(500), "the callers are not held up")
}
