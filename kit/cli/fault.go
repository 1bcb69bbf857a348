package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"example.com/tandem/kit/fault"
)

const faultUsage = `usage: fault [JSON | off]

Sets the fault of the service in this container to JSON, or removes it (off), and
prints the fault that is set now. Without an argument it only prints. JSON is such as
` + fault.Example

// runFault runs the subcommand fault, which calls the fault switch at addr. The
// switch listens on loopback, so that only a process in the same container reaches
// it, and the images contain no curl:
//
//	kubectl exec POD -- /service fault '{"latency":"5s"}'
//	kubectl exec POD -- /service fault off
//	docker compose exec service-b /service fault off
func runFault(ctx context.Context, addr string, args []string, out io.Writer) error {
	method, body := http.MethodGet, ""
	switch {
	case len(args) == 0:
	case len(args) > 1 || strings.HasPrefix(args[0], "-"):
		return usageError{faultUsage}
	case args[0] == "off":
		method = http.MethodDelete
	default:
		method, body = http.MethodPut, args[0]
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+"/faults", strings.NewReader(body))
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true} // without a proxy
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("call the fault switch at DEBUG_ADDR: %w; is FAULTS=on?", err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(text)))
	}
	if err != nil {
		return fmt.Errorf("fault: %w", err)
	}
	_, err = out.Write(text)
	return err
}
