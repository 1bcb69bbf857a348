package config

import (
	"reflect"
	"slices"
	"strings"

	"example.com/tandem/kit/instance"
)

// Unknown is an environment variable that is not a setting, but looks like a misspelled one.
type Unknown struct {
	Name string
	// Nearest is the setting with the most similar name.
	Nearest string
}

// FindUnknown returns the variables in environ that look like a misspelled setting of a
// T, sorted by name: those whose first two words are those of a setting, or whose edit
// distance from one is at most 3 and less than a third of the name. The names that
// Kubernetes, Go and OpenTelemetry use are never among them.
func FindUnknown[T any](environ map[string]string) []Unknown {
	known := slices.Clone(instance.Variables)
	for _, f := range fields(reflect.TypeFor[T]()) {
		known = append(known, f.key)
	}
	var out []Unknown
	for name := range environ {
		if slices.Contains(known, name) || foreign(name) {
			continue
		}
		if nearest := nearestOf(known, name); nearest != "" {
			out = append(out, Unknown{name, nearest})
		}
	}
	slices.SortFunc(out, func(a, b Unknown) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// foreign reports whether a variable belongs to Go or OpenTelemetry, or is one that
// Kubernetes sets for a Service.
func foreign(name string) bool {
	return strings.HasPrefix(name, "GO") || strings.HasPrefix(name, "OTEL_") ||
		strings.HasSuffix(name, "_SERVICE_HOST") || strings.HasSuffix(name, "_PORT") || strings.Contains(name, "_PORT_")
}

// nearestOf returns the known name that is most similar, or "" if none is similar enough.
func nearestOf(known []string, name string) string {
	nearest, least := "", 0
	for _, k := range known {
		d := distance(strings.ToUpper(name), k)
		alike := d <= 3 && 3*d < min(len(name), len(k)) || sharesTwoWords(name, k)
		if alike && (nearest == "" || d < least) {
			nearest, least = k, d
		}
	}
	return nearest
}

func sharesTwoWords(name, known string) bool {
	a, b := strings.SplitN(name, "_", 3), strings.SplitN(known, "_", 3)
	return len(a) > 1 && len(b) > 1 && a[0] == b[0] && a[1] == b[1]
}

// distance is the Levenshtein distance: the number of bytes to insert, delete or
// replace to turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1) // of the empty prefix of a
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
