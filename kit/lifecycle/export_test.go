package lifecycle

// GCPercent makes gcPercent visible to the tests of package lifecycle_test.
const GCPercent = gcPercent
