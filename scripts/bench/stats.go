package main

import (
	"math"
	"slices"
	"time"
)

// median is the middle of some figures, the mean of the two middle ones if
// their number is even, and 0 of none.
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

// percentile is the smallest of sorted times that at least this share of them
// does not exceed (the nearest rank), and 0 of none.
func percentile(sorted []time.Duration, share float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(share * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

// Ratio is how the pair's figures compare with the floor's, round by round.
type Ratio struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// ratioOf divides the figures of the pair by those of the floor of the same
// round: what disturbs the machine for longer than a round disturbs both.
func ratioOf(pair, floor []float64) Ratio {
	var ratios []float64
	for i := range min(len(pair), len(floor)) {
		if floor[i] > 0 {
			ratios = append(ratios, pair[i]/floor[i])
		}
	}
	if len(ratios) == 0 {
		return Ratio{}
	}
	return Ratio{median(ratios), slices.Min(ratios), slices.Max(ratios)}
}
