package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		name string
		of   []float64
		want float64
	}{
		{"none", nil, 0},
		{"one", []float64{3}, 3},
		{"odd", []float64{9, 1, 5}, 5},
		{"even", []float64{4, 1, 2, 9}, 3},
	} {
		t.Run(c.name, func(t *testing.T) { assert.InDelta(t, c.want, median(c.of), 0) })
	}
	figures := []float64{3, 1, 2}
	median(figures)
	assert.Equal(t, []float64{3, 1, 2}, figures, "they stay in the order of the rounds")
}

func TestPercentile(t *testing.T) {
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
		{"of none", nil, 0.5, 0},
		{"of one", hundred[:1], 0.99, time.Millisecond},
		{"half", hundred, 0.50, 50 * time.Millisecond},
		{"nearly all", hundred, 0.99, 99 * time.Millisecond},
		{"all", hundred, 1, 100 * time.Millisecond},
		{"nothing", hundred, 0, time.Millisecond},
		{"the middle of three", hundred[:3], 0.5, 2 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) { assert.Equal(t, c.want, percentile(c.of, c.share)) })
	}
}

func TestRatioOf(t *testing.T) {
	for _, c := range []struct {
		name        string
		pair, floor []float64
		want        Ratio
	}{
		{"round by round", []float64{50, 10, 90}, []float64{100, 100, 100}, Ratio{0.5, 0.1, 0.9}},
		{"not of the medians", []float64{10, 80, 50}, []float64{10, 100, 100}, Ratio{0.8, 0.5, 1}},
		{"a floor that is not known", []float64{1, 1}, []float64{0, 2}, Ratio{0.5, 0.5, 0.5}},
		{"nothing", nil, nil, Ratio{}},
	} {
		t.Run(c.name, func(t *testing.T) { assert.Equal(t, c.want, ratioOf(c.pair, c.floor)) })
	}
}
