package factorycmd

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/provisioning/factory"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// run is `croft factory ARGS`, in a folder of the test's own.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	root := &cobra.Command{Use: "croft", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(New())
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"factory"}, args...))
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	out, err := run(t, args...)
	if err != nil {
		t.Fatalf("croft factory %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

const address = "https://fleet.example/claim"

// A day at the desk, twice over: the second time nothing changes.
func TestEveryVerbMayBeRunAgain(t *testing.T) {
	t.Chdir(t.TempDir())
	verbs := []struct {
		args        []string
		file        string
		once, again string // what it says
	}{
		{[]string{"key"}, "croft-factory/factory.pem", "The factory key is new.", "The factory key was there already."},
		{
			[]string{"batch", "one", "--count", "3", "--until", "2090-12-31"},
			"croft-factory/one.batch.json",
			"Batch one is new: 3 boxes, with vouchers until 2090-12-31.", "Batch one was there already: 3 boxes, with vouchers until 2090-12-31.",
		},
		{[]string{"labels", "one", "--address", address}, "croft-factory/one.labels.pdf", "Labels of 3 boxes.", "Labels of 3 boxes."},
		{[]string{"import", "one"}, "croft-factory/one.serials.csv", "List of 3 boxes.", "List of 3 boxes."},
	}
	first := map[string][]byte{}
	for _, v := range verbs {
		if out := mustRun(t, v.args...); !strings.HasPrefix(out, v.once) || !strings.Contains(out, v.file) {
			t.Errorf("%v says %s", v.args, out)
		}
		if info, err := os.Stat(v.file); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", v.file, info.Mode(), err)
		}
		first[v.file] = read(t, v.file)
	}
	for _, v := range verbs {
		if out := mustRun(t, v.args...); !strings.HasPrefix(out, v.again) {
			t.Errorf("%v again says %s", v.args, out)
		}
		if !bytes.Equal(read(t, v.file), first[v.file]) {
			t.Errorf("%v again made another %s", v.args, v.file)
		}
	}
	if !bytes.HasPrefix(first["croft-factory/one.labels.pdf"], []byte("%PDF-")) {
		t.Error("the labels are no PDF")
	}
	if !bytes.HasPrefix(first["croft-factory/one.serials.csv"], []byte("serial_number,voucher,claim\nCR-")) {
		t.Errorf("the list is %.100s", first["croft-factory/one.serials.csv"])
	}
}

func TestOneLabelAgain(t *testing.T) {
	t.Chdir(t.TempDir())
	mustRun(t, "--dir", "desk", "key")
	mustRun(t, "--dir", "desk", "batch", "one", "--count", "3")
	mustRun(t, "--dir", "desk", "labels", "one", "--address", address)
	all := read(t, "desk/one.labels.pdf")
	b, err := factory.Desk{Dir: "desk"}.Batch("one")
	if err != nil {
		t.Fatal(err)
	}
	for _, box := range b.Boxes {
		if out := mustRun(t, "--dir", "desk", "voucher", "one", string(box.Serial)); out != box.Voucher+"\n" {
			t.Errorf("voucher of %s: %s", box.Serial, out)
		}
	}
	typed := strings.ToLower(strings.ReplaceAll(string(b.Boxes[1].Serial), "-", " "))
	if out := mustRun(t, "--dir", "desk", "labels", "one", "--address", address, "--only", typed); !strings.HasPrefix(out, "Labels of 1 box.\n") {
		t.Errorf("it says %s", out)
	}
	if !bytes.Equal(read(t, "desk/one.labels.pdf"), all) {
		t.Error("the labels of the batch were written over")
	}
	want, err := b.Labels(factory.Print{Address: address, Only: []factory.Serial{b.Boxes[1].Serial}})
	if err != nil || !bytes.Equal(read(t, "desk/one.labels-again.pdf"), want) {
		t.Errorf("the label is not that of %s: %v", b.Boxes[1].Serial, err)
	}
}

func TestWrongCommandLines(t *testing.T) {
	t.Chdir(t.TempDir())
	mustRun(t, "key")
	mustRun(t, "batch", "one", "--count", "2")
	if err := os.Symlink("one.batch.json", "link"); err != nil {
		t.Fatal(err)
	}
	before := read(t, "croft-factory/one.batch.json")
	for _, tc := range []struct {
		args, want string
		kind       croft.Kind
	}{
		{"print", `has no command "print"`, croft.KindUsage},
		{"key one", "takes 0 arguments, got 1", croft.KindUsage},
		{"batch", "takes 1 argument, got 0; usage: croft factory batch NAME --count N", croft.KindUsage},
		{"batch two", "needs --count; see `croft factory batch --help`", croft.KindUsage},
		{"batch two --count 0", "order 1 to 10000", croft.KindUsage},
		{"batch Two --count 1", "small letters", croft.KindUsage},
		{"batch two --count 1 --until tomorrow", "is no day; write it like 2028-12-31", croft.KindUsage},
		{"batch two --count 1 --until 1999-01-01", "would be over already", croft.KindUsage},
		{"batch one --count 3", "has 2 boxes; a batch never changes; give the new batch another name", croft.KindRefused},
		{"batch one --count 1 --dir empty", "empty/factory.pem does not exist; make the factory key with `croft factory key`", croft.KindNotFound},
		{"labels one", "needs --address", croft.KindUsage},
		{"labels one --address fleet.example", "is no web address; give the page", croft.KindUsage},
		{"labels one --address " + address + " --sheet a5", "choose one of", croft.KindUsage},
		{"labels one --address " + address + " --skip 24", "a page has 24", croft.KindUsage},
		{"labels one --address " + address + " --only CR-4821-3077-5568", "mistyped", croft.KindUsage},
		{"labels one --address " + address + " --only CR-4821-3077-5567", "has no box", croft.KindNotFound},
		{"labels one --address " + address + " --out nosuch/one.pdf", "make its folder", croft.KindNotFound},
		{"labels one --address " + address + " --out croft-factory/one.batch.json", "may be a key or a batch", croft.KindUsage},
		{"labels one --address " + address + " --out croft-factory/factory.pem", "may be a key or a batch", croft.KindUsage},
		{"labels one --address " + address + " --out croft-factory", "no plain file", croft.KindRefused},
		{"labels two --address " + address, "choose one of: one", croft.KindNotFound},
		{"voucher two CR-4821-3077-5567", "choose one of: one", croft.KindNotFound},
		{"voucher one CR-4821-3077-5567", "has no box", croft.KindNotFound},
		{"voucher one CR-4821-3077-5568", "mistyped", croft.KindUsage},
		{"import two", "choose one of: one", croft.KindNotFound},
		{"import ../one", "it is also the name of files", croft.KindUsage},
		{"import one --out link", "no plain file", croft.KindRefused},
		{"import one --out croft-factory/factory.pub.pem", "may be a key or a batch", croft.KindUsage},
	} {
		if _, err := run(t, strings.Fields(tc.args)...); err == nil || croft.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("croft factory %s: %v, want %s with %q", tc.args, err, tc.kind, tc.want)
		}
	}
	if !bytes.Equal(read(t, "croft-factory/one.batch.json"), before) {
		t.Error("the batch has changed")
	}
	if _, err := os.Stat("empty"); err == nil {
		t.Error("a folder was made for a batch that was not")
	}
	entries, err := os.ReadDir("croft-factory")
	if err != nil || len(entries) != 3 {
		t.Errorf("the desk has %v, %v, want the two halves of the key and a batch", entries, err)
	}
}

func TestHelp(t *testing.T) {
	var got strings.Builder
	for _, verb := range []string{"", "key", "batch", "labels", "voucher", "import"} {
		args := append(strings.Fields(verb), "--help")
		got.WriteString("$ croft factory " + strings.Join(args, " ") + "\n" + mustRun(t, args...) + "\n")
	}
	golden := filepath.Join("testdata", "help.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(read(t, golden)), got.String()); diff != "" {
		t.Error(diff)
	}
	for _, s := range factory.Sheets() {
		if !strings.Contains(got.String(), "\n  "+string(s)+" ") {
			t.Errorf("the help does not tell of sheet %s", s)
		}
	}
}
