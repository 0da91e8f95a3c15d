package chaincmd

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/chain/account"
	"github.com/croft-cloud/croft/chain/api/certv1"
	"github.com/croft-cloud/croft/chain/credential"
	"github.com/croft-cloud/croft/cmd/croft/session"
	"github.com/croft-cloud/croft/internal/atomicfile"
)

// newTxCertCommand makes `tx cert`. croft itself shows tokens to providers; a
// certificate is for tools that want one.
func newTxCertCommand(o *session.Options) *cobra.Command {
	return session.Group("cert", "Certificates by which gateways and tenants know each other",
		session.Group("generate", "Make a certificate and keep it here", newCertGenerateCommand(o, "client"), newCertGenerateCommand(o, "server HOST...")),
		session.Group("publish", "Put the certificate that is kept here on the chain", send(o, txCertPublish("client")), send(o, txCertPublish("server"))),
		send(o, txCertRevoke()))
}

// certificatePath is where the certificate of an account lies with its key.
func certificatePath(o *session.Options, owner account.Address) (string, error) {
	dir, err := o.Dir()
	return filepath.Join(dir, "certificates", string(owner)+".pem"), err
}

func newCertGenerateCommand(o *session.Options, use string) *cobra.Command {
	var from string
	var overwrite bool
	var lifetime time.Duration
	cmd := &cobra.Command{Use: use, Short: map[bool]string{true: "Make a tenant's certificate", false: "Make a provider's certificate"}[use == "client"], Args: session.Args(0, 0)}
	if use != "client" {
		cmd.Args = session.Args(1, -1)
	}
	cmd.RunE = func(cmd *cobra.Command, hosts []string) error {
		owner, err := o.Self("", from)
		if err != nil {
			return err
		}
		path, err := certificatePath(o, owner)
		if err != nil {
			return err
		}
		if _, err := os.Stat(path); err == nil && !overwrite {
			return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("%s exists", path), Remedy: "publish that one, or pass --overwrite"}
		}
		pair, err := credential.NewCertificate(credential.CertificateConfig{Owner: owner, Hosts: hosts, NotBefore: time.Now(), Lifetime: lifetime})
		if err != nil {
			return err
		}
		if err := atomicfile.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("keep certificate: %w", err)
		}
		all := append(append(append([]byte{}, pair.CertPEM...), pair.PublicPEM...), pair.KeyPEM...)
		if err := atomicfile.WriteFile(path, all, 0o600); err != nil {
			return fmt.Errorf("keep certificate: %w", err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "certificate %s of %s is in %s\n", pair.Certificate.Serial, owner, path)
		return nil
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "key whose account it is for, by name or address (default: the only one)")
	f.BoolVar(&overwrite, "overwrite", false, "replace the certificate that is there")
	f.DurationVar(&lifetime, "valid-duration", credential.CertificateLifetime, "how long it is valid")
	return cmd
}

// keptCertificate reads the two parts of the kept certificate that may be
// published.
func keptCertificate(o *session.Options, owner account.Address) (certPEM, publicPEM []byte, err error) {
	path, err := certificatePath(o, owner)
	if err != nil {
		return nil, nil, err
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("there is no certificate of %s here", owner), Remedy: "make one with `croft tx cert generate client`"}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read certificate: %w", err)
	}
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "CERTIFICATE":
			certPEM = pem.EncodeToMemory(block)
		case "EC PUBLIC KEY":
			publicPEM = pem.EncodeToMemory(block)
		}
	}
	if certPEM == nil || publicPEM == nil {
		return nil, nil, &croft.Error{Kind: croft.KindInvalid, Err: fmt.Errorf("%s is no certificate", path), Remedy: "make one anew with `croft tx cert generate client --overwrite`"}
	}
	return certPEM, publicPEM, nil
}

func txCertPublish(use string) verb {
	return verb{
		use: use, short: "Publish the certificate of the account that signs",
		msg: func(t *session.TxCall, _ ids) (proto.Message, error) {
			cert, public, err := keptCertificate(t.Options, t.Me)
			return &certv1.MsgCreateCertificate{Owner: string(t.Me), Cert: cert, Pubkey: public}, err
		},
	}
}

func txCertRevoke() verb {
	var serial string
	return verb{
		use: "revoke [client|server]", short: "Declare a certificate invalid for good", min: 0, max: 1,
		more: func(cmd *cobra.Command) {
			cmd.Flags().StringVar(&serial, "serial", "", "serial number (default: that of the certificate kept here)")
		},
		msg: func(t *session.TxCall, _ ids) (proto.Message, error) {
			if serial == "" {
				cert, public, err := keptCertificate(t.Options, t.Me)
				if err != nil {
					return nil, err
				}
				parsed, err := credential.ParseCertificate(cert, public)
				if err != nil {
					return nil, err
				}
				serial = parsed.Serial
			}
			return &certv1.MsgRevokeCertificate{Id: &certv1.ID{Owner: string(t.Me), Serial: serial}}, nil
		},
	}
}
