package fleetapi

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/croft-cloud/croft"
)

func FuzzTopic(f *testing.F) {
	for _, s := range Subjects() {
		f.Add(s.Topic(testDevice))
		f.Add(s.Filter())
	}
	f.Add(DownFilter(testDevice))
	f.Add("$share/g/croft/v1/#")
	f.Fuzz(func(t *testing.T, topic string) {
		device, subject, err := ParseTopic(topic)
		if err == nil {
			if got := subject.Topic(device); got != topic {
				t.Errorf("%q was read as %q", topic, got)
			}
			if _, err := croft.ParseDeviceID(string(device)); err != nil {
				t.Error(err)
			}
		}
		if MayPublish(testDevice, topic) == nil && (err != nil || device != testDevice || !subject.Up()) {
			t.Errorf("device may publish to %q", topic)
		}
		if MaySubscribe(testDevice, topic) == nil && !strings.HasPrefix(topic, topicRoot+string(testDevice)+"/dn/") {
			t.Errorf("device may subscribe to %q", topic)
		}
	})
}

func FuzzID(f *testing.F) {
	f.Add(testJob)
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := ParseID(PrefixJob, s); err == nil && (got != s || len(s) != len(testJob)) {
			t.Errorf("ParseID(%q) = %q", s, got)
		}
	})
}

func FuzzHello(f *testing.F)     { fuzzPayload(f, SubjectHello) }
func FuzzState(f *testing.F)     { fuzzPayload(f, SubjectState) }
func FuzzReadings(f *testing.F)  { fuzzPayload(f, SubjectReadings) }
func FuzzEvent(f *testing.F)     { fuzzPayload(f, SubjectEvent) }
func FuzzLogLines(f *testing.F)  { fuzzPayload(f, SubjectLog) }
func FuzzJobStatus(f *testing.F) { fuzzPayload(f, SubjectStatus) }
func FuzzDesired(f *testing.F)   { fuzzPayload(f, SubjectDesired) }
func FuzzJob(f *testing.F)       { fuzzPayload(f, SubjectJob) }

// fuzzPayload makes messages: what is accepted must be sendable, and come back
// as it was. Frames are made around them, or no fuzzer would get through;
// FuzzFrame makes frames.
func fuzzPayload(f *testing.F, s Subject) {
	raw, err := os.ReadFile(recording(s))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plainOf(f, s, raw))
	f.Fuzz(func(t *testing.T, plain []byte) { checkDecode(t, s, wrap(s, plain)) })
}

func FuzzFrame(f *testing.F) {
	for _, s := range []Subject{SubjectReadings, SubjectLog} {
		raw, err := os.ReadFile(recording(s))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		checkDecode(t, SubjectReadings, raw)
		checkDecode(t, SubjectLog, raw)
	})
}

func checkDecode(t *testing.T, s Subject, raw []byte) {
	t.Helper()
	p, err := Decode(s, raw)
	if err != nil {
		if ReasonOf(err) == ReasonOther || p != nil {
			t.Fatalf("refused as %v without a reason: %v", p, err)
		}
		return
	}
	again, err := Encode(p)
	if ReasonOf(err) == ReasonOversized {
		return // what is shorter than we would write it, as a frame packed better
	}
	if err != nil {
		t.Fatalf("accepted %v, but it cannot be sent: %v", p, err)
	}
	back, err := Decode(s, again)
	if err != nil {
		t.Fatalf("accepted %v, but not what it was sent as: %v", p, err)
	}
	if diff := cmp.Diff(p, back, equateNaNs); diff != "" {
		t.Fatal("-accepted +sent again\n" + diff)
	}
}
