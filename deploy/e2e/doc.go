// Package e2e proves on a real cluster what Tandem claims about calls between
// services. Each claim is a test that is named for it and prints its figure:
//
//	make kind-up deploy e2e
//
// The tests change things (they scale, drain, swap policies, make pods sick)
// and put everything back, so they can be run again at once, and one by one:
//
//	make e2e RUN=TestAStrangerIsShutOut
//
// Those named TestWhen… are the rows of docs/reliability.md: something changes
// or breaks with 50 calls in flight over each transport, and the row says what
// callers saw of it. For that, service-b takes 50 ms for a call while they run
// (busy_test.go). make e2e runs their short forms; make chaos runs them in full,
// and writes the table.
//
// A test that fails keeps logs, events and descriptions of the pods in
// out/e2e, or where E2E_ARTIFACTS says, as they are before it puts things back.
package e2e
