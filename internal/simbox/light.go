package simbox

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/agent/uplink"
	"github.com/croft-cloud/croft/fleet/fleetapi"
	"github.com/croft-cloud/croft/provisioning/claim"
)

// light is one box of a crowd: one goroutine, one connection, no disk.
type light struct {
	crowd  *Crowd
	number uint64
	model  model
	bootID string
	code   claim.Code
	pass   *Pass // nil until it is enrolled
	pauses *uplink.Pauses

	journal, epoch, seq, batches uint64
	unsaid                       []*numbered // job statuses that were not acknowledged
}

// numbered is a message that must arrive.
type numbered struct{ raw []byte }

// onWay is a message that waits for its acknowledgement.
type onWay struct {
	id      uint16
	at      time.Time
	carries *numbered // nil: the session's own
}

func newLight(c *Crowd, number uint64) *light {
	return &light{
		crowd: c, number: number, model: newModel(number, time.Now()), bootID: newBootID(),
		pauses: uplink.NewPauses(), journal: fleetapi.NewJournal(),
	}
}

// connect goes from one session to the next until ctx ends.
func (b *light) connect(ctx context.Context) {
	for ctx.Err() == nil {
		begin := time.Now()
		err := b.hold(ctx)
		if ctx.Err() != nil {
			return
		}
		b.crowd.problem.Store(&err)
		if time.Since(begin) >= uplink.Steady {
			b.pauses.Reset()
		}
		sleep(ctx, b.pauses.Next(isRefusal(err)))
	}
}

// hold keeps a session for as long as it lasts.
func (b *light) hold(ctx context.Context) error {
	c := b.crowd
	broker := b.pass.Brokers[int(b.epoch)%len(b.pass.Brokers)]
	trust, err := c.brokerTrust(broker)
	if err != nil {
		return err
	}
	b.epoch++
	b.batches = 0
	state := fleetapi.State{Presence: fleetapi.Lost, Journal: b.journal, Epoch: b.epoch}
	will, err := fleetapi.Encode(&state)
	if err != nil {
		return err
	}
	c.count(func(s *Second) { s.Tries++ })
	line, err := Connect(ctx, c.cfg.Fleet, b.pass, LineConfig{
		Broker: broker, WillTopic: fleetapi.SubjectState.Topic(b.pass.Device), Will: will, Dial: c.cfg.Dial(b.number), trust: trust,
	})
	if err != nil {
		return err
	}
	defer line.Drop()
	c.count(func(s *Second) { s.Sessions++ })
	c.connected.Add(1)
	defer func() {
		c.connected.Add(-1)
		c.count(func(s *Second) { s.Ends++ })
	}()
	s := &lightSession{light: b, line: line}
	if err := s.greet(); err != nil {
		return err
	}
	// pump sets a deadline and then looks at ctx; this comes after ctx has ended.
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = line.conn.SetReadDeadline(time.Unix(1, 0)) // the connection may have ended
		close(woken)
	})
	defer stop()
	if err := s.pump(ctx); err != nil {
		return err
	}
	<-woken // or it would cut the farewell short
	return s.leave(&state)
}

// leave says in order that the box goes.
func (s *lightSession) leave(state *fleetapi.State) error {
	if err := s.say(state, nil); err != nil {
		return err
	}
	if _, err := s.line.await(pktPuback, s.line.last, byeTime); err != nil {
		return err
	}
	s.crowd.acked.Add(1)
	s.line.Close()
	return nil
}

// lightSession is a session of a light box.
type lightSession struct {
	*light
	line    *Line
	waiting []onWay // for acknowledgements, in order
}

// greet says who the box is and what is left from the session before. It subscribes
// first, as agent/uplink does: a fleet answers a Hello with the jobs that wait.
func (s *lightSession) greet() error {
	granted, err := s.line.Subscribe(fleetapi.DownFilter(s.pass.Device))
	if err != nil {
		return err
	}
	if !granted {
		return errors.New("broker does not let the box read its own topics")
	}
	hello := &fleetapi.Hello{
		Journal: s.journal, Epoch: s.epoch, Version: fleetapi.Version, At: fleetapi.Truncate(time.Now()), Synced: true,
		BootID: s.bootID, Release: defaultRelease, Slot: croft.SlotA, Board: defaultBoard,
		Facts: fleetapi.Labels(map[string]string{"simulated": "yes"}),
	}
	if err := s.say(hello, nil); err != nil {
		return err
	}
	if err := s.say(&fleetapi.State{Presence: fleetapi.Online, Journal: s.journal, Epoch: s.epoch}, nil); err != nil {
		return err
	}
	for _, n := range s.unsaid {
		if err := s.send(fleetapi.SubjectStatus, 1, n.raw, n); err != nil {
			return err
		}
	}
	return nil
}

// say sends a payload.
func (s *lightSession) say(p fleetapi.Payload, n *numbered) error {
	raw, err := fleetapi.Encode(p)
	if err != nil {
		return err
	}
	qos := p.Subject().QoS()
	if s.crowd.cfg.Confirm {
		qos = 1
	}
	if n != nil {
		n.raw = raw
	}
	return s.send(p.Subject(), qos, raw, n)
}

func (s *lightSession) send(subject fleetapi.Subject, qos byte, raw []byte, n *numbered) error {
	topic := subject.Topic(s.pass.Device)
	id, err := s.line.publish(topic, qos, subject.Retained(), raw)
	if err != nil {
		return err
	}
	s.crowd.sent.Add(1)
	s.crowd.bytes.Add(int64(len(topic) + len(raw)))
	if qos > 0 {
		s.waiting = append(s.waiting, onWay{id: id, at: time.Now(), carries: n})
	}
	return nil
}

// pump sends a message at the box's turn in each interval, and deals with what
// comes, until the session or ctx ends.
func (s *lightSession) pump(ctx context.Context) error {
	every := s.crowd.cfg.Interval
	now := time.Now()
	turn := now.Truncate(every).Add(time.Duration(share(s.number) * float64(every)))
	if !turn.After(now) {
		turn = turn.Add(every)
	}
	for {
		due := turn
		if ping := s.line.sent.Add(keepAlive); ping.Before(due) {
			due = ping
		}
		if len(s.waiting) > 0 {
			if late := s.waiting[0].at.Add(answerTime); late.Before(due) {
				due = late
			}
		}
		if err := s.line.conn.SetReadDeadline(due); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		p, err := s.line.readOne()
		switch {
		case err == nil:
			err = s.take(p)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = nil
		}
		if now := time.Now(); err == nil && !now.Before(due) {
			err = s.act(now, turn)
			if !now.Before(turn) {
				turn = turn.Add(every)
			}
		}
		if err != nil {
			return err
		}
	}
}

// act does what is due.
func (s *lightSession) act(now, turn time.Time) error {
	if len(s.waiting) > 0 && now.Sub(s.waiting[0].at) >= answerTime {
		return errSilent
	}
	if !now.Before(turn) {
		every := s.crowd.cfg.ReadEvery
		b := s.model.batch(now, max(1, int(s.crowd.cfg.Interval/every)), every)
		s.batches++
		b.Epoch, b.Seq, b.BootID = s.epoch, s.batches, s.bootID
		return s.say(b, nil)
	}
	if now.Sub(s.line.sent) >= keepAlive {
		return s.line.write(pktPingreq<<4, nil)
	}
	return nil
}

// take deals with a packet.
func (s *lightSession) take(p packet) error {
	switch p.kind {
	case pktPuback:
		s.acknowledged(p.id())
	case pktPublish:
		m, err := s.line.take(p)
		if err != nil {
			return err
		}
		s.line.arrived = append(s.line.arrived, m)
	}
	for _, m := range s.line.arrived {
		s.crowd.heard.Add(1)
		if err := s.follow(m); err != nil {
			return err
		}
	}
	s.line.arrived = nil
	return nil
}

func (s *lightSession) acknowledged(id uint16) {
	for i, w := range s.waiting {
		if w.id != id {
			continue
		}
		s.waiting = append(s.waiting[:i], s.waiting[i+1:]...)
		s.crowd.acked.Add(1)
		s.crowd.delays[delayStep(time.Since(w.at))].Add(1)
		for k, n := range s.unsaid {
			if n == w.carries {
				s.unsaid = append(s.unsaid[:k], s.unsaid[k+1:]...)
				break
			}
		}
		return
	}
}

// follow answers a job at once. What is desired of it a light box takes no notice
// of.
func (s *lightSession) follow(m Message) error {
	_, subject, err := fleetapi.ParseTopic(m.Topic)
	if err != nil || subject != fleetapi.SubjectJob {
		return err
	}
	job, err := fleetapi.Parse[fleetapi.Job](m.Raw)
	if err != nil {
		return err
	}
	s.seq++
	status := &fleetapi.JobStatus{
		Origin: fleetapi.Origin{Journal: s.journal, Seq: s.seq}, At: fleetapi.Truncate(time.Now()), Synced: true,
		Job: job.ID, State: fleetapi.Succeeded, Version: 1, Detail: "The simulated box did it.",
	}
	switch {
	case job.Canceled:
		status.State, status.Detail = fleetapi.Canceled, "The job was taken back before it began."
	case job.Kind == fleetapi.KindBundle:
		status.State, status.Detail = fleetapi.Rejected, "A box of a simulated crowd has nothing to put into a bundle."
	}
	n := &numbered{}
	s.unsaid = append(s.unsaid, n)
	return s.say(status, n)
}
