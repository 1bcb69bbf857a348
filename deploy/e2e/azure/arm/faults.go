package arm

import (
	"net/http"
	"regexp"
)

// Fault makes chosen requests fail.
type Fault struct {
	Method  string            // "" for any
	Path    string            // a regular expression; case does not matter
	Skip    int               // how many matching requests succeed first
	Times   int               // how many fail; 0 for all
	Status  int               // of the response; 0 for an operation that starts and ends Failed
	Code    string            // of the error
	Message string            // of the error
	Header  map[string]string // of the response

	path *regexp.Regexp
	seen int
}

// Inject adds a fault. It panics if the path is no regular expression.
func (s *Server) Inject(f Fault) {
	f.path = regexp.MustCompile("(?i)" + f.Path)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
}

// Repair removes all faults.
func (s *Server) Repair() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// Unregister makes a resource provider unregistered until it is registered again.
func (s *Server) Unregister(provider string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setProvider(provider, "NotRegistered")
}

// SetQuota limits the vCPUs that the subscription may use.
func (s *Server) SetQuota(cores int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cores = cores
}

// DemoteCaller takes from the caller the right to assign roles, as a Contributor.
func (s *Server) DemoteCaller() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.contributor = true
}

// fail returns the response of the first fault that applies to the call.
func (s *Server) fail(c *call) (response, bool) {
	f := s.applies(c, func(f *Fault) bool { return f.Status != 0 })
	if f == nil {
		return response{}, false
	}
	answer := failure(f.Status, f.Code, "%s", f.Message)
	answer.header = http.Header{}
	for name, value := range f.Header {
		answer.header.Set(name, value)
	}
	return answer, true
}

// failOperation returns the error with which the operation of a call ends, or nil.
func (s *Server) failOperation(c *call) object {
	f := s.applies(c, func(f *Fault) bool { return f.Status == 0 })
	if f == nil {
		return nil
	}
	return object{"code": f.Code, "message": f.Message}
}

func (s *Server) applies(c *call, kind func(*Fault) bool) *Fault {
	for _, f := range s.faults {
		if !kind(f) || f.Method != "" && f.Method != c.http.Method || !f.path.MatchString(c.path) {
			continue
		}
		f.seen++
		if f.seen > f.Skip && (f.Times == 0 || f.seen <= f.Skip+f.Times) {
			return f
		}
	}
	return nil
}
