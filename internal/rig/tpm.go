package rig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// startTPM starts a software TPM 2.0 with its state in dir/tpm. The socket
// returned is QEMU's end of its control channel; when that closes, so does the
// TPM: like a chip it has power only with the machine.
func startTPM(dir string) (*process, *os.File, error) {
	program, err := lookPath("swtpm")
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "tpm"), 0o700); err != nil {
		return nil, nil, fmt.Errorf("start TPM: %w", err)
	}
	qemus, tpms, err := socketPair("tpm")
	if err != nil {
		return nil, nil, err
	}
	defer tpms.Close()
	cmd := exec.Command(program, "socket", "--tpm2",
		"--tpmstate", "dir=tpm", // relative: swtpm's options know no escaping
		"--ctrl", "type=unixio,clientfd=3",
		"--flags", "startup-clear",
		"--terminate")
	cmd.Dir = dir
	cmd.ExtraFiles = []*os.File{tpms}
	p, err := startProcess(cmd)
	if err != nil {
		qemus.Close()
		return nil, nil, err
	}
	return p, qemus, nil
}
