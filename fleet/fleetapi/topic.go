package fleetapi

import (
	"slices"
	"strings"

	"github.com/croft-cloud/croft"
)

// Subject is what a message is about: the end of its topic. Those that begin
// with "up/" go from the box to the fleet, those with "dn/" the other way.
type Subject string

// The subjects.
const (
	SubjectHello    Subject = "up/hello"   // [Hello], first in every session
	SubjectState    Subject = "up/state"   // [State], retained, and the will
	SubjectReadings Subject = "up/tm"      // [Batch], every minute; it is the heartbeat too
	SubjectEvent    Subject = "up/event"   // [Event]
	SubjectLog      Subject = "up/log"     // [LogLines]
	SubjectStatus   Subject = "up/job"     // [JobStatus]
	SubjectDesired  Subject = "dn/desired" // [Desired], retained
	SubjectJob      Subject = "dn/job"     // [Job]
)

// delivery is what holds for every message of a subject.
type delivery struct {
	qos      byte
	retained bool
	packed   bool // the payload is a zstd frame
	max      int  // bytes of a payload
}

var deliveries = map[Subject]delivery{
	SubjectHello:    {qos: 1, max: 32 << 10},
	SubjectState:    {qos: 1, max: 256, retained: true},
	SubjectReadings: {qos: 0, max: 256 << 10, packed: true},
	SubjectEvent:    {qos: 1, max: 32 << 10},
	SubjectLog:      {qos: 0, max: 128 << 10, packed: true},
	SubjectStatus:   {qos: 1, max: 32 << 10},
	SubjectDesired:  {qos: 1, max: 32 << 10, retained: true},
	SubjectJob:      {qos: 1, max: 32 << 10},
}

// Subjects is every subject, sorted.
func Subjects() []Subject {
	return []Subject{
		SubjectDesired, SubjectJob, SubjectEvent, SubjectHello,
		SubjectStatus, SubjectLog, SubjectState, SubjectReadings,
	}
}

// Known reports whether s is one of [Subjects].
func (s Subject) Known() bool { return deliveries[s].max > 0 }

// Up reports whether messages go from the box to the fleet.
func (s Subject) Up() bool { return strings.HasPrefix(string(s), "up/") }

// QoS is the quality of service with which to publish: 0 for what the next
// message replaces, 1 for what must arrive.
func (s Subject) QoS() byte { return deliveries[s].qos }

// Retained reports whether the broker keeps the newest message.
func (s Subject) Retained() bool { return deliveries[s].retained }

// MaxPayload is the most bytes a payload has. [Encode] makes none that is
// larger and [Decode] looks into none that is.
func (s Subject) MaxPayload() int { return deliveries[s].max }

// Topic is where messages about s of one device go:
// "croft/v1/DEVICE/up/hello".
func (s Subject) Topic(device croft.DeviceID) string {
	return topicRoot + string(device) + "/" + string(s)
}

// Filter is the topics of s of every device, for the fleet:
// "croft/v1/+/up/hello".
func (s Subject) Filter() string { return topicRoot + "+/" + string(s) }

// DownFilter is every topic that the fleet publishes to a device, for its one
// subscription: "croft/v1/DEVICE/dn/+".
func DownFilter(device croft.DeviceID) string { return topicRoot + string(device) + "/dn/+" }

const topicRoot = "croft/v1/"

// ParseTopic accepts exactly what [Subject.Topic] makes.
func ParseTopic(topic string) (croft.DeviceID, Subject, error) {
	name, subject, err := splitTopic(topic)
	if err != nil {
		return "", "", err
	}
	device, err := croft.ParseDeviceID(name)
	if err != nil {
		return "", "", refuse(ReasonMalformed, "topic %.80q names no device", topic)
	}
	if !Subject(subject).Known() {
		return "", "", refuse(ReasonMalformed, "topic %.80q has no known subject", topic)
	}
	return device, Subject(subject), nil
}

// splitTopic takes a topic or filter apart and leaves its parts unchecked.
func splitTopic(topic string) (device, subject string, err error) {
	rest, ours := strings.CutPrefix(topic, topicRoot)
	device, subject, whole := strings.Cut(rest, "/")
	if !ours || !whole {
		return "", "", refuse(ReasonMalformed, "topic %.80q: want %sDEVICE/SUBJECT", topic, topicRoot)
	}
	return device, subject, nil
}

// MayPublish is the rule of the fleet's broker for a device that publishes: the
// subjects that go up, of its own. Anything else is refused as foreign. Brokers
// that know patterns only, and have croft/v1/%c/#, let a device also write to
// itself what the fleet would.
func MayPublish(device croft.DeviceID, topic string) error {
	owner, subject, err := ParseTopic(topic)
	if err != nil || owner != device || !subject.Up() {
		return refuse(ReasonForeign, "publish: topic %.80q is not device %.40s's", topic, device)
	}
	return nil
}

// MaySubscribe is the rule of the fleet's broker for a device that subscribes:
// the subjects that go down, of its own, one by one or together as "dn/+" or
// "dn/#". Anything else, shared subscriptions too, is refused as foreign.
func MaySubscribe(device croft.DeviceID, filter string) error {
	owner, subject, err := splitTopic(filter)
	if err == nil && owner == string(device) && slices.Contains(downFilters, subject) {
		if _, err := croft.ParseDeviceID(owner); err == nil {
			return nil
		}
	}
	return refuse(ReasonForeign, "subscribe: topic %.80q is not device %.40s's", filter, device)
}

// downFilters is what a device may subscribe to below its own name.
var downFilters = []string{string(SubjectDesired), string(SubjectJob), "dn/+", "dn/#"}
