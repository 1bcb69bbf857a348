package load

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Stream follows service-a's stream of events, as a browser does: it connects again
// one second after the connection has ended.
type Stream struct {
	stop    context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	stats StreamStats
}

// StreamStats is what a Stream has seen so far.
type StreamStats struct {
	Pod         string        // of service-b, which sent the last event
	Events      int           // with data
	Problems    int           // events that reported an error or could not be read
	Disconnects int           // of the connection to service-a
	Last        time.Time     // when the last event arrived
	Gap         time.Duration // the longest time between two events
}

// Follow follows the stream at url, such as http://localhost:8080/api/stream.
func Follow(url string) *Stream {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Stream{stop: cancel}
	s.running.Go(func() { s.run(ctx, url) })
	return s
}

// Stop ends the stream.
func (s *Stream) Stop() {
	s.stop()
	s.running.Wait()
}

// Stats returns what the stream has seen so far.
func (s *Stream) Stats() StreamStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

func (s *Stream) run(ctx context.Context, url string) {
	for ctx.Err() == nil {
		_ = s.read(ctx, url) // counted as a disconnect
		s.mu.Lock()
		s.stats.Disconnects++
		s.mu.Unlock()
		select {
		case <-time.After(time.Second): // as EventSource does after "retry: 1000"
		case <-ctx.Done():
		}
	}
}

func (s *Stream) read(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // the stream has no end to read to
	return readEvents(resp.Body, s.record)
}

// readEvents calls handle for each server-sent event.
func readEvents(r io.Reader, handle func(kind, data string)) error {
	lines := bufio.NewScanner(r)
	kind, data := "", ""
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "event":
			kind = value
		case "data":
			data = value
		case "":
			if kind != "" {
				handle(kind, data)
			}
			kind, data = "", ""
		}
	}
	return lines.Err()
}

func (s *Stream) record(kind, data string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var message struct {
		Data struct{ ServedBy struct{ Pod string } }
	}
	if kind != "data" || json.Unmarshal([]byte(data), &message) != nil {
		s.stats.Problems++
		return
	}
	now := time.Now()
	if s.stats.Events > 0 {
		s.stats.Gap = max(s.stats.Gap, now.Sub(s.stats.Last))
	}
	s.stats.Pod, s.stats.Last = message.Data.ServedBy.Pod, now
	s.stats.Events++
}
