package main

import (
	"math"
	"slices"
	"time"
)

// median returns the median: the mean of the two middle values if their number is
// even, 0 without values.
func median(figures []float64) float64 {
	if len(figures) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(figures))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// percentile returns a percentile of sorted times by the nearest-rank method, 0
// without values.
func percentile(sorted []time.Duration, share float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(share * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

// Ratio is the pair's figures divided by the other's.
type Ratio struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// ratioOf divides the pair's figures by the other's of the same round: other load of
// the machine that lasts longer than a round affects both.
func ratioOf(pair, other []float64) Ratio {
	var ratios []float64
	for i := range min(len(pair), len(other)) {
		if other[i] > 0 {
			ratios = append(ratios, pair[i]/other[i])
		}
	}
	if len(ratios) == 0 {
		return Ratio{}
	}
	return Ratio{median(ratios), slices.Min(ratios), slices.Max(ratios)}
}
