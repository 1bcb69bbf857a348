// Package e2e tests what Tandem claims about calls between services, on a real
// cluster. Each test logs its figures:
//
//	make kind-up deploy e2e
//
// The tests change the cluster (they scale, drain, replace policies, inject faults) and
// restore it, so they can be repeated, and run one by one:
//
//	make e2e RUN=TestPolicies_BlockOtherPods
//
// Each TestReliability test is a row of docs/reliability.md: something changes or breaks
// with 50 calls in flight over each transport, and the row records what callers see.
// Meanwhile service-b takes 50 ms for each call (connect_test.go). make e2e runs the
// short forms; make chaos runs the full forms and writes the table.
//
// A failed test writes logs, events and descriptions of the pods to out/e2e, or to the
// folder E2E_ARTIFACTS, before it restores the cluster.
//
// Package load makes the calls, package row defines the rows. Tests that need no
// cluster do not belong here.
package e2e
