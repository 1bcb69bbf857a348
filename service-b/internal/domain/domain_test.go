package domain_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	datav1 "example.com/tandem/proto/data/v1"
	"example.com/tandem/service-b/internal/domain"
)

func newDomain() *domain.Domain {
	return domain.New(&datav1.Instance{Service: "service-b", Pod: "b-1"}, "hello")
}

func TestGetSaysWhoServedIt(t *testing.T) {
	for key, message := range map[string]string{"": "hello", "ada": "hello, ada"} {
		data, err := newDomain().Get(t.Context(), &datav1.GetDataRequest{Key: key})
		require.NoError(t, err)
		assert.Equal(t, key, data.GetKey())
		assert.Equal(t, message, data.GetMessage())
		assert.Equal(t, "b-1", data.GetServedBy().GetPod())
		assert.WithinDuration(t, time.Now(), data.GetServedAt().AsTime(), time.Minute)
	}
}

func TestARequestThatBreaksARuleIsInvalid(t *testing.T) {
	var invalid *domain.InvalidError
	_, err := newDomain().Get(t.Context(), &datav1.GetDataRequest{Key: strings.Repeat("k", 65)})
	require.ErrorAs(t, err, &invalid)
	_, err = newDomain().Watch(t.Context(), &datav1.WatchDataRequest{Interval: durationpb.New(time.Millisecond)})
	require.ErrorAs(t, err, &invalid)
}

func TestNoWorkIsDoneForACallerWhoHasLeft(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	leave()
	_, err := newDomain().Get(ctx, &datav1.GetDataRequest{})
	require.ErrorIs(t, err, context.Canceled)
}

func TestWatchYieldsAtOnceAndThenOnceAnInterval(t *testing.T) {
	watch, err := newDomain().Watch(t.Context(), &datav1.WatchDataRequest{Key: "ada", Interval: durationpb.New(100 * time.Millisecond)})
	require.NoError(t, err)
	start := time.Now()
	var got []uint32
	for m := range watch {
		assert.Equal(t, "hello, ada", m.GetData().GetMessage())
		if got = append(got, m.GetSequence()); len(got) == 3 {
			break
		}
	}
	assert.Equal(t, []uint32{1, 2, 3}, got)
	assert.GreaterOrEqual(t, time.Since(start), 200*time.Millisecond)
}

func TestWatchEndsWithItsContext(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	watch, err := newDomain().Watch(ctx, &datav1.WatchDataRequest{Interval: durationpb.New(time.Minute)})
	require.NoError(t, err)
	n := 0
	for range watch {
		n++
		leave()
	}
	assert.Equal(t, 1, n)
}
