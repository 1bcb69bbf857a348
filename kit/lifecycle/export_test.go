package lifecycle

// GCPercent is gcPercent for tests.
const GCPercent = gcPercent
