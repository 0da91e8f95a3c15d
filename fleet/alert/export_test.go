package alert

import (
	"context"
	"errors"
)

// Round does once what the loops of Run do again and again.
func (s *Store) Round(ctx context.Context) error {
	err := errors.Join(s.judge(ctx), s.tell(ctx))
	s.wg.Wait()
	return errors.Join(err, s.sweep(ctx))
}

// Tell writes and sends what is due, and waits for it.
func (s *Store) Tell(ctx context.Context) error {
	err := s.tell(ctx)
	s.wg.Wait()
	return err
}

// Judge looks once.
func (s *Store) Judge(ctx context.Context) error { return s.judge(ctx) }

// Sealed is the stored secret of a receiver.
func (r Receiver) Sealed() []byte { return r.secret }
