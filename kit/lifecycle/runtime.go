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

// gcPercent is the smallest GOGC within the noise of the best. With GOGC=400 as 1
// and the soft limit of a pod (115 MiB), the pair's CPU time a call was 1.08 to 1.30
// with 100, 1.00 to 1.05 with 200 and 0.98 to 1.05 with 300: the medians of 25 rounds
// in turns, over both transports at 32 and 128 calls in flight, on 2 CPUs that other
// work shared (quartiles ±0.05 to ±0.13). At 128 calls service-a held 32, 38, 45 and
// 53 MiB.
const gcPercent = 200

// tune sets Go's garbage collector for a small service in a container, unless
// GOGC and GOMEMLIMIT set it.
func tune(environ map[string]string) {
	if environ["GOGC"] == "" {
		debug.SetGCPercent(gcPercent)
	}
	// Go does not read the container's limit by itself. As the heap nears the soft
	// limit it is collected more often, instead of the kernel killing the process
	// at the hard one. A tenth stays free for memory that Go does not count, such
	// as the binary itself. A value that is no number is config.Load's to report.
	limit, err := strconv.ParseInt(environ["MEMORY_LIMIT"], 10, 64)
	if environ["GOMEMLIMIT"] == "" && err == nil && limit > 0 {
		debug.SetMemoryLimit(limit / 10 * 9)
	}
}

// logStart logs what was started with which settings of the runtime, and the
// environment variables that look like a setting and are none.
func logStart(log *slog.Logger, unknown []config.Unknown) {
	in := []metrics.Sample{{Name: "/gc/gogc:percent"}, {Name: "/gc/gomemlimit:bytes"}}
	metrics.Read(in)
	limit := "off"
	if bytes := in[1].Value.Uint64(); bytes < math.MaxInt64 {
		limit = fmt.Sprintf("%dMiB", bytes>>20)
	}
	log.Info("starting", "gomaxprocs", runtime.GOMAXPROCS(0), "gogc", in[0].Value.Uint64(), "gomemlimit", limit)
	for _, u := range unknown {
		log.Warn("unknown environment variable; is it misspelled?", "name", u.Name, "nearest", u.Nearest)
	}
}
