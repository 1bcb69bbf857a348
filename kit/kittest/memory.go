package kittest

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// Memory is the peak of the resident memory of one or more processes, each on
// its own. It is sampled: Go returns memory to the system only after seconds,
// so that a peak is not missed. The zero Memory is ready to use.
type Memory struct {
	mu   sync.Mutex
	peak float64
}

// Watch samples a process until it ends. It needs Linux's /proc.
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

// Reset forgets the samples so far.
func (m *Memory) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peak = 0
}

// resident returns a process's resident memory in MiB.
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
