package factory

import (
	"bytes"
	"crypto/ed25519"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/enroll"
)

// newDesk is a desk with a key, whose chance is the same in each run.
func newDesk(t *testing.T) Desk {
	t.Helper()
	cryptotest.SetGlobalRandom(t, 7)
	d := Desk{Dir: filepath.Join(t.TempDir(), "desk")}
	if k, err := d.Key(); err != nil || !k.Made {
		t.Fatalf("the key: %+v, %v", k, err)
	}
	return d
}

func (d Desk) mustMake(t *testing.T, o Order) *Batch {
	t.Helper()
	b, made, err := d.Make(o)
	if err != nil || !made {
		t.Fatalf("make batch: made %v, %v", made, err)
	}
	return b
}

// same compares batches by all that their files say.
func same(a, b *Batch) string { return cmp.Diff(a, b, cmpopts.IgnoreUnexported(Box{})) }

func TestBatchIsWholeAndPrivate(t *testing.T) {
	d := newDesk(t)
	b := d.mustMake(t, Order{Name: "2026-11", Count: 50})
	info, err := os.Stat(d.BatchPath("2026-11"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("its file has mode %v, %v", info.Mode(), err)
	}
	read, err := d.Batch("2026-11")
	if err != nil {
		t.Fatal(err)
	}
	if diff := same(read, b); diff != "" {
		t.Error(diff)
	}
	if b.Until.Sub(b.Made) != VoucherLife {
		t.Errorf("the vouchers are good for %v", b.Until.Sub(b.Made))
	}
	public, err := os.ReadFile(filepath.Join(d.Dir, publicFile))
	if err != nil || string(public) != b.Factory {
		t.Fatalf("the public key differs from that of the batch: %v", err)
	}
	key, err := enroll.ParseFactoryPublic(public)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, box := range b.Boxes {
		v, err := enroll.ParseVoucher(box.Voucher, []ed25519.PublicKey{key})
		if err != nil {
			t.Fatal(err)
		}
		if v.SerialNumber != string(box.Serial) || v.Claim != enroll.HashClaim(string(box.Secret)) || v.Device != "" || !v.Until.Equal(b.Until) {
			t.Errorf("the voucher of %s is of %s until %v", box.Serial, v.SerialNumber, v.Until)
		}
		ids[v.ID] = true
	}
	if len(b.Boxes) != 50 || len(ids) != 50 {
		t.Errorf("%d boxes with %d vouchers, want 50", len(b.Boxes), len(ids))
	}
}

func TestTheSameOrderIsTheSameBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		until := time.Now().Add(1000 * time.Hour)
		first := d.mustMake(t, Order{Name: "one", Count: 3})
		dated := d.mustMake(t, Order{Name: "dated", Count: 3, Until: until})
		before, err := os.ReadFile(d.BatchPath("one"))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		for _, tc := range []struct {
			order Order
			want  *Batch
		}{{Order{Name: "one", Count: 3}, first}, {Order{Name: "dated", Count: 3, Until: until}, dated}, {Order{Name: "dated", Count: 3}, dated}} {
			got, made, err := d.Make(tc.order)
			if err != nil || made {
				t.Fatalf("%+v: made %v, %v", tc.order, made, err)
			}
			if diff := same(got, tc.want); diff != "" {
				t.Errorf("%+v: %s", tc.order, diff)
			}
		}
		for _, o := range []Order{{Name: "one", Count: 4}, {Name: "one", Count: 3, Until: until}} {
			if _, _, err := d.Make(o); croft.KindOf(err) != croft.KindRefused || !strings.Contains(err.Error(), "another name") {
				t.Errorf("%+v: %v", o, err)
			}
		}
		if after, err := os.ReadFile(d.BatchPath("one")); err != nil || !bytes.Equal(after, before) {
			t.Errorf("the file of the batch has changed: %v", err)
		}
	})
}

// What a crash leaves in the folder is the half of a file that was being written.
func TestWhatACrashLeftIsTakenOver(t *testing.T) {
	d := newDesk(t)
	other := d.mustMake(t, Order{Name: "other", Count: 2})
	half, err := os.ReadFile(d.BatchPath("other"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.Dir, ".one"+batchSuffix+".new"), half[:len(half)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if names, err := d.Names(); err != nil || len(names) != 1 {
		t.Errorf("the desk has batches %v, %v", names, err)
	}
	b := d.mustMake(t, Order{Name: "one", Count: 2})
	if read, err := d.Batch("one"); err != nil || same(read, b) != "" {
		t.Errorf("%v", err)
	}
	if read, err := d.Batch("other"); err != nil || same(read, other) != "" {
		t.Errorf("%v", err)
	}
}

func TestNothingIsIssuedTwice(t *testing.T) {
	d := newDesk(t)
	d.mustMake(t, Order{Name: "a", Count: 100})
	// The chance of the first batch once more: its numbers come up again.
	again := Desk{Dir: filepath.Join(t.TempDir(), "again")}
	cryptotest.SetGlobalRandom(t, 7)
	if _, err := again.Key(); err != nil {
		t.Fatal(err)
	}
	twin := again.mustMake(t, Order{Name: "a", Count: 100})
	a, err := d.Batch("a")
	if err != nil || twin.Boxes[0].Serial != a.Boxes[0].Serial {
		t.Fatalf("the same chance gave %s and %s, %v", twin.Boxes[0].Serial, a.Boxes[0].Serial, err)
	}
	cryptotest.SetGlobalRandom(t, 7)
	if _, _, err := enroll.NewFactoryKey(); err != nil { // as the first desk began
		t.Fatal(err)
	}
	b := d.mustMake(t, Order{Name: "b", Count: 100})
	serials, secrets := map[Serial]bool{}, map[Secret]bool{}
	for _, box := range append(a.Boxes, b.Boxes...) {
		serials[box.Serial], secrets[box.Secret] = true, true
	}
	if len(serials) != 200 || len(secrets) != 200 {
		t.Errorf("200 boxes have %d serial numbers and %d secrets", len(serials), len(secrets))
	}
}

func TestTwoAtOneDeskTakeTurns(t *testing.T) {
	d := newDesk(t)
	const hands = 8
	batches, made := make([]*Batch, hands), make([]bool, hands)
	var working sync.WaitGroup
	for i := range hands {
		working.Go(func() {
			var err error
			if batches[i], made[i], err = d.Make(Order{Name: "one", Count: 20}); err != nil {
				t.Error(err)
			}
		})
	}
	working.Wait()
	makers := 0
	for i := range hands {
		if made[i] {
			makers++
		}
		if diff := same(batches[0], batches[i]); diff != "" {
			t.Errorf("hand %d has another batch: %s", i, diff)
		}
	}
	if makers != 1 {
		t.Errorf("%d made it, want 1", makers)
	}
}

func TestKeyIsMadeOnce(t *testing.T) {
	d := newDesk(t)
	first, err := os.ReadFile(filepath.Join(d.Dir, keyFile))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(d.Dir, keyFile)); err != nil || info.Mode() != 0o600 {
		t.Errorf("the secret half has mode %v, %v", info.Mode(), err)
	}
	if err := os.Remove(filepath.Join(d.Dir, publicFile)); err != nil { // as a crash between the two
		t.Fatal(err)
	}
	k, err := d.Key()
	if err != nil || k.Made {
		t.Fatalf("the key: %+v, %v", k, err)
	}
	key, err := enroll.ParseFactoryKey(first)
	if err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(k.PublicPath)
	if err != nil || !bytes.Equal(public, k.Public) {
		t.Fatalf("the public half: %v", err)
	}
	if read, err := enroll.ParseFactoryPublic(public); err != nil || !read.Equal(key.Public()) {
		t.Errorf("the public half is of another key: %v", err)
	}
	if err := os.WriteFile(k.Secret, first[:20], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Key(); croft.KindOf(err) != croft.KindInvalid {
		t.Errorf("a damaged key: %v", err)
	}
	if now, err := os.ReadFile(k.Secret); err != nil || !bytes.Equal(now, first[:20]) {
		t.Error("the damaged key was replaced")
	}
}

func TestBadOrders(t *testing.T) {
	d := newDesk(t)
	keyless := Desk{Dir: filepath.Join(t.TempDir(), "none")}
	for _, tc := range []struct {
		name  string
		desk  Desk
		order Order
		kind  croft.Kind
		want  string
	}{
		{"no name", d, Order{Count: 1}, croft.KindUsage, "name it with"},
		{"a path as name", d, Order{Name: "../x", Count: 1}, croft.KindUsage, "it is also the name of files"},
		{"a name in capitals", d, Order{Name: "May", Count: 1}, croft.KindUsage, "small letters"},
		{"no boxes", d, Order{Name: "x"}, croft.KindUsage, "a batch of 0 boxes; order 1 to 10000"},
		{"boxes below zero", d, Order{Name: "x", Count: -1}, croft.KindUsage, "a batch of -1 boxes"},
		{"too many", d, Order{Name: "x", Count: MaxBoxes + 1}, croft.KindUsage, "further batches"},
		{"vouchers of the past", d, Order{Name: "x", Count: 1, Until: time.Unix(1, 0)}, croft.KindUsage, "would be over already"},
		{"no key", keyless, Order{Name: "x", Count: 1}, croft.KindNotFound, "croft factory key"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, made, err := tc.desk.Make(tc.order)
			if err == nil || made || croft.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("made %v, %v, want %s with %q", made, err, tc.kind, tc.want)
			}
		})
	}
	if names, err := d.Names(); err != nil || len(names) != 0 {
		t.Errorf("there are batches %v, %v", names, err)
	}
}

func TestADamagedBatchIsRefused(t *testing.T) {
	d := newDesk(t)
	d.mustMake(t, Order{Name: "good", Count: 3})
	whole, err := os.ReadFile(d.BatchPath("good"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		spoil func(b *Batch)
		want  string
	}{
		{"a later version", func(b *Batch) { b.Version = 2 }, "version 2"},
		{"another batch's name", func(b *Batch) { b.Name = "bad" }, "of batch \"bad\""},
		{"no boxes", func(b *Batch) { b.Boxes = nil }, "has 0 boxes"},
		{"no times", func(b *Batch) { b.Made = time.Time{} }, "times are missing"},
		{"another key", func(b *Batch) { b.Factory = "" }, "factory key is damaged"},
		{"a wrong digit", func(b *Batch) { b.Boxes[1].Serial = "CR-4821-3077-5568" }, "box 2: \"CR-4821-3077-5568\" is no serial number"},
		{"a serial number in another form", func(b *Batch) { b.Boxes[1].Serial = Serial(strings.ToLower(string(b.Boxes[1].Serial))) }, "is no serial number"},
		{"a secret of another box", func(b *Batch) { b.Boxes[1].Secret = testSecret }, "box 2: its voucher is for another box"},
		{"boxes that share a secret", func(b *Batch) { b.Boxes[1].Secret = b.Boxes[0].Secret }, "box 2: its serial number or secret is another box's too"},
		{"a box twice", func(b *Batch) { b.Boxes[1] = b.Boxes[0] }, "is another box's too"},
		{"a voucher cut off", func(b *Batch) { b.Boxes[2].Voucher = b.Boxes[2].Voucher[:100] }, "box 3: its voucher is damaged"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b Batch
			if err := json.Unmarshal(whole, &b); err != nil {
				t.Fatal(err)
			}
			tc.spoil(&b)
			raw, err := json.Marshal(b)
			if err != nil {
				t.Fatal(err)
			}
			refused(t, d, raw, tc.want)
		})
	}
	t.Run("a file cut off", func(t *testing.T) { refused(t, d, whole[:len(whole)-30], "unexpected end") })
	t.Run("a damaged secret", func(t *testing.T) {
		refused(t, d, regexp.MustCompile(`"secret": "....-`).ReplaceAll(whole, []byte(`"secret": "`)), "a secret is damaged")
	})
	t.Run("an empty file", func(t *testing.T) { refused(t, d, nil, "unexpected end") })
}

var shownSecret = regexp.MustCompile(`[0-9A-Z]{4}-?[0-9A-Z]{4}-?[0-9A-Z]{4}-?[0-9A-Z]{4}`)

// refused checks that a batch file is an error, also for whoever makes another.
func refused(t *testing.T, d Desk, raw []byte, want string) {
	t.Helper()
	if err := os.WriteFile(d.BatchPath("good"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := d.Batch("good")
	if croft.KindOf(err) != croft.KindInvalid || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "backup") {
		t.Errorf("error is %v, want one with %q", err, want)
	}
	if err != nil && shownSecret.MatchString(err.Error()) {
		t.Errorf("the error tells a secret: %v", err)
	}
	if _, made, err := d.Make(Order{Name: "next", Count: 1}); made || croft.KindOf(err) != croft.KindInvalid {
		t.Errorf("beside it a batch was made: %v, %v", made, err)
	}
	if _, made, err := d.Make(Order{Name: "good", Count: 3}); made || croft.KindOf(err) != croft.KindInvalid {
		t.Errorf("in its place a batch was made: %v, %v", made, err)
	}
}

func TestABatchThatIsNotThere(t *testing.T) {
	d := newDesk(t)
	if _, err := d.Batch("one"); croft.KindOf(err) != croft.KindNotFound || !strings.Contains(err.Error(), "croft factory batch") {
		t.Errorf("error is %v", err)
	}
	d.mustMake(t, Order{Name: "spring", Count: 1})
	if _, err := d.Batch("one"); croft.KindOf(err) != croft.KindNotFound || !strings.Contains(err.Error(), "choose one of: spring") {
		t.Errorf("error is %v", err)
	}
}

// The rules of fleet/device, Store.ImportSerials: CSV with three columns and their
// names in the first line, serial numbers of a form, voucher IDs in base32 up to
// 64 characters, claims as enroll.ClaimHash reads them, 100,000 lines at most.
func TestTheFleetCanImportIt(t *testing.T) {
	d := newDesk(t)
	b := d.mustMake(t, Order{Name: "one", Count: 30})
	list, err := b.ImportFile()
	if err != nil {
		t.Fatal(err)
	}
	key, err := enroll.ParseFactoryPublic([]byte(b.Factory))
	if err != nil {
		t.Fatal(err)
	}
	r := csv.NewReader(bytes.NewReader(list))
	r.FieldsPerRecord = 3
	rows, err := r.ReadAll()
	if err != nil || len(rows) != 31 || strings.Join(rows[0], ",") != "serial_number,voucher,claim" {
		t.Fatalf("%d rows, %v:\n%.200s", len(rows), err, list)
	}
	serialForm := regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$`)
	for i, row := range rows[1:] {
		box := b.Boxes[i]
		var hash enroll.ClaimHash
		if err := hash.UnmarshalText([]byte(row[2])); err != nil || hash != enroll.HashClaim(string(box.Secret)) {
			t.Errorf("line %d: claim %q is not that of the secret: %v", i+2, row[2], err)
		}
		v, err := enroll.ParseVoucher(box.Voucher, []ed25519.PublicKey{key})
		if err != nil {
			t.Fatal(err)
		}
		if !serialForm.MatchString(row[0]) || row[0] != string(box.Serial) {
			t.Errorf("line %d: serial number %q, want %q", i+2, row[0], box.Serial)
		}
		if len(row[1]) > 64 || strings.Trim(row[1], "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" || row[1] != v.ID {
			t.Errorf("line %d: voucher %q, want %q", i+2, row[1], v.ID)
		}
		for _, secret := range []string{string(box.Secret), box.Secret.Shown(), box.Voucher} {
			if bytes.Contains(list, []byte(secret)) {
				t.Errorf("line %d tells a secret", i+2)
			}
		}
	}
	read, err := d.Batch("one")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := read.ImportFile(); err != nil || !bytes.Equal(again, list) {
		t.Errorf("made again from the file it differs: %v", err)
	}
}

func TestABatchIsNotPrintedByAccident(t *testing.T) {
	b := newDesk(t).mustMake(t, Order{Name: "one", Count: 1})
	for _, said := range []string{fmt.Sprintf("%v", b), fmt.Sprintf("%+v", *b), fmt.Sprintf("%#v", *b)} {
		if strings.Contains(said, string(b.Boxes[0].Secret)) || strings.Contains(said, b.Boxes[0].Secret.Shown()) {
			t.Errorf("it says %s", said)
		}
	}
}
