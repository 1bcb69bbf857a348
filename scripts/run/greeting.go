package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// greeting returns the text that is printed once the services run: commands to try,
// with the outcome of one call over each transport.
func greeting(ctx context.Context, set settings) string {
	var b strings.Builder
	page := "http://" + set.aHTTP.byName()
	fmt.Fprintf(&b, "\nThe services are running. The page is at %s. Two calls to try:\n\n", page)
	for _, via := range []string{"http", "grpc"} {
		url := page + "/api/data?via=" + via
		fmt.Fprintf(&b, "  curl '%s'\n      %s\n\n", url, sample(ctx, url))
	}
	fmt.Fprintf(&b, "Metrics: http://%s/metrics and http://%s/metrics.\n", set.aAdmin.byName(), set.bAdmin.byName())
	if set.faults {
		fmt.Fprintf(&b, "Fault switches: http://%s/faults and http://%s/faults.\n", set.aDebug.byName(), set.bDebug.byName())
	}
	b.WriteString("Stop with Ctrl-C.\n")
	return b.String()
}

// sample makes one call and returns a line that describes it.
func sample(ctx context.Context, url string) string {
	status, body, err := get(ctx, url)
	if err != nil {
		return "failed: " + err.Error()
	}
	type instance struct {
		Pod string `json:"pod"`
	}
	var tree struct {
		ServedBy instance `json:"servedBy"`
		Call     struct {
			Target     string  `json:"target"`
			Peer       string  `json:"peer"`
			Attempts   int     `json:"attempts"`
			DurationMS float64 `json:"durationMs"`
		} `json:"call"`
		Data struct {
			Message  string   `json:"message"`
			ServedBy instance `json:"servedBy"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &tree); status != http.StatusOK || err != nil {
		return fmt.Sprintf("failed: status %d: %s", status, strings.TrimSpace(string(body)))
	}
	c, attempts := tree.Call, "attempt"
	if c.Attempts != 1 {
		attempts = "attempts"
	}
	return fmt.Sprintf("%s called %s; %s at %s responded %q in %.1f ms, %d %s",
		tree.ServedBy.Pod, c.Target, tree.Data.ServedBy.Pod, c.Peer, tree.Data.Message, c.DurationMS, c.Attempts, attempts)
}
