package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestMedian_OfOddAndEvenCounts(t *testing.T) {
	for _, c := range []struct {
		name string
		of   []float64
		want float64
	}{
		{name: "no values", of: nil, want: 0},
		{name: "one value", of: []float64{3}, want: 3},
		{name: "an odd number", of: []float64{9, 1, 5}, want: 5},
		{name: "an even number", of: []float64{4, 1, 2, 9}, want: 3},
	} {
		t.Run(c.name, func(t *testing.T) { assert.InDelta(t, c.want, median(c.of), 0) })
	}
	figures := []float64{3, 1, 2}
	median(figures)
	assert.Equal(t, []float64{3, 1, 2}, figures, "median must not sort its argument")
}

func TestPercentile_NearestRank(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i+1) * time.Millisecond
	}
	for _, c := range []struct {
		name  string
		of    []time.Duration
		share float64
		want  time.Duration
	}{
		{name: "no values", of: nil, share: 0.5, want: 0},
		{name: "one value", of: hundred[:1], share: 0.99, want: time.Millisecond},
		{name: "50 %", of: hundred, share: 0.50, want: 50 * time.Millisecond},
		{name: "99 %", of: hundred, share: 0.99, want: 99 * time.Millisecond},
		{name: "100 %", of: hundred, share: 1, want: 100 * time.Millisecond},
		{name: "0 %", of: hundred, share: 0, want: time.Millisecond},
		{name: "50 % of three", of: hundred[:3], share: 0.5, want: 2 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) { assert.Equal(t, c.want, percentile(c.of, c.share)) })
	}
}

func TestRatioOf_ComparesRounds(t *testing.T) {
	for _, c := range []struct {
		name        string
		pair, floor []float64
		want        Ratio
	}{
		{name: "ratios are of each round", pair: []float64{50, 10, 90}, floor: []float64{100, 100, 100}, want: Ratio{0.5, 0.1, 0.9}},
		{name: "the median is of the ratios", pair: []float64{10, 80, 50}, floor: []float64{10, 100, 100}, want: Ratio{0.8, 0.5, 1}},
		{name: "a floor of 0 is left out", pair: []float64{1, 1}, floor: []float64{0, 2}, want: Ratio{0.5, 0.5, 0.5}},
		{name: "no rounds", pair: nil, floor: nil, want: Ratio{}},
	} {
		t.Run(c.name, func(t *testing.T) { assert.Equal(t, c.want, ratioOf(c.pair, c.floor)) })
	}
}
