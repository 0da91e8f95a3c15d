package tenant

// OnSave calls f after each time a record was stored: a place to crash at.
func (s *Store) OnSave(f func(*Record)) { s.saved = f }
