package endpoint

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sequence applies random operations to a Set and checks after each that it is
// consistent.
type sequence struct {
	*Set[string]
	t       *testing.T
	pending []Attempt // attempts that have not ended
}

// step applies one operation: the byte modulo 8 selects it, the upper half of the
// byte is its operand.
func (s *sequence) step(b byte) {
	operand := int(b >> 4)
	switch b % 8 {
	case 0:
		all := []string{"a", "b", "c", "d", "e", "f"}
		s.Update(all[operand%4:][:operand%3], all[:operand%7]...)
	case 1:
		s.Update([]string{"a", "b", "c", "d", "e"})
	case 2:
		time.Sleep(time.Duration(operand) * time.Second)
	case 3:
		s.pick([]string{"a", "b", "c"}[operand%3], operand%2 == 0)
	case 4, 5:
		s.pick("", operand == 0)
	default:
		if len(s.pending) > 0 {
			i := operand % len(s.pending)
			s.pending[i].End(Outcome(operand % 5))
			s.pending = slices.Delete(s.pending, i, i+1)
		}
	}
}

func (s *sequence) pick(avoid string, stream bool) {
	addr, a, ok := s.Pick(avoid, stream)
	assert.Equal(s.t, len(s.ready) > 0, ok)
	if ok {
		assert.Equal(s.t, addr, a.Addr())
		assert.True(s.t, slices.Contains(s.ready, a.endpoint), "%s is not ready", addr)
		s.pending = append(s.pending, a)
	}
}

func (s *sequence) check() {
	counts := map[*endpoint]int32{}
	for _, a := range s.pending {
		if !a.stream {
			counts[a.endpoint]++
		}
	}
	v := s.view.Load()
	for i, e := range s.ready {
		m := member[string]{e, s.values[i]}
		assert.Equal(s.t, m.ejected, slices.Contains(v.ejected, m), "the view differs from the state")
		assert.Equal(s.t, !m.ejected, slices.Contains(v.inUse, m), "the view differs from the state")
		assert.Same(s.t, m.endpoint, s.known[m.addr])
		assert.Equal(s.t, counts[m.endpoint], m.pending.Load())
		assert.GreaterOrEqual(s.t, m.rate.load(), 0.0)
		assert.LessOrEqual(s.t, m.rate.load(), 1.0)
		if m.ejected {
			assert.LessOrEqual(s.t, time.Until(m.trialAt), trialEvery, "the trial is too far in the future")
			assert.LessOrEqual(s.t, v.nextTrial.Load(), m.trialAt.UnixNano(), "Pick would miss the trial")
		}
	}
	assert.Len(s.t, s.ready, len(v.inUse)+len(v.ejected))
	assert.True(s.t, len(v.inUse) > 0 || len(s.ready) == 0, "no endpoint is in use")
}

// After any sequence of operations, a Set is consistent, and an endpoint is in use
// if any is ready.
func FuzzSet(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		ops := make([]byte, 400)
		for i := range ops {
			ops[i] = byte(random.Uint32())
		}
		f.Add(ops)
	}
	f.Fuzz(func(t *testing.T, ops []byte) {
		synctest.Test(t, func(t *testing.T) {
			s := &sequence{Set: NewSet(func(addr string) string { return addr }), t: t}
			for i, op := range ops {
				s.step(op)
				s.check()
				require.False(t, t.Failed(), "operation %d", i)
			}
			for _, a := range s.pending {
				a.End(Responded)
			}
			s.pending = nil
			s.check() // no attempt is in flight
		})
	})
}

// Run this test with the race detector.
func TestSet_IsSafeForConcurrentUse(t *testing.T) {
	s := &sequence{Set: NewSet(func(addr string) string { return addr }), t: t}
	all := []string{"a", "b", "c", "d", "e"}
	s.Update(all)
	var callers sync.WaitGroup
	for i := range 4 {
		callers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 0))
			for range 2000 {
				_, a, ok := s.Pick([]string{"", "", "a"}[random.IntN(3)], random.IntN(10) == 0)
				assert.True(t, ok)
				a.End(Outcome(random.IntN(5)))
			}
		})
	}
	for n := range 500 {
		s.Update(all[:1+n%len(all)], all...)
	}
	callers.Wait()
	s.Update(all)
	s.check()
}
