//go:build !race

package kittest

const raceEnabled = false
