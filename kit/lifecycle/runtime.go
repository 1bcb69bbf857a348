package lifecycle

import (
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"

	"example.com/tandem/kit/config"
)

// gcPercent is the GOGC of a process whose environment does not set GOGC. It is the
// smallest value whose CPU time is within the noise of the best. Measured per call
// through both services, under a pod's soft memory limit (115 MiB):
//
//	GOGC                           100          200          300          400
//	CPU time relative to 400       1.08–1.30    1.00–1.05    0.98–1.05    1
//	service-a's memory, 128 calls  32 MiB       38 MiB       45 MiB       53 MiB
//
// The ranges are over both transports at 32 and 128 calls in flight: medians of 25
// interleaved rounds on 2 shared CPUs (quartiles ±0.05 to ±0.13).
const gcPercent = 200

// tuneGC sets the garbage collector for a small service in a container, unless
// GOGC or GOMEMLIMIT does.
func tuneGC(environ map[string]string) {
	if environ["GOGC"] == "" {
		debug.SetGCPercent(gcPercent)
	}
	// Go does not read the container's memory limit. With a soft limit, a heap that
	// comes near it is collected more often; without one, the kernel kills the process
	// at the container's limit. A tenth stays free for memory that Go does not count,
	// such as the binary itself. A MEMORY_LIMIT that is no number is ignored here:
	// config.Load reports it.
	limit, err := strconv.ParseInt(environ["MEMORY_LIMIT"], 10, 64)
	if environ["GOMEMLIMIT"] == "" && err == nil && limit > 0 {
		debug.SetMemoryLimit(limit / 10 * 9)
	}
}

// logStart logs the settings of Go's runtime, and a warning for each unknown
// environment variable.
func logStart(log *slog.Logger, unknown []config.Unknown) {
	samples := []metrics.Sample{{Name: "/gc/gogc:percent"}, {Name: "/gc/gomemlimit:bytes"}}
	metrics.Read(samples)
	limit := "off"
	if bytes := samples[1].Value.Uint64(); bytes < math.MaxInt64 {
		limit = fmt.Sprintf("%dMiB", bytes>>20)
	}
	log.Info("starting", "gomaxprocs", runtime.GOMAXPROCS(0), "gogc", samples[0].Value.Uint64(), "gomemlimit", limit)
	for _, u := range unknown {
		log.Warn("unknown environment variable; is it misspelled?", "name", u.Name, "nearest", u.Nearest)
	}
}
