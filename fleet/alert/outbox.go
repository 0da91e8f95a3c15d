package alert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/croft-cloud/croft/fleet/alert/notice"
	"github.com/croft-cloud/croft/fleet/db"
	"github.com/croft-cloud/croft/fleet/fleetapi"
)

// Fate is what became of a message.
type Fate string

// The fates.
const (
	Queued Fate = "queued" // it is tried, and tried again. Transitions to: sent, failed
	Sent   Fate = "sent"   // the receiver has it
	Failed Fate = "failed" // it was tried for a day, or there is no address
)

// Message is some news for one receiver.
type Message struct {
	ID       string // ntf_…
	Receiver string
	Fate     Fate
	Made     time.Time
	Tries    int
	NextTry  time.Time
	Done     time.Time
	Subject  string
	Error    string // of the last try

	body string
}

const messageColumns = "id, receiver, state, made, tries, next_try, done, subject, body, error"

func scanMessage(scan db.Scan) (m Message, err error) {
	var made, next, done int64
	err = scan(&m.ID, &m.Receiver, &m.Fate, &made, &m.Tries, &next, &done, &m.Subject, &m.body, &m.Error)
	m.Made, m.NextTry, m.Done = db.Instant(made), db.Instant(next), db.Instant(done)
	return m, err
}

// Messages is a page of a receiver's messages, newest first, and the next cursor,
// empty after the last. They are kept for 30 days.
func (s *Store) Messages(ctx context.Context, receiver, cursor string, limit int) ([]Message, string, error) {
	query, args := "SELECT "+messageColumns+" FROM alert_messages WHERE receiver = ?", []any{receiver}
	if cursor != "" {
		if _, err := fleetapi.ParseID(fleetapi.PrefixNotification, cursor); err != nil {
			return nil, "", usage("list messages: cursor: %w", err)
		}
		query, args = query+" AND id < ?", append(args, cursor)
	}
	limit = limitOf(limit)
	var found []Message
	err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		found, err = db.All(tx, scanMessage, query+" ORDER BY id DESC LIMIT ?", append(args, limit+1)...)
		return err
	})
	if err != nil || len(found) <= limit {
		return found, "", err
	}
	return found[:limit], found[limit-1].ID, nil
}

// Bounds of sending.
const (
	maxPosted  = 500    // news of one message to a webhook
	maxMailed  = 10_000 // and of a mail, which has words for the first few only
	giveUp     = 24 * time.Hour
	firstRetry = 10 * time.Second
	maxRetry   = time.Hour
	sendInTurn = 12 // messages to owners, by each of those who send
)

func (k Kind) mostNews() int {
	if k == Webhook {
		return maxPosted
	}
	return maxMailed
}

// tell writes the messages that are due, and begins to send.
func (s *Store) tell(ctx context.Context) error {
	return errors.Join(s.compose(ctx), s.sendDue(ctx))
}

// compose makes messages of what waits in the outbox, one for each receiver that
// has none under way. The staff's come first: "rcv_…" before "owner:…".
func (s *Store) compose(ctx context.Context) error {
	type waiting struct {
		receiver     string
		oldest, last time.Time
		count        int
	}
	var (
		due   []waiting
		staff = map[string]Kind{}
		quiet = map[string]Quiet{}
	)
	if err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		if due, err = db.All(tx, func(scan db.Scan) (w waiting, err error) {
			var oldest, last int64
			err = scan(&w.receiver, &oldest, &last, &w.count)
			w.oldest, w.last = db.Instant(oldest), db.Instant(last)
			return w, err
		}, `SELECT o.receiver, MIN(o.at), COALESCE((SELECT MAX(m.made) FROM alert_messages m WHERE m.receiver = o.receiver), 0), COUNT(*)
			FROM alert_outbox o WHERE o.message = ''
			AND NOT EXISTS (SELECT 1 FROM alert_messages q WHERE q.receiver = o.receiver AND q.state = 'queued')
			GROUP BY o.receiver ORDER BY o.receiver DESC`); err != nil || len(due) == 0 {
			return err
		}
		receivers, err := receiversOf(tx)
		for _, r := range receivers {
			staff[r.ID] = r.Kind
		}
		if err != nil {
			return err
		}
		owners, err := db.All(tx, scanQuiet, "SELECT "+quietColumns+" FROM alert_quiet WHERE from_minute <> to_minute")
		for _, q := range owners {
			quiet[ownerPrefix+q.owner] = q.Quiet
		}
		return err
	}); err != nil {
		return err
	}
	now := db.Instant(db.Micros(time.Now()))
	soon := func(from time.Time, wait time.Duration) bool { // a clock that was set back makes nobody wait
		return !from.After(now) && now.Sub(from) < wait
	}
	var errs []error
	for _, w := range due {
		full := w.count >= staff[w.receiver].mostNews()
		if soon(w.oldest, s.cfg.GroupWait) || soon(w.last, s.cfg.GroupInterval) && !full || quiet[w.receiver].at(now) || ctx.Err() != nil {
			continue
		}
		if err := s.composeOne(ctx, w.receiver, now); err != nil { // which holds up no other
			errs = append(errs, fmt.Errorf("write message to %s: %w", w.receiver, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) composeOne(ctx context.Context, to string, now time.Time) error {
	return s.db.Write(ctx, func(tx *db.Tx) error {
		kind := Kind("") // of an owner
		if !strings.HasPrefix(to, ownerPrefix) {
			r, err := receiver(tx, to)
			if err != nil {
				return err
			}
			kind = r.Kind
		}
		type row struct {
			at           int64
			alert, state string
			notice.News
		}
		rows, err := db.All(tx, func(scan db.Scan) (r row, err error) {
			var body string
			if err := scan(&r.at, &r.alert, &r.state, &body); err != nil {
				return r, err
			}
			return r, json.Unmarshal([]byte(body), &r.News)
		}, "SELECT at, alert, news, body FROM alert_outbox WHERE receiver = ? AND message = '' ORDER BY at, alert, news LIMIT ?", to, kind.mostNews())
		if err != nil || len(rows) == 0 {
			return err
		}
		m := Message{ID: fleetapi.NewID(fleetapi.PrefixNotification), Receiver: to, Made: now}
		var news []notice.News
		for _, r := range rows {
			news = append(news, r.News)
		}
		last := rows[len(rows)-1]
		if _, err := tx.Exec("UPDATE alert_outbox SET message = ? WHERE receiver = ? AND message = '' AND (at, alert, news) <= (?, ?, ?)",
			m.ID, to, last.at, last.alert, last.state); err != nil {
			return err
		}
		if err := write(&m, kind, s.cfg.Name, news); err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO alert_messages ("+messageColumns+") VALUES (?, ?, ?, ?, 0, ?, 0, ?, ?, '')",
			m.ID, m.Receiver, string(Queued), db.Micros(m.Made), db.Micros(m.Made), m.Subject, m.body)
		return err
	})
}

// write is the subject and body of a message: JSON, details for the staff, or,
// without a kind, plain sentences for an owner.
func write(m *Message, kind Kind, fleet string, news []notice.News) error {
	m.Subject = notice.Subject(fleet, news)
	switch kind {
	case Webhook:
		body, err := json.Marshal(notice.Delivery{ID: m.ID, Fleet: fleet, At: fleetapi.StampOf(m.Made), Alerts: append([]notice.News{}, news...)})
		m.body = string(body)
		return err
	case Email:
		m.body = notice.ForStaff(news)
	default:
		m.body = notice.ForOwner(news)
	}
	return nil
}

// sendDue begins to send what is due and not under way. A receiver has at most one
// message queued, so one that hangs holds up its own only. The staff's receivers are
// few, and are sent to all at once; owners' mails go a few at a time.
func (s *Store) sendDue(ctx context.Context) error {
	staff, err := s.due(ctx, "NOT LIKE", maxReceivers)
	if err != nil {
		return err
	}
	for _, m := range staff {
		s.wg.Go(func() { s.sendTaken(ctx, m) })
	}
	s.mu.Lock()
	free := parallelSends - s.senders
	s.mu.Unlock()
	if free <= 0 {
		return nil
	}
	owners, err := s.due(ctx, "LIKE", free*sendInTurn)
	if err != nil {
		return err
	}
	queue := make(chan Message, len(owners))
	for _, m := range owners {
		queue <- m
	}
	close(queue)
	for range min(free, len(owners)) {
		s.mu.Lock()
		s.senders++
		s.mu.Unlock()
		s.wg.Go(func() {
			for m := range queue {
				s.sendTaken(ctx, m)
			}
			s.mu.Lock()
			s.senders--
			s.mu.Unlock()
		})
	}
	return nil
}

// due is messages to send now, taken: to owners, or to those that are not LIKE them.
func (s *Store) due(ctx context.Context, like string, most int) (due []Message, err error) {
	now := time.Now()
	err = s.db.Read(ctx, func(tx *db.Tx) (err error) {
		// A try that is far ahead was planned while the clock was wrong.
		due, err = db.All(tx, scanMessage, "SELECT "+messageColumns+" FROM alert_messages WHERE state = 'queued' AND (next_try <= ? OR next_try > ?) AND receiver "+
			like+" ? ESCAPE '!' ORDER BY next_try, id LIMIT ?", db.Micros(now), db.Micros(now.Add(2*maxRetry)), ownerPrefix+"%", most)
		return err
	})
	return slices.DeleteFunc(due, func(m Message) bool { return !s.take(m.ID) }), err
}

// sendTaken sends a message that was taken, and leaves it.
func (s *Store) sendTaken(ctx context.Context, m Message) {
	defer s.leave(m.ID)
	if err := s.sendOne(ctx, m); err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("what became of a message cannot be stored", "message", m.ID, "error", err)
	}
}

func (s *Store) take(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[id] {
		return false
	}
	s.busy[id] = true
	return true
}

func (s *Store) leave(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, id)
}

var errNoAddress = errors.New("the account has no e-mail address")

// sendOne tries once, and stores what came of it, also when the leader has to go
// meanwhile: a message that is known to be sent is not sent again.
func (s *Store) sendOne(ctx context.Context, m Message) error {
	failure := s.send(ctx, m)
	if failure != nil && ctx.Err() != nil {
		return ctx.Err() // it was cut short; the next leader tries
	}
	now := time.Now()
	fate, next, done, text := Sent, time.Time{}, now, ""
	if failure != nil {
		text = fleetapi.CleanText(failure.Error(), maxSentence)
		switch {
		case errors.Is(failure, errNoAddress) || now.Sub(m.Made) >= giveUp:
			fate = Failed
			s.cfg.Log.Error("message about alerts was given up", "message", m.ID, "receiver", m.Receiver, "tries", m.Tries+1, "error", text)
		default:
			fate, next, done = Queued, now.Add(backoff(m.Tries)), time.Time{}
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	return s.db.Write(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec("UPDATE alert_messages SET state = ?, tries = ?, next_try = ?, done = ?, error = ? WHERE id = ? AND state = 'queued'",
			string(fate), m.Tries+1, db.Micros(next), db.Micros(done), text, m.ID)
		return err
	})
}

// backoff is how long to wait after a number of tries before: 10 s, then twice as
// long each time, up to an hour; a fourth of it by chance.
func backoff(tries int) time.Duration {
	wait := min(firstRetry<<min(tries, 20), maxRetry)
	return wait - rand.N(wait/4)
}

// send returns nil once the receiver has the message.
func (s *Store) send(ctx context.Context, m Message) error {
	if owner, ok := strings.CutPrefix(m.Receiver, ownerPrefix); ok {
		address, err := s.cfg.Owners.Email(ctx, owner)
		if err != nil {
			return fmt.Errorf("find address: %w", err)
		}
		if address == "" {
			return errNoAddress
		}
		return s.mail(ctx, address, m)
	}
	var r Receiver
	if err := s.db.Read(ctx, func(tx *db.Tx) (err error) {
		r, err = receiver(tx, m.Receiver)
		return err
	}); err != nil {
		return err
	}
	if r.Kind == Email {
		return s.mail(ctx, r.Address, m)
	}
	secret, err := s.seal.Open(r.ID, r.secret)
	if err != nil {
		return err
	}
	return s.hook.Post(ctx, r.Address, secret, m.ID, []byte(m.body))
}

func (s *Store) mail(ctx context.Context, to string, m Message) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return s.cfg.Mailer.Send(ctx, Mail{ID: m.ID, To: to, Subject: m.Subject, Text: m.body})
}
