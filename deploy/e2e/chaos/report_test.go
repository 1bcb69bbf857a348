package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	first = `{"number":1,"event":"a pod deleted","expected":"nothing","test":"TestReliability_A","full":true,"held":true,"seconds":40,
		"figures":[{"via":"http","calls":12345,"inFlight":49.9,"failed":{},"p50Ms":2.34,"p99Ms":9.96,"longestGapMs":57},{"via":"grpc","calls":7,"failed":{}}],
		"facts":["gone after 21 s"]}`
	third = `{"number":3,"event":"overload","expected":"at least 0.9","shortAsserts":"at least 0.7","test":"TestReliability_C","full":FULL,"held":true,
		"seconds":1,"figures":[{"via":"http","calls":1,"failed":{}}],"facts":null}`
	second = `{"number":2,"event":"a node cut off","expected":"little","test":"TestReliability_B","commit":"v0","held":false,"seconds":99,
		"figures":[{"via":"http","during":"after it","calls":10,"failed":{"timeout (504)":2,"dns (503)":1}}],"facts":null,"limits":"physics"}`
)

// rows writes each text into a file of a folder, in reverse order of their names.
func rows(t *testing.T, texts ...string) string {
	dir := t.TempDir()
	for i, text := range texts {
		require.NoError(t, os.WriteFile(filepath.Join(dir, string(rune('z'-i))+".json"), []byte(text), 0o600))
	}
	return dir
}

// The table has every row with its verdict, ordered by number, and the details of each.
func TestMarkdown_ListsRowsInOrder(t *testing.T) {
	r, err := collect(t.Context(), rows(t, second, first))
	require.NoError(t, err)
	r.Commit, r.Machine, r.Cluster = "v1", "2 CPUs", "3 nodes"
	got := r.markdown()
	assert.Contains(t, got, "Measured at v1 on 2 CPUs; 3 nodes. Rows in short form: 2. ")
	assert.Contains(t, got, `
| [1](#row-1) | a pod deleted | http | 12,345 | 50 | 0 | 2.3 | 10.0 | 57 | held |
|  |  | grpc | 7 | 0 | 0 | 0.0 | 0.0 | 0 |  |
| [2](#row-2) | a node cut off | http, after it | 10 | 0 | 3: dns (503), timeout (504) | 0.0 | 0.0 | 0 | **not held** |
`)
	assert.Contains(t, got, "**1. A pod deleted.** Expected: nothing. (`TestReliability_A`, 40 s)\n\n- gone after 21 s\n")
	assert.Contains(t, got, "(`TestReliability_B`, 99 s, short form, at v0)\n\nLimits: physics\n")
}

// A row whose short form asserts less than is expected says so, unless the full form was run.
func TestMarkdown_ShortFormAssertsLess(t *testing.T) {
	for full, want := range map[string]struct{ verdict, details string }{
		"false": {"held in the short form, which asserts less", "Expected: at least 0.9. Asserted in the short form, whose measurements are too short to be precise: at least 0.7. (`"},
		"true":  {"held", "Expected: at least 0.9. (`"},
	} {
		r, err := collect(t.Context(), rows(t, strings.ReplaceAll(third, "FULL", full)))
		require.NoError(t, err)
		got := r.markdown()
		assert.Contains(t, got, "| 0 | "+want.verdict+" |\n")
		assert.Contains(t, got, want.details)
	}
}

// The table replaces the previous one in a document, which may not lose a row.
func TestWrite_ReplacesTheTable(t *testing.T) {
	r, err := collect(t.Context(), rows(t, first))
	require.NoError(t, err)
	doc := filepath.Join(t.TempDir(), "doc.md")
	require.NoError(t, os.WriteFile(doc, []byte("before\n"+begin+"old\n"+end+"after\n"), 0o600))
	out := t.TempDir()
	require.NoError(t, r.write(out, doc))
	require.NoError(t, r.write(out, doc), "a second time")
	text, err := os.ReadFile(doc)
	require.NoError(t, err)
	table, err := os.ReadFile(filepath.Join(out, "chaos.md"))
	require.NoError(t, err)
	assert.Equal(t, "before\n"+begin+"\n"+string(table)+"\n"+end+"after\n", string(text))
	assert.FileExists(t, filepath.Join(out, "chaos.json"))

	// A table that lacks a row of the document is rejected.
	both, err := collect(t.Context(), rows(t, second, first))
	require.NoError(t, err)
	require.NoError(t, both.write(out, doc))
	require.ErrorContains(t, r.write(out, doc), "lacks the row <a id=\"row-2\"></a>")

	require.NoError(t, os.WriteFile(doc, []byte("no table\n"), 0o600))
	require.ErrorContains(t, r.write(out, doc), "around the table")
}

func TestCollect_FailsWithoutRows(t *testing.T) {
	_, err := collect(t.Context(), t.TempDir())
	require.ErrorContains(t, err, "make kind-up deploy")
	_, err = collect(t.Context(), rows(t, "{"))
	require.ErrorContains(t, err, "z.json")
}

func TestCollect_RejectsUnknownFields(t *testing.T) {
	_, err := collect(t.Context(), rows(t, `{"number":1,"figures":[{"via":"http","p999Ms":7}]}`))
	require.ErrorContains(t, err, "p999Ms")
}

func TestRun_RejectsUnknownArguments(t *testing.T) {
	require.ErrorContains(t, run(t.Context(), []string{"fast"}, io.Discard, io.Discard), `unexpected argument "fast"`)
	require.Error(t, run(t.Context(), []string{"-fast"}, io.Discard, io.Discard))
}
