package fleetapi

import (
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft"
)

const otherDevice = croft.DeviceID("234567abcdefghijklmnopqrstuvwxyz")

func TestTopics(t *testing.T) {
	for _, s := range Subjects() {
		topic := s.Topic(testDevice)
		if want := "croft/v1/" + string(testDevice) + "/" + string(s); topic != want {
			t.Errorf("Topic = %q, want %q", topic, want)
		}
		device, subject, err := ParseTopic(topic)
		if device != testDevice || subject != s || err != nil {
			t.Errorf("ParseTopic(%q) = %s, %s, %v", topic, device, subject, err)
		}
		if want := "croft/v1/+/" + string(s); s.Filter() != want {
			t.Errorf("Filter = %q, want %q", s.Filter(), want)
		}
	}
	if !slices.IsSorted(Subjects()) || len(Subjects()) != len(deliveries) {
		t.Errorf("Subjects = %v, want all %d, sorted", Subjects(), len(deliveries))
	}
}

func TestTopicsThatAreNone(t *testing.T) {
	d := string(testDevice)
	for _, topic := range []string{
		"", "/", "croft", "croft/v1", "croft/v1/", "croft/v1/" + d, "croft/v1/" + d + "/", "croft/v1/" + d + "/up",
		"croft/v1/" + d + "/up/", "croft/v1/" + d + "/up/hello/", "croft/v1/" + d + "/up/hello/x", "croft/v1/" + d + "/UP/HELLO",
		"/croft/v1/" + d + "/up/hello", "croft/v2/" + d + "/up/hello", "Croft/v1/" + d + "/up/hello",
		"croft/v1/+/up/hello", "croft/v1/" + d + "/up/+", "croft/v1/" + d + "/#", "#", "$SYS/broker",
		"croft/v1/" + strings.ToUpper(d) + "/up/hello", "croft/v1/" + d[1:] + "/up/hello", "croft/v1//up/hello",
		"croft/v1/" + d + "/up/hello\x00", "croft/v1/" + d + "/dn/hello", strings.Repeat("croft/v1/", 9000),
	} {
		device, subject, err := ParseTopic(topic)
		if device != "" || subject != "" || ReasonOf(err) != ReasonMalformed {
			t.Errorf("ParseTopic(%.80q) = %q, %q, %v", topic, device, subject, err)
		}
		if err != nil && len(err.Error()) > 400 {
			t.Errorf("the error repeats %d bytes of the topic", len(err.Error()))
		}
	}
}

// TestAccess is the whole matrix: every subject of a device and of another, as
// topic and as filter.
func TestAccess(t *testing.T) {
	for _, s := range Subjects() {
		up := strings.HasPrefix(string(s), "up/")
		for _, tc := range []struct {
			topic              string
			publish, subscribe bool
		}{
			{s.Topic(testDevice), up, !up},
			{s.Topic(otherDevice), false, false},
			{s.Filter(), false, false},
			{"$share/g/" + s.Topic(testDevice), false, false},
			{s.Topic(testDevice) + "/x", false, false},
			{"x/" + s.Topic(testDevice), false, false},
		} {
			if err := MayPublish(testDevice, tc.topic); (err == nil) != tc.publish {
				t.Errorf("MayPublish(%q) = %v, want %v", tc.topic, err, tc.publish)
			} else if err != nil && ReasonOf(err) != ReasonForeign {
				t.Errorf("MayPublish(%q): reason %s", tc.topic, ReasonOf(err))
			}
			if err := MaySubscribe(testDevice, tc.topic); (err == nil) != tc.subscribe {
				t.Errorf("MaySubscribe(%q) = %v, want %v", tc.topic, err, tc.subscribe)
			} else if err != nil && ReasonOf(err) != ReasonForeign {
				t.Errorf("MaySubscribe(%q): reason %s", tc.topic, ReasonOf(err))
			}
		}
	}
	d := "croft/v1/" + string(testDevice)
	for filter, want := range map[string]bool{
		DownFilter(testDevice): true, d + "/dn/+": true, d + "/dn/#": true,
		DownFilter(otherDevice): false, d + "/#": false, d + "/+/job": false, d + "/up/#": false, d + "/dn": false,
		"croft/v1/+/dn/+": false, "croft/v1/#": false, "#": false, "+": false, "": false, "$SYS/#": false,
	} {
		if err := MaySubscribe(testDevice, filter); (err == nil) != want {
			t.Errorf("MaySubscribe(%q) = %v, want %v", filter, err, want)
		}
		if err := MayPublish(testDevice, filter); err == nil {
			t.Errorf("MayPublish(%q) is allowed", filter)
		}
	}
	for _, nobody := range []croft.DeviceID{"", "+", "#"} { // a client whose name was never checked
		for _, filter := range []string{DownFilter(nobody), SubjectJob.Topic(nobody), "croft/v1/+/dn/+", "croft/v1/#"} {
			if MaySubscribe(nobody, filter) == nil || MayPublish(nobody, filter) == nil {
				t.Errorf("client %q may use %q", nobody, filter)
			}
		}
	}
}

func TestDelivery(t *testing.T) {
	for s, want := range map[Subject]struct {
		qos      byte
		retained bool
	}{
		SubjectHello: {1, false}, SubjectState: {1, true}, SubjectReadings: {0, false}, SubjectEvent: {1, false},
		SubjectLog: {0, false}, SubjectStatus: {1, false}, SubjectDesired: {1, true}, SubjectJob: {1, false},
	} {
		if s.QoS() != want.qos || s.Retained() != want.retained || !s.Known() || s.MaxPayload() == 0 {
			t.Errorf("%s: QoS %d, retained %v, known %v, at most %d bytes", s, s.QoS(), s.Retained(), s.Known(), s.MaxPayload())
		}
	}
	if Subject("up/usage").Known() {
		t.Error("up/usage is known")
	}
}
