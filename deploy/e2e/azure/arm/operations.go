package arm

import (
	"net/http"
	"strings"
)

// pollsOfOperation is how often an operation reports InProgress before it ends, so that
// a caller which does not wait is found out.
const pollsOfOperation = 2

// operation is a change that goes on after its response.
type operation struct {
	polls   int
	failure object // nil if the operation succeeds
	finish  func() // called once, under Server.mu, when the operation succeeds
	fail    func() // as finish, when it fails; may be nil
	done    bool
}

// poll returns the operation's status.
func (o *operation) poll() string {
	if o.polls++; o.polls <= pollsOfOperation {
		return "InProgress"
	}
	if !o.done {
		o.done = true
		switch {
		case o.failure == nil:
			o.finish()
		case o.fail != nil:
			o.fail()
		}
	}
	if o.failure != nil {
		return "Failed"
	}
	return "Succeeded"
}

// start registers an operation, and returns the headers that lead to it.
func (s *Server) start(o *operation, c *call) http.Header {
	id := s.newID()
	s.operations[id] = o
	version := "?api-version=" + c.query.Get("api-version")
	base := s.url + "/subscriptions/" + Subscription + "/providers/Microsoft.Tandem/locations/all/"
	return http.Header{
		"Azure-Asyncoperation": {base + "operationStatuses/" + id + version},
		"Location":             {base + "operationResults/" + id + version},
		"X-Ms-Retry-After-Ms":  {"20"}, // az would wait 30 s otherwise
	}
}

var operationRoutes = []route{
	on(http.MethodGet, `/subscriptions/[^/]+/providers/microsoft.tandem/locations/all/(operationstatuses|operationresults)/([^/]+)`, (*Server).getOperation),
}

func (s *Server) getOperation(c *call) response {
	o := s.operations[c.match[2]]
	if o == nil {
		return failure(http.StatusNotFound, "NotFound", "there is no operation %s", c.match[2])
	}
	status := o.poll()
	header := http.Header{"X-Ms-Retry-After-Ms": {"20"}}
	if strings.EqualFold(c.match[1], "operationresults") {
		switch status {
		case "InProgress":
			header.Set("Location", s.url+c.http.URL.RequestURI())
			return response{status: http.StatusAccepted, header: header}
		case "Failed":
			return response{status: http.StatusConflict, body: object{"error": o.failure}}
		}
		return response{status: http.StatusOK, body: object{}}
	}
	body := object{"id": c.sent, "name": c.match[2], "status": status}
	if status == "Failed" {
		body["error"] = o.failure
	}
	return response{status: http.StatusOK, header: header, body: body}
}
