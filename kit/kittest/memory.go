package kittest

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// Memory records the peak resident memory of a process; of several processes, that of
// the largest. It samples every 10 ms. Go returns memory to the system only after
// seconds, so that no peak is missed. The zero Memory is ready to use.
type Memory struct {
	mu   sync.Mutex
	peak float64
}

// Watch samples a process in the background until it ends. It needs Linux's /proc.
func (m *Memory) Watch(p *Process) {
	go func() {
		for {
			if now, err := resident(p.PID()); err == nil {
				m.mu.Lock()
				m.peak = max(m.peak, now)
				m.mu.Unlock()
			}
			select {
			case <-p.done:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
}

// Peak returns the largest sample since the last Reset, in MiB.
func (m *Memory) Peak() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peak
}

// Reset discards the samples so far.
func (m *Memory) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peak = 0
}

// resident returns the resident memory of a process in MiB.
func resident(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := bytes.Cut(text, []byte("VmRSS:"))
	fields := bytes.Fields(after)
	if len(fields) == 0 {
		return 0, fmt.Errorf("process %d has ended", pid) // a zombie has no VmRSS
	}
	kib, err := strconv.ParseFloat(string(fields[0]), 64)
	return kib / 1024, err
}
