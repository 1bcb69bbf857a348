package arm

// deploy creates the resources of a deployment's template.
func (s *Server) deploy(*resource) {}
