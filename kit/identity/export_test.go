package identity

// ReloadAlways lets v load the keys again for every token with an unknown key.
func (v *Verifier) ReloadAlways() { v.reloadInterval = 0 }

// Forget lets v verify every token again.
func (v *Verifier) Forget() { clear(v.verified) }
