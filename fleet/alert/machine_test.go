package alert

import (
	"math/rand/v2"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)

// walk steps an item through verdicts, one a minute: 'b'ad, 'g'ood, 'u'nknown,
// 'x' gone, and '.' a minute in which nobody looked. Fires and resolves are
// written 'F' and 'R', other steps '-'.
func walk(r Rule, verdicts string) string {
	words := map[rune]verdict{'b': bad, 'g': good, 'u': unknown, 'x': gone}
	letters := map[move]string{stays: "-", fires: "F", resolves: "R"}
	var i item
	var what move
	var lost time.Duration
	out, now := "", start
	for _, v := range verdicts {
		now = now.Add(time.Minute)
		if v == '.' {
			lost += time.Minute
			out += "."
			continue
		}
		i, what = i.step(words[v], r, now, lost)
		lost = 0
		out += letters[what]
	}
	return out
}

func TestSteps(t *testing.T) {
	r := Rule{For: 2 * time.Minute, Clear: 2 * time.Minute}
	for _, c := range []struct{ name, in, want string }{
		{"bad for long enough", "bbb", "--F"},
		{"not long enough", "bbgbb", "-----"},
		{"good for long enough", "bbbggg", "--F--R"},
		{"bad again before it is over", "bbbggbggg", "--F-----R"},
		{"pending and not known", "bbubb", "-----"},
		{"firing and not known", "bbbuuuuuuuu", "--F--------"},
		{"not known breaks the good time", "bbbgguggg", "--F-----R"},
		{"nobody looked while it was pending", "b.....bb", "-.....-F"},
		{"nobody looked while it was good", "bbbg.....gg", "--F-.....-R"},
		{"gone while it fires", "bbbx", "--FR"},
		{"gone while it is pending", "bbxbbb", "-----F"},
		{"fires twice: good for twice as long", "bbbgggbbbggggg", "--F--R--F----R"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := walk(r, c.in); got != c.want {
				t.Errorf("%s: %s, want %s", c.in, got, c.want)
			}
		})
	}
	if got := walk(Rule{Clear: time.Minute}, "bgg"); got != "F-R" {
		t.Errorf("without For: %s", got)
	}
}

// TestFlapsAreDamped: what turns bad again as soon as it is over fires ever more
// rarely, and after a calm hour all is forgotten.
func TestFlapsAreDamped(t *testing.T) {
	r := Rule{Clear: time.Minute}
	var i item
	var waits []time.Duration
	now := start
	for range 7 {
		var what move
		i, what = i.step(bad, r, now, 0)
		if what != fires {
			t.Fatalf("did not fire: %+v", i)
		}
		begin := now
		for what = stays; what != resolves; now = now.Add(time.Minute) {
			i, what = i.step(good, r, now, 0)
		}
		waits = append(waits, now.Sub(begin)-time.Minute)
	}
	for n, want := range []time.Duration{1, 2, 4, 8, 16, 16, 16} {
		if waits[n] != want*time.Minute {
			t.Errorf("alert %d was over after %s, want %d min", n, waits[n], want)
		}
	}
	i, _ = i.step(good, r, now.Add(flapMemory), 0)
	if i != (item{}) {
		t.Errorf("after a calm hour: %+v", i)
	}
}

// TestRandomSteps holds the machine against its history: it fires and resolves in
// turn, fires only after For of nothing but bad, and resolves only after Clear of
// nothing but good, not counting time in which nobody looked.
func TestRandomSteps(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 8))
	for range 300 {
		r := Rule{For: time.Duration(rng.IntN(4)) * time.Minute, Clear: time.Duration(1+rng.IntN(4)) * time.Minute}
		var i item
		var badFor, goodFor time.Duration = -1, -1
		firing, now := false, start
		for range 200 {
			lost := time.Duration(max(0, rng.IntN(20)-16)) * time.Hour
			now = now.Add(time.Minute + lost)
			v := []verdict{good, good, good, bad, bad, bad, bad, unknown, gone}[rng.IntN(9)]
			if rng.IntN(3) > 0 && badFor >= 0 {
				v = bad
			}
			count := func(is bool, run *time.Duration) {
				switch {
				case !is:
					*run = -1
				case *run < 0:
					*run = 0
				default:
					*run += time.Minute
				}
			}
			count(v == bad, &badFor)
			count(v == good, &goodFor)
			var what move
			i, what = i.step(v, r, now, lost)
			switch {
			case what == fires && (firing || badFor < r.For), what == resolves && (!firing || v != gone && goodFor < r.Clear):
				t.Fatalf("%s at %s, bad for %s, good for %s, rule %+v", what, v, badFor, goodFor, r)
			case what == stays && !firing && badFor >= r.For && v == bad:
				t.Fatalf("did not fire, bad for %s, rule %+v, item %+v", badFor, r, i)
			case what == stays && firing && goodFor >= r.Clear<<maxFlaps:
				t.Fatalf("did not resolve, good for %s, rule %+v, item %+v", goodFor, r, i)
			case what != stays:
				firing = what == fires
			}
		}
	}
}

func TestTogether(t *testing.T) {
	at := func(minutes ...int) (out []time.Time) {
		for _, m := range minutes {
			out = append(out, start.Add(time.Duration(m)*time.Minute))
		}
		return out
	}
	for _, c := range []struct {
		times []time.Time
		want  int
	}{{nil, 0}, {at(7), 1}, {at(30, 0, 10), 2}, {at(0, 5, 10, 11, 20, 21), 3}, {at(0, 11, 22), 1}} {
		if got := most(c.times, 10*time.Minute); got != c.want {
			t.Errorf("of %v within ten minutes: %d, want %d", c.times, got, c.want)
		}
	}
}

func TestQuietHours(t *testing.T) {
	for _, c := range []struct {
		q     Quiet
		clock string // UTC, in winter
		want  bool
	}{
		{Quiet{}, "00:00", false},
		{Quiet{From: 60, To: 120}, "01:00", true},
		{Quiet{From: 60, To: 120}, "02:00", false},
		{Quiet{From: 22 * 60, To: 7 * 60}, "23:30", true},
		{Quiet{From: 22 * 60, To: 7 * 60}, "06:59", true},
		{Quiet{From: 22 * 60, To: 7 * 60}, "12:00", false},
		{Quiet{From: 22 * 60, To: 7 * 60, Zone: "Europe/Vienna"}, "06:30", false},
		{Quiet{From: 22 * 60, To: 7 * 60, Zone: "Europe/Vienna"}, "21:30", true},
	} {
		at, err := time.Parse("15:04", c.clock)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.q.at(time.Date(2026, 1, 2, at.Hour(), at.Minute(), 0, 0, time.UTC)); got != c.want {
			t.Errorf("%+v at %s: quiet is %v", c.q, c.clock, got)
		}
	}
}
