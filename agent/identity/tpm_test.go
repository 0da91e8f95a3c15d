package identity

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// startTPM runs a software TPM whose state is in dir, and returns its socket
// and a function that ends it.
func startTPM(t *testing.T, dir string) (socket string, stop func()) {
	t.Helper()
	program, err := exec.LookPath("swtpm")
	if err != nil {
		t.Fatal("swtpm is missing; run make setup")
	}
	// The path of a Unix socket is short, that of a test's directory is long.
	work, err := os.MkdirTemp("", "tpm") //nolint:usetesting // its path is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(work) })
	socket = filepath.Join(work, "tpm")
	// swtpm writes its process ID once it listens: a FIFO tells when.
	fifo := filepath.Join(work, "pid")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	ready, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	log := filepath.Join(work, "log")
	cmd := exec.Command(program, "socket", "--tpm2",
		"--tpmstate", "dir="+dir,
		"--server", "type=unixio,path="+socket,
		"--flags", "not-need-init,startup-clear",
		"--pid", "file="+fifo,
		"--log", "file="+log)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		_, _ = fmt.Fprintln(ready, "ended") // lets the read below return
	}()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill() // it may have ended by itself
			<-ended                //nolint:errcheck // it was killed
		}
	}
	t.Cleanup(stop)
	if _, err := ready.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		stopped = true
		text, _ := os.ReadFile(log)
		t.Fatalf("swtpm ended: %v\n%s", err, text)
	default:
	}
	return socket, stop
}

func TestTheKeyIsInTheTPM(t *testing.T) {
	state, otherState, dir := t.TempDir(), t.TempDir(), t.TempDir() // swtpm takes no comma in a path
	socket, stop := startTPM(t, state)
	i := mustOpen(t, dir, socket)
	wantNotes(t, i)
	if i.Kind() != KindTPM {
		t.Fatalf("kind is %s", i.Kind())
	}
	was := i.DeviceID()
	wantSigns(t, i)
	if _, err := os.Stat(keyPath(dir)); err == nil {
		t.Error("a key file was written all the same")
	}
	closeTPM(t, i)

	t.Run("and no handle is left in it", func(t *testing.T) {
		for range 10 { // a TPM has room for three
			closeTPM(t, mustOpen(t, dir, socket))
		}
		wantNoHandles(t, socket)
	})
	t.Run("also when /perm is lost", func(t *testing.T) {
		for _, dir := range []string{"", t.TempDir()} {
			again := mustOpen(t, dir, socket)
			defer closeTPM(t, again)
			wantNotes(t, again)
			if again.Kind() != KindTPM || again.DeviceID() != was {
				t.Errorf("%s key %s, was %s", again.Kind(), again.DeviceID(), was)
			}
		}
	})
	stop()

	t.Run("and a file stands in while the TPM fails", func(t *testing.T) {
		var standIn string
		for range 2 { // the socket file is there, and nobody answers
			again := mustOpen(t, dir, socket)
			wantNotes(t, again, "The TPM cannot be used: ", fmt.Sprintf("This device was %s, in its TPM, and is %s until the TPM works again.", was, again.DeviceID()))
			if again.Kind() != KindFile || standIn != "" && standIn != string(again.DeviceID()) {
				t.Errorf("%s key %s, was %s", again.Kind(), again.DeviceID(), standIn)
			}
			standIn = string(again.DeviceID())
		}
		gone := mustOpen(t, dir, noTPM(t))
		wantNotes(t, gone, "until the TPM works again")
	})
	t.Run("and is the same after a restart", func(t *testing.T) {
		socket, stop := startTPM(t, state)
		defer stop()
		again := mustOpen(t, dir, socket)
		defer closeTPM(t, again)
		wantNotes(t, again)
		if again.Kind() != KindTPM || again.DeviceID() != was {
			t.Errorf("%s key %s, was %s", again.Kind(), again.DeviceID(), was)
		}
	})
	t.Run("and another TPM gives another, which is reported once", func(t *testing.T) {
		socket, stop := startTPM(t, otherState)
		defer stop()
		other := mustOpen(t, dir, socket)
		wantNotes(t, other, fmt.Sprintf("This device was %s and is now %s: it must be enrolled and claimed again.", was, other.DeviceID()))
		closeTPM(t, other)
		again := mustOpen(t, dir, socket)
		wantNotes(t, again)
		closeTPM(t, again)
	})
}

func TestADeviceThatBeganWithAFileStaysWithIt(t *testing.T) {
	dir := t.TempDir()
	was := mustOpen(t, dir, noTPM(t)).DeviceID()
	socket, _ := startTPM(t, t.TempDir())
	i := mustOpen(t, dir, socket)
	wantNotes(t, i, "its key was made in a file before and stays there")
	if i.Kind() != KindFile || i.DeviceID() != was {
		t.Errorf("%s key %s, was %s", i.Kind(), i.DeviceID(), was)
	}
	t.Run("until the file is lost", func(t *testing.T) {
		if err := os.Remove(keyPath(dir)); err != nil {
			t.Fatal(err)
		}
		i := mustOpen(t, dir, socket)
		defer closeTPM(t, i)
		wantNotes(t, i, fmt.Sprintf("This device was %s and is now %s", was, i.DeviceID()))
		if i.Kind() != KindTPM {
			t.Errorf("kind is %s", i.Kind())
		}
	})
}

func closeTPM(t *testing.T, i *Identity) {
	t.Helper()
	if err := i.Close(); err != nil {
		t.Error(err)
	}
}

func wantNoHandles(t *testing.T, socket string) {
	t.Helper()
	tpm, err := openTPM(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	got, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 8}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	if handles, err := got.CapabilityData.Data.Handles(); err != nil || len(handles.Handle) != 0 {
		t.Errorf("handles %v are left, %v", handles, err)
	}
}
