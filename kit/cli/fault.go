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

JSON sets the fault of the service that runs here, off removes it, and no argument
leaves it. The fault that is then set is printed. JSON is such as
` + fault.Example

// runFault is the subcommand fault of a service. It talks to the fault switch at
// addr, which is on loopback and so within reach of a process in the same
// container only; images have no curl to do it with:
//
//	kubectl exec POD -- /service-b fault '{"latency":"5s"}'
//	docker compose exec service-b /service-b fault off
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
	transport := &http.Transport{DisableKeepAlives: true} // and no proxy
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("reach the fault switch at DEBUG_ADDR: %w; is FAULTS=on?", err)
	}
	defer resp.Body.Close() //nolint:errcheck // it has been read
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(answer)))
	}
	if err != nil {
		return fmt.Errorf("fault: %w", err)
	}
	_, err = out.Write(answer)
	return err
}
