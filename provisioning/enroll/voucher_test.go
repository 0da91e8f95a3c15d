package enroll_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// register is a database in memory.
type register struct {
	listed   map[string]bool
	vouchers map[string]croft.DeviceID
	serials  map[string]croft.DeviceID
	broken   error
}

func newRegister(listed ...string) *register {
	r := &register{listed: map[string]bool{}, vouchers: map[string]croft.DeviceID{}, serials: map[string]croft.DeviceID{}}
	for _, s := range listed {
		r.listed[s] = true
	}
	return r
}

func (r *register) Listed(_ context.Context, serial string) (bool, error) {
	return r.listed[serial], r.broken
}

func (r *register) HolderOf(_ context.Context, id string) (croft.DeviceID, error) {
	return r.vouchers[id], r.broken
}

func (r *register) BindVoucher(_ context.Context, id string, device croft.DeviceID) (croft.DeviceID, error) {
	return bind(r.vouchers, id, device), r.broken
}

func (r *register) BindSerial(_ context.Context, serial string, device croft.DeviceID) (croft.DeviceID, error) {
	return bind(r.serials, serial, device), r.broken
}

func bind(all map[string]croft.DeviceID, what string, device croft.DeviceID) croft.DeviceID {
	if _, ok := all[what]; !ok {
		all[what] = device
	}
	return all[what]
}

// factory is a key that is the same in each run, so that its signatures are.
func factory(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func publicOf(key ed25519.PrivateKey) []ed25519.PublicKey {
	return []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}
}

const (
	deviceA = croft.DeviceID("abcdefghijklmnopqrstuvwxyz234567")
	deviceB = croft.DeviceID("bbcdefghijklmnopqrstuvwxyz234567")
)

func sample() enroll.Voucher {
	return enroll.Voucher{
		ID: "ABCDEFGHIJKLMNOPQRSTUVWXYZ", SerialNumber: "CR-2026-000042", Device: deviceA,
		Claim: enroll.HashClaim("0123456789ABCDEF"), Until: began.Add(365 * day),
	}
}

func sign(t testing.TB, key ed25519.PrivateKey, v enroll.Voucher) string {
	t.Helper()
	return must[string](t)(v.Sign(key))
}

func TestVoucherIsReadAsItWasSigned(t *testing.T) {
	for name, change := range map[string]func(*enroll.Voucher){
		"whole":                func(*enroll.Voucher) {},
		"for any key":          func(v *enroll.Voucher) { v.Device = "" },
		"without a number":     func(v *enroll.Voucher) { v.SerialNumber = "" },
		"without a sticker":    func(v *enroll.Voucher) { v.Claim = enroll.ClaimHash{} },
		"with an ID just made": func(v *enroll.Voucher) { v.ID = enroll.NewVoucherID() },
	} {
		t.Run(name, func(t *testing.T) {
			want := sample()
			change(&want)
			// The second of two factories signed it.
			got, err := enroll.ParseVoucher(sign(t, factory(1), want), append(publicOf(factory(2)), publicOf(factory(1))...))
			check(t, err)
			if diff := cmp.Diff(want, *got); diff != "" {
				t.Errorf("voucher differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVoucherThatCannotBeSigned(t *testing.T) {
	for name, change := range map[string]func(*enroll.Voucher){
		"no ID":            func(v *enroll.Voucher) { v.ID = "" },
		"a short ID":       func(v *enroll.Voucher) { v.ID = "A" },
		"HTML as number":   func(v *enroll.Voucher) { v.SerialNumber = "<b>" },
		"no device":        func(v *enroll.Voucher) { v.Device = "box" },
		"no end":           func(v *enroll.Voucher) { v.Until = time.Time{} },
		"an end in 1969":   func(v *enroll.Voucher) { v.Until = time.Unix(-1, 0) },
		"a long number":    func(v *enroll.Voucher) { v.SerialNumber = strings.Repeat("1", 65) },
		"the word for any": func(v *enroll.Voucher) { v.Device = "any" },
	} {
		t.Run(name, func(t *testing.T) {
			v := sample()
			change(&v)
			if text, err := v.Sign(factory(1)); err == nil {
				t.Errorf("signed %s", text)
			}
		})
	}
	if _, err := sample().Sign(newBox(t).key); err == nil {
		t.Error("a device key signed a voucher")
	}
}

// signPayload signs any bytes as a factory would sign a voucher.
func signPayload(key ed25519.PrivateKey, raw []byte) string {
	signature := ed25519.Sign(key, append([]byte("croft voucher 1\n"), raw...))
	return "croft1." + base64.RawURLEncoding.EncodeToString(raw) + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func TestParseVoucherRefuses(t *testing.T) {
	key := factory(1)
	good := sign(t, key, sample())
	parts := strings.Split(good, ".")
	raw := must[[]byte](t)(base64.RawURLEncoding.DecodeString(parts[1]))
	bare := "croft1." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, raw))
	for _, tc := range []struct{ name, text string }{
		{"nothing", ""},
		{"another word", "croft2." + parts[1] + "." + parts[2]},
		{"no signature", "croft1." + parts[1]},
		{"an empty signature", "croft1." + parts[1] + "."},
		{"another's signature", sign(t, factory(2), sample())},
		{"a signature of the JSON alone", bare},
		{"a part too many", good + ".AA"},
		{"padding", good + "="},
		{"a line feed at the end", good + "\n"},
		{"a line feed inside", good[:40] + "\n" + good[40:]},
		{"spaces around", " " + good},
		{"a long text", good + strings.Repeat("A", enroll.MaxVoucher)},
		{"signed, but no JSON", signPayload(key, []byte("hello"))},
		{"signed, but no voucher", signPayload(key, []byte("{}"))},
		{"signed, with another order", signPayload(key, []byte(`{"device":"any","id":"ABCDEFGHIJKLMNOPQRSTUVWXYZ","until":1}`))},
		{"signed, with an unknown field", signPayload(key, []byte(`{"id":"ABCDEFGHIJKLMNOPQRSTUVWXYZ","device":"any","until":1,"more":1}`))},
		{"signed, with a space", signPayload(key, []byte(`{"id":"ABCDEFGHIJKLMNOPQRSTUVWXYZ","device":"any","until":1} `))},
		{"signed, for no device", signPayload(key, []byte(`{"id":"ABCDEFGHIJKLMNOPQRSTUVWXYZ","device":"","until":1}`))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, err := enroll.ParseVoucher(tc.text, publicOf(key))
			wantReason(t, err, enroll.ReasonVoucherInvalid)
			if v != nil {
				t.Error("a voucher came with the error")
			}
		})
	}
	t.Run("any changed character", func(t *testing.T) {
		for i := range good {
			for _, c := range []byte("AB.") {
				if good[i] == c {
					continue
				}
				text := good[:i] + string(c) + good[i+1:]
				if _, err := enroll.ParseVoucher(text, publicOf(key)); err == nil {
					t.Errorf("read with %q at %d", c, i)
				}
			}
		}
	})
	if _, err := enroll.ParseVoucher(good, []ed25519.PublicKey{nil, {1}}); err == nil {
		t.Error("read under keys that are none")
	}
}

func TestFactoryKeyIsStored(t *testing.T) {
	secret, public, err := enroll.NewFactoryKey()
	check(t, err)
	key := must[ed25519.PrivateKey](t)(enroll.ParseFactoryKey(secret))
	pub := must[ed25519.PublicKey](t)(enroll.ParseFactoryPublic(public))
	must[*enroll.Voucher](t)(enroll.ParseVoucher(sign(t, key, sample()), []ed25519.PublicKey{pub}))
	fleetKey := must[[]byte](t)(newFleet(t).RootPEM())
	for name, text := range map[string][]byte{
		"nothing": nil, "the other half": public, "two of them": append(bytes.Clone(secret), secret...),
		"a damaged one": bytes.Replace(secret, []byte("\nM"), []byte("\nN"), 1), "a key of another kind": fleetKey,
	} {
		if _, err := enroll.ParseFactoryKey(text); croft.KindOf(err) != croft.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := enroll.ParseFactoryPublic(secret); croft.KindOf(err) != croft.KindInvalid {
		t.Errorf("a secret as public key: %v", err)
	}
}

func TestAdmit(t *testing.T) {
	key := factory(1)
	voucher := func(change func(*enroll.Voucher)) string {
		v := sample()
		change(&v)
		return sign(t, key, v)
	}
	whole := voucher(func(*enroll.Voucher) {})
	anyKey := voucher(func(v *enroll.Voucher) { v.Device = "" })
	code, sticker := enroll.HashClaim("K7QM2XWP"), sample().Claim
	byVoucher := enroll.Admission{
		Device: deviceA, SerialNumber: "CR-2026-000042", Proven: true, VoucherID: sample().ID, Code: code, Sticker: sticker,
	}
	own := enroll.Admission{Device: deviceA, SerialNumber: "CR-2026-000042", Code: code}
	for _, tc := range []struct {
		name    string
		use     enroll.FirstUse
		voucher string
		serial  string
		reg     *register
		now     time.Time
		want    enroll.Admission
		reason  enroll.Reason
	}{
		{"open: a box with nothing comes in", enroll.FirstUseOpen, "", "", newRegister(), began, enroll.Admission{Device: deviceA, Code: code}, ""},
		{"open: what the box says is not proven", enroll.FirstUseOpen, "", "CR-2026-000042", newRegister(), began, own, ""},
		{"open: a voucher counts", enroll.FirstUseOpen, whole, "", newRegister(), began, byVoucher, ""},
		{"open: a bad voucher is refused", enroll.FirstUseOpen, whole + "A", "", newRegister(), began, enroll.Admission{}, enroll.ReasonVoucherInvalid},
		{"voucher: it is wanted", enroll.FirstUseVoucher, "", "CR-2026-000042", newRegister("CR-2026-000042"), began, enroll.Admission{}, enroll.ReasonVoucherMissing},
		{"voucher: for this key", enroll.FirstUseVoucher, whole, "CR-2026-000042", newRegister(), began, byVoucher, ""},
		{"voucher: for any key", enroll.FirstUseVoucher, anyKey, "", newRegister(), began, byVoucher, ""},
		{"voucher: good to its last second", enroll.FirstUseVoucher, whole, "", newRegister(), sample().Until, byVoucher, ""},
		{"voucher: over", enroll.FirstUseVoucher, whole, "", newRegister(), sample().Until.Add(time.Second), enroll.Admission{}, enroll.ReasonVoucherExpired},
		{"voucher: for another key", enroll.FirstUseVoucher, voucher(func(v *enroll.Voucher) { v.Device = deviceB }), "", newRegister(), began, enroll.Admission{}, enroll.ReasonVoucherForeign},
		{"voucher: for another case", enroll.FirstUseVoucher, whole, "CR-2026-000043", newRegister(), began, enroll.Admission{}, enroll.ReasonVoucherForeign},
		{"voucher: of another factory", enroll.FirstUseVoucher, sign(t, factory(2), sample()), "", newRegister(), began, enroll.Admission{}, enroll.ReasonVoucherInvalid},
		{"listed: a box on the list comes in", enroll.FirstUseListed, "", "CR-2026-000042", newRegister("CR-2026-000042"), began, own, ""},
		{"listed: another does not", enroll.FirstUseListed, "", "CR-2026-000042", newRegister("CR-2026-000043"), began, enroll.Admission{}, enroll.ReasonSerialUnlisted},
		{"listed: one without a number does not", enroll.FirstUseListed, "", "", newRegister(""), began, enroll.Admission{}, enroll.ReasonSerialUnlisted},
		{"listed: a voucher is as good", enroll.FirstUseListed, whole, "", newRegister(), began, byVoucher, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			policy := enroll.Policy{FirstUse: tc.use, Factory: publicOf(key)}
			req := &enroll.Request{SerialNumber: tc.serial, Voucher: tc.voucher, Claim: code}
			got, err := policy.Admit(t.Context(), req, deviceA, tc.reg, tc.now)
			if tc.reason != "" {
				wantReason(t, err, tc.reason)
				if len(tc.reg.vouchers)+len(tc.reg.serials) > 0 {
					t.Error("what was refused was bound")
				}
				return
			}
			check(t, err)
			if diff := cmp.Diff(tc.want, *got); diff != "" {
				t.Errorf("admission differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNothingIsUsedByTwoDevices(t *testing.T) {
	v := sample()
	v.Device = ""
	policy := enroll.Policy{Factory: publicOf(factory(1))}
	for _, tc := range []struct {
		name string
		use  enroll.FirstUse
		req  enroll.Request
		want enroll.Reason
	}{
		{"voucher", enroll.FirstUseVoucher, enroll.Request{Voucher: sign(t, factory(1), v)}, enroll.ReasonVoucherUsed},
		{"serial number", enroll.FirstUseListed, enroll.Request{SerialNumber: "CR-1"}, enroll.ReasonSerialTaken},
	} {
		t.Run(tc.name, func(t *testing.T) {
			policy, reg := policy, newRegister("CR-1")
			policy.FirstUse = tc.use
			for range 2 { // the first answer was lost
				must[*enroll.Admission](t)(policy.Admit(t.Context(), &tc.req, deviceA, reg, began))
			}
			_, err := policy.Admit(t.Context(), &tc.req, deviceB, reg, began)
			wantReason(t, err, tc.want)
			if strings.Contains(fmt.Sprint(err), string(deviceA)) {
				t.Errorf("the refusal names the other device: %v", err)
			}
		})
	}
}

// TestABoxThatWasLetInMayEnrolAgainYearsLater has its certificates revoked, or a
// drawer, when its voucher is over: it has nothing else to come back with.
func TestABoxThatWasLetInMayEnrolAgainYearsLater(t *testing.T) {
	policy := enroll.Policy{FirstUse: enroll.FirstUseVoucher, Factory: publicOf(factory(1))}
	v := sample()
	v.Device = ""
	req, reg := &enroll.Request{Voucher: sign(t, factory(1), v)}, newRegister()
	must[*enroll.Admission](t)(policy.Admit(t.Context(), req, deviceA, reg, began))
	years := v.Until.AddDate(5, 0, 0)
	if in, err := policy.Admit(t.Context(), req, deviceA, reg, years); err != nil || !in.Proven {
		t.Errorf("the box that it let in: %+v, %v", in, err)
	}
	_, err := policy.Admit(t.Context(), req, deviceB, reg, years)
	wantReason(t, err, enroll.ReasonVoucherExpired)
}

func TestAdmitWithoutAnAnswerFromTheDatabase(t *testing.T) {
	broken := errors.New("database is gone")
	for use, req := range map[enroll.FirstUse]enroll.Request{
		enroll.FirstUseVoucher: {Voucher: sign(t, factory(1), sample())},
		enroll.FirstUseListed:  {SerialNumber: "CR-1"},
	} {
		reg := newRegister("CR-1")
		reg.broken = broken
		in, err := enroll.Policy{FirstUse: use, Factory: publicOf(factory(1))}.Admit(t.Context(), &req, deviceA, reg, began)
		if !errors.Is(err, broken) {
			t.Errorf("%s: admitted %+v, %v", use, in, err)
		}
	}
}

func TestPolicyThatWasNotChosenLetsNobodyIn(t *testing.T) {
	req := &enroll.Request{Voucher: sign(t, factory(1), sample())}
	if in, err := (enroll.Policy{Factory: publicOf(factory(1))}).Admit(t.Context(), req, deviceA, newRegister(), began); err == nil {
		t.Errorf("admitted %+v", in)
	}
	for _, s := range []string{"open", "voucher", "listed"} {
		if got, err := enroll.ParseFirstUse(s); err != nil || string(got) != s {
			t.Errorf("ParseFirstUse(%q) = %q, %v", s, got, err)
		}
	}
}

func TestClaimHash(t *testing.T) {
	key := must[*enroll.ClaimKey](t)(enroll.NewClaimKey(bytes.Repeat([]byte{1}, 32)))
	other := must[*enroll.ClaimKey](t)(enroll.NewClaimKey(bytes.Repeat([]byte{2}, 32)))
	right, wrong := enroll.HashClaim("K7QM2XWP"), enroll.HashClaim("K7QM2XWQ")
	stored := key.Seal(right)
	if stored != key.Seal(right) || !key.Matches(stored, right) {
		t.Error("the right code does not match")
	}
	if key.Matches(stored, wrong) || other.Matches(stored, right) || key.Matches("", right) {
		t.Error("something else matches")
	}
	if key.Matches(key.Seal(enroll.ClaimHash{}), enroll.ClaimHash{}) {
		t.Error("no code matches a box without one")
	}
	if _, err := enroll.NewClaimKey(make([]byte, 31)); err == nil {
		t.Error("a claim key of 31 bytes")
	}
	text := must[[]byte](t)(right.MarshalText())
	if strings.Contains(string(stored), string(text)) {
		t.Error("the hash itself is stored")
	}
	var back enroll.ClaimHash
	if err := back.UnmarshalText(text); err != nil || back != right {
		t.Errorf("read back %d, %v", back[:], err)
	}
	for _, bad := range []string{"", string(text[1:]), string(text) + "A", strings.Repeat("!", len(text)), string(text[:len(text)-1]) + "\n"} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("read %q", bad)
		}
	}
	var logged bytes.Buffer
	slog.New(slog.NewTextHandler(&logged, nil)).Info("box came", "claim", right)
	for _, shown := range []string{logged.String(), fmt.Sprint(right), fmt.Sprintf("%v %s %#v %x", right, right, right, right)} {
		if strings.Contains(shown, string(text)) || strings.Contains(shown, fmt.Sprintf("%x", right[:])) {
			t.Errorf("the hash leaks: %s", shown)
		}
	}
}

// golden compares got with a golden file, or rewrites that.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		check(t, os.WriteFile(path, got, 0o644))
		return
	}
	want := must[[]byte](t)(os.ReadFile(path))
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; -update rewrites it\ngot:\n%s\nwant:\n%s", path, got, want)
	}
}

func TestWire(t *testing.T) {
	v := sample()
	v.Device = ""
	at := time.Date(2026, 11, 21, 22, 10, 24, 123456789, time.FixedZone("CET", 3600))
	var wire bytes.Buffer
	write := func(name string, m any) {
		raw := must[[]byte](t)(json.MarshalIndent(m, "", "  "))
		fmt.Fprintf(&wire, "# %s\n%s\n", name, raw)
	}
	write("request", enroll.Request{
		Version: 1, CSR: []byte("PKCS #10"), Board: "uefi-x86", Release: "1.4.0", SerialNumber: "CR-2026-000042",
		Voucher: "croft1.PAYLOAD.SIGNATURE", Claim: enroll.HashClaim("K7QM2XWP"),
	})
	write("request of a box that knows little", enroll.Request{Version: 1, CSR: []byte("PKCS #10"), Board: "pi5", Release: "1.4.0"})
	write("renewal", enroll.Renewal{CSR: []byte("PKCS #10")})
	write("reply", enroll.NewReply(&enroll.Issued{Chain: "PEM\n"}, []string{"tls://fleet.example:8883"}, at))
	write("time", enroll.NewTimeReply(at))
	write("refusal", enroll.Refusal{Reason: enroll.ReasonVoucherUsed, Text: "voucher ABC came with another device key before"})
	fmt.Fprintf(&wire, "# voucher\n%s\n", sign(t, factory(1), sample()))
	fmt.Fprintf(&wire, "# voucher for any key\n%s\n", sign(t, factory(1), v))
	key := must[*enroll.ClaimKey](t)(enroll.NewClaimKey(bytes.Repeat([]byte{1}, 32)))
	fmt.Fprintf(&wire, "# sealed claim\n%s\n", key.Seal(enroll.HashClaim("K7QM2XWP")))
	golden(t, "wire.txt", wire.Bytes())
}

func TestParseRequest(t *testing.T) {
	const good = `{"version":1,"csr":"AAAA","board":"uefi-x86","release":"1.4.0","serial_number":"CR-1"`
	check(t, func() error { _, err := enroll.ParseRequest([]byte(good + `}`)); return err }())
	check(t, func() error { _, err := enroll.ParseRequest([]byte(good + `,"of a later version":{}}`)); return err }())
	for _, tc := range []struct{ name, raw string }{
		{"nothing", ""},
		{"null", "null"},
		{"a list", "[]"},
		{"an empty object", "{}"},
		{"two objects", good + "}{}"},
		{"no version", strings.Replace(good, `"version":1`, `"version":0`, 1) + "}"},
		{"no board", strings.Replace(good, "uefi-x86", "", 1) + "}"},
		{"HTML as board", strings.Replace(good, "uefi-x86", "<script>", 1) + "}"},
		{"SQL as serial number", strings.Replace(good, "CR-1", "'; DROP TABLE device; --", 1) + "}"},
		{"a line feed in the serial number", strings.Replace(good, "CR-1", `CR-1\n`, 1) + "}"},
		{"a long serial number", strings.Replace(good, "CR-1", strings.Repeat("1", 65), 1) + "}"},
		{"no release", strings.Replace(good, "1.4.0", "../..", 1) + "}"},
		{"a CSR that is not base64", strings.Replace(good, "AAAA", "!", 1) + "}"},
		{"half a claim hash", good + `,"claim":"AAAA"}`},
		{"a long message", good + `,"voucher":"` + strings.Repeat("A", enroll.MaxMessage) + `"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := enroll.ParseRequest([]byte(tc.raw))
			wantReason(t, err, enroll.ReasonMessage)
		})
	}
}

func TestOtherMessages(t *testing.T) {
	renewal := must[*enroll.Renewal](t)(enroll.ParseRenewal([]byte(`{"csr":"AAAA"}`)))
	if !bytes.Equal(renewal.CSR, []byte{0, 0, 0}) {
		t.Errorf("renewal = %+v", renewal)
	}
	told := must[*enroll.TimeReply](t)(enroll.ParseTimeReply([]byte(`{"time":"2026-11-21T12:00:00.000Z"}`)))
	if !told.Time.Equal(began) {
		t.Errorf("time = %v", told.Time)
	}
	_, err := enroll.ParseTimeReply([]byte(`{"time":"yesterday"}`))
	wantReason(t, err, enroll.ReasonMessage)
}

func TestRefusalCrossesTheWire(t *testing.T) {
	_, err := enroll.ParseVoucher("", nil)
	sent, ok := errors.AsType[*enroll.Refusal](err)
	if !ok {
		t.Fatalf("%v is no refusal", err)
	}
	got := enroll.ParseRefusal(must[[]byte](t)(json.Marshal(sent)))
	wantReason(t, got, enroll.ReasonVoucherInvalid)
	if got.Error() != err.Error() || croft.KindOf(got) != croft.KindInvalid {
		t.Errorf("got %q (%s), sent %q", got, croft.KindOf(got), err)
	}
	later := enroll.ParseRefusal([]byte(`{"reason":"of a later version","error":"no"}`))
	wantReason(t, later, "of a later version")
	for _, bad := range []string{"", "{}", "<html>", `{"error":"no"}`} {
		wantReason(t, enroll.ParseRefusal([]byte(bad)), enroll.ReasonMessage)
	}
	if got := enroll.ReasonOf(errors.New("other")); got != "" {
		t.Errorf("reason = %q", got)
	}
}

func FuzzVoucher(f *testing.F) {
	key := factory(1)
	f.Add(sign(f, key, sample()))
	f.Add("croft1..")
	f.Add(`{"id":"ABCDEFGHIJKLMNOPQRSTUVWXYZ","device":"any","until":1}`)
	f.Add(`{"id":"ABCDEFGHIJKLMNOPQRSTUVWXYZ","serial":"CR-1","device":"abcdefghijklmnopqrstuvwxyz234567","until":1}`)
	f.Fuzz(func(t *testing.T, text string) {
		// As a voucher, and as what a factory gone wild signed as one.
		for _, text := range []string{text, signPayload(key, []byte(text))} {
			v, err := enroll.ParseVoucher(text, publicOf(key))
			if err != nil {
				wantReason(t, err, enroll.ReasonVoucherInvalid)
				continue
			}
			if again := sign(t, key, *v); again != text {
				t.Fatalf("read from %q, written %q", text, again)
			}
		}
	})
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"version":1,"csr":"AAAA","board":"uefi-x86","release":"1.4.0","serial_number":"CR-1"}`))
	f.Add([]byte(`{"version":1,"board":"pi5","release":"1.4.0","voucher":"croft1..","claim":"` + strings.Repeat("A", 43) + `"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		req, err := enroll.ParseRequest(raw)
		if err != nil {
			wantReason(t, err, enroll.ReasonMessage)
			return
		}
		written := must[[]byte](t)(json.Marshal(req))
		if len(written) > enroll.MaxMessage {
			return // what JSON escapes may grow
		}
		again := must[*enroll.Request](t)(enroll.ParseRequest(written))
		if req.CSR == nil {
			req.CSR = again.CSR
		}
		if diff := cmp.Diff(req, again); diff != "" {
			t.Fatalf("request differs (-read +again):\n%s", diff)
		}
	})
}
