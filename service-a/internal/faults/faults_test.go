package faults

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"example.com/tandem/kit/call"
)

// A pod that refuses a fault is a failure, whatever status it responds with.
func TestStatusError_IsAFailure(t *testing.T) {
	for _, code := range []int{http.StatusMovedPermanently, http.StatusBadRequest, http.StatusNotFound, http.StatusRequestEntityTooLarge, http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		class := call.ClassOf(statusError("10.0.0.1", code))
		assert.NotEqual(t, call.OK, class, code)
		assert.GreaterOrEqual(t, class.HTTPStatus(), 500, code)
	}
}
