package domain_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	"example.com/tandem/kit/instance"
	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-b/internal/domain"
)

func newDomain() *domain.Domain {
	return domain.New(instance.Instance{Service: "service-b", Pod: "b-1", IP: "10.0.0.7"}, "hello")
}

func TestGet_NamesTheInstance(t *testing.T) {
	for key, message := range map[string]string{"": "hello", "ada": "hello, ada"} {
		data, err := newDomain().Get(t.Context(), &datav1.GetDataRequest{Key: key})
		require.NoError(t, err)
		assert.Equal(t, key, data.GetKey())
		assert.Equal(t, message, data.GetMessage())
		assert.Equal(t, "b-1", data.GetServedBy().GetPod())
		assert.Equal(t, "10.0.0.7", data.GetServedBy().GetIp())
		assert.WithinDuration(t, time.Now(), data.GetServedAt().AsTime(), time.Minute)
	}
}

func TestDomain_RejectsInvalidRequests(t *testing.T) {
	var invalid *domain.InvalidError
	_, err := newDomain().Get(t.Context(), &datav1.GetDataRequest{Key: strings.Repeat("k", 65)})
	require.ErrorAs(t, err, &invalid)
	_, err = newDomain().Watch(t.Context(), &datav1.WatchDataRequest{Interval: durationpb.New(time.Millisecond)})
	require.ErrorAs(t, err, &invalid)
}

// No work is done for a caller that has canceled its call.
func TestGet_ReturnsContextError(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := newDomain().Get(ctx, &datav1.GetDataRequest{})
	require.ErrorIs(t, err, context.Canceled)
}

// The first message comes at once, and each further one after an interval.
func TestWatch_YieldsOncePerInterval(t *testing.T) {
	watch, err := newDomain().Watch(t.Context(), &datav1.WatchDataRequest{Key: "ada", Interval: durationpb.New(100 * time.Millisecond)})
	require.NoError(t, err)
	start := time.Now()
	var sequence []uint32
	for m := range watch {
		assert.Equal(t, "hello, ada", m.GetData().GetMessage())
		if sequence = append(sequence, m.GetSequence()); len(sequence) == 3 {
			break
		}
	}
	assert.Equal(t, []uint32{1, 2, 3}, sequence)
	assert.GreaterOrEqual(t, time.Since(start), 200*time.Millisecond)
}

func TestWatch_EndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch, err := newDomain().Watch(ctx, &datav1.WatchDataRequest{Interval: durationpb.New(time.Minute)})
	require.NoError(t, err)
	n := 0
	for range watch {
		n++
		cancel()
	}
	assert.Equal(t, 1, n)
}
