package httpserver_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/kit/health"
	"example.com/tandem/kit/httpserver"
	"example.com/tandem/kit/instance"
	"example.com/tandem/kit/kittest"
	"example.com/tandem/kit/telemetry"
)

// serveProcess runs a server in this process, which a test has started, so that the
// memory of the process is the server's only. It prints its URL. GET /memory responds
// with the bytes of its heap and stacks.
func serveProcess() {
	tel, err := telemetry.New(context.Background(), instance.Instance{}, 0, nil, io.Discard)
	if err != nil {
		panic(err)
	}
	s := httpserver.New(httpserver.Options{AddrVar: "HTTP_ADDR", Addr: "127.0.0.1:0", Telemetry: tel, Health: health.New(instance.Instance{})})
	s.API.Get("/memory", func(w http.ResponseWriter, _ *http.Request) {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		_, _ = fmt.Fprint(w, m.HeapInuse+m.StackInuse)
	})
	s.API.Put("/things", read)
	if err := s.Listen(); err != nil {
		panic(err)
	}
	fmt.Println("http://" + s.Addr().String())
	if err := s.Serve(); err != nil {
		panic(err)
	}
}

// Two thousand hostile connections do not push the server beyond the memory of its pod
// (128 MiB), and other clients are served meanwhile, on open connections and on new ones.
func TestServer_HostileConnections(t *testing.T) {
	var tiny strings.Builder // the shortest header lines possible, all different
	for i := range 4500 {
		tiny.WriteString(strconv.FormatInt(int64(i+36*36), 36) + ":\n")
	}
	const head = " / HTTP/1.1\r\nHost: test\r\n"
	for name, sent := range map[string]string{
		"idle":                         "",
		"half a header":                "GET" + head + "X: " + strings.Repeat("x", 20<<10),
		"tiny headers":                 "GET" + head + tiny.String(),
		"half a body":                  "PUT /things HTTP/1.1\r\nHost: test\r\nContent-Length: 65536\r\n\r\n" + strings.Repeat("x", 60<<10),
		"half a chunk":                 "PUT /things HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\nx\r\n", 10<<10),
		"tiny headers after a request": "GET /livez HTTP/1.1\r\nHost: test\r\n\r\nGET" + head + tiny.String(),
	} {
		t.Run(name, func(t *testing.T) {
			p := kittest.Start(t, os.Args[0], "TEST_SERVER=1", "GOMEMLIMIT=115MiB")
			kittest.Eventually(t, func() bool { return strings.Contains(p.Log.String(), "\n") }, "the server's URL")
			url := strings.TrimSpace(p.Log.String())
			keepAlive, newConns := client(t), &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: testTimeout}

			var hostile sync.WaitGroup
			next := make(chan struct{})
			for range 50 {
				hostile.Go(func() {
					for range next {
						conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
						if err != nil {
							continue
						}
						t.Cleanup(func() { _ = conn.Close() })
						_ = conn.SetWriteDeadline(time.Now().Add(testTimeout))
						_, _ = io.WriteString(conn, sent) // the server may close the connection
					}
				})
			}
			var most uint64
			call := func() {
				for _, c := range []*http.Client{keepAlive, newConns} {
					resp, body := get(t, c, url+"/memory")
					require.Equal(t, 200, resp.StatusCode)
					now, err := strconv.ParseUint(body, 10, 64)
					require.NoError(t, err)
					most = max(most, now)
				}
			}
			for range 2000 {
				next <- struct{}{}
				call()
			}
			close(next)
			hostile.Wait()
			call()
			t.Logf("%d MiB at most", most>>20)
			assert.Less(t, most, uint64(100<<20))
		})
	}
}
