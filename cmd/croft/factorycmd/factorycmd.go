// Package factorycmd is `croft factory`: batches of boxes, made at a desk. It
// reads flags, writes files and says what it did; package factory does the rest.
//
// Every verb may be run again: it finds what it made, or makes the same anew.
package factorycmd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/cmd/croft/session"
	"github.com/croft-cloud/croft/internal/atomicfile"
	"github.com/croft-cloud/croft/provisioning/factory"
)

// New makes `croft factory`.
func New() *cobra.Command {
	desk := &factory.Desk{}
	cmd := session.Group("factory", "Make serial numbers, labels and vouchers for a batch of boxes",
		newKeyCommand(desk), newBatchCommand(desk), newLabelsCommand(desk), newVoucherCommand(desk), newImportCommand(desk))
	cmd.Long = `Make serial numbers, labels and vouchers for a batch of boxes.

Each box gets a serial number, a secret for its sticker, and a voucher, by which
the fleet knows that the box is one of yours. They are made once, and kept in a
folder with the factory key that signs the vouchers:

  factory.pem        secret: the factory key
  factory.pub.pem    its public half, for the fleet
  NAME.batch.json    secret: a batch, with what stands on its stickers
  NAME.labels.pdf    secret: its labels
  NAME.serials.csv   its serial numbers, for the fleet alone

Who has a batch or its labels can claim its boxes before their owners do; who has
the factory key can bring boxes of their own into the fleet. Keep a backup of key
and batches: labels and lists can be made again from their batch at any time, but
a batch cannot be made again.`
	cmd.Example = `  croft factory key                                                 # once
  croft factory batch 2026-11 --count 100
  croft factory labels 2026-11 --address https://fleet.example/claim
  croft factory import 2026-11                                      # then give the list to the fleet`
	cmd.PersistentFlags().StringVar(&desk.Dir, "dir", "croft-factory", "folder of the factory key and the batches")
	return cmd
}

func newKeyCommand(desk *factory.Desk) *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Make the factory key, or say where it is",
		Long: `Make the factory key, or say where it is.

The key signs the vouchers of boxes. The fleet must be told its public half, and
then takes in the boxes that have a voucher. A key that is there stays.`,
		Args: session.Args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			k, err := desk.Key()
			if err != nil {
				return err
			}
			state := "was there already"
			if k.Made {
				state = "is new"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "The factory key %s.\n  %s  secret: keep it, and a backup\n  %s  its public half, for the fleet\n", state, k.Secret, k.PublicPath)
			return err
		},
	}
}

func newBatchCommand(desk *factory.Desk) *cobra.Command {
	var order factory.Order
	var until string
	cmd := &cobra.Command{
		Use:   "batch NAME --count N",
		Short: "Make a batch of boxes",
		Long: `Make a batch of boxes: a serial number, a sticker secret and a voucher for each.

A batch never changes. With the name and count of one that is there, nothing is
made, and what is there stays; with another count it is refused.`,
		Example: `  croft factory batch 2026-11 --count 100
  croft factory batch shop --count 24 --until 2028-12-31`,
		Args: session.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("count") {
				return session.MissingFlag(cmd, "count")
			}
			order.Name = args[0]
			if until != "" {
				day, err := time.Parse(time.DateOnly, until)
				if err != nil {
					return session.Usage(fmt.Errorf("--until %.40q is no day", until), "write it like 2028-12-31")
				}
				order.Until = day.AddDate(0, 0, 1).Add(-time.Second) // the day's last second
			}
			b, made, err := desk.Make(order)
			if err != nil {
				return err
			}
			state := "was there already"
			if made {
				state = "is new"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Batch %s %s: %s, with vouchers until %s.\n  %s  secret: keep it, and a backup\n",
				b.Name, state, boxes(len(b.Boxes)), b.Until.Format(time.DateOnly), desk.BatchPath(b.Name))
			return err
		},
	}
	cmd.Flags().IntVar(&order.Count, "count", 0, fmt.Sprintf("how many boxes, 1 to %d", factory.MaxBoxes))
	cmd.Flags().StringVar(&until, "until", "", "last day on which the boxes can come to the fleet for the first time, YYYY-MM-DD (default: in five years)")
	return cmd
}

func newLabelsCommand(desk *factory.Desk) *cobra.Command {
	var p factory.Print
	var sheet, out string
	var only []string
	cmd := &cobra.Command{
		Use:   "labels NAME --address URL",
		Short: "Make the labels of a batch, as PDF",
		Long: `Make the labels of a batch, as PDF: for each box a QR code that opens the page
where an owner claims it, the secret to type instead, and the serial number.

The secret stands behind # in the code's address. Telephones do not send that
part, so no server's log has it. Print at 100 %, not fitted to the page.

Sheets:
  a4-70x37   A4, 3 × 8 labels of 70 × 37 mm, edge to edge
  a4-64x34   A4, 3 × 8 labels of 63.5 × 33.9 mm with a margin
  roll-62    roll of 62 mm, cut every 36 mm`,
		Example: `  croft factory labels 2026-11 --address https://fleet.example/claim
  croft factory labels 2026-11 --address https://fleet.example/claim --sheet roll-62
  croft factory labels 2026-11 --address https://fleet.example/claim --only CR-4821-3077-5567 --skip 5`,
		Args: session.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if p.Address == "" {
				return session.MissingFlag(cmd, "address")
			}
			p.Sheet = factory.Sheet(sheet)
			for _, typed := range only {
				serial, err := factory.ParseSerial(typed)
				if err != nil {
					return err
				}
				p.Only = append(p.Only, serial)
			}
			b, err := desk.Batch(args[0])
			if err != nil {
				return err
			}
			pdf, err := b.Labels(p)
			if err != nil {
				return err
			}
			path := out
			if path == "" && len(only) == 0 {
				path = desk.LabelsPath(b.Name)
			} else if path == "" {
				path = strings.TrimSuffix(desk.LabelsPath(b.Name), ".pdf") + "-again.pdf"
			}
			if err := write(path, pdf); err != nil {
				return err
			}
			count := len(b.Boxes)
			if len(p.Only) > 0 {
				count = len(p.Only)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Labels of %s.\n  %s  secret: delete it when it is printed\n", boxes(count), path)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.Address, "address", "", "page where owners claim boxes, as the console has it")
	f.StringVar(&sheet, "sheet", string(factory.SheetA4), "what is printed on")
	f.StringSliceVar(&only, "only", nil, "serial numbers of boxes, to print their labels again (default: the whole batch)")
	f.IntVar(&p.Skip, "skip", 0, "how many labels the first page lacks already")
	f.StringVar(&out, "out", "", "file to write (default: in the folder, NAME.labels.pdf, with --only NAME.labels-again.pdf)")
	var names []string
	for _, s := range factory.Sheets() {
		names = append(names, string(s))
	}
	session.Complete(cmd, "sheet", names...)
	return cmd
}

func newVoucherCommand(desk *factory.Desk) *cobra.Command {
	return &cobra.Command{
		Use:   "voucher NAME SERIAL",
		Short: "Print the voucher of one box of a batch, for its image",
		Long: `Print the voucher of one box of a batch, for its image.

Whoever has it can bring one box into the fleet in the place of this one: pass it on
without showing it.`,
		Example: `  croft factory voucher 2026-11 CR-4821-3077-5567 | croft image voucher box.img`,
		Args:    session.Args(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := desk.Batch(args[0])
			if err != nil {
				return err
			}
			serial, err := factory.ParseSerial(args[1])
			if err != nil {
				return err
			}
			for _, box := range b.Boxes {
				if box.Serial == serial {
					_, err := fmt.Fprintln(cmd.OutOrStdout(), box.Voucher)
					return err
				}
			}
			return &croft.Error{
				Kind: croft.KindNotFound, Err: fmt.Errorf("batch %s has no box %s", b.Name, serial),
				Remedy: "look at its labels",
			}
		},
	}
}

func newImportCommand(desk *factory.Desk) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "import NAME",
		Short: "Make the list of a batch that the fleet imports, as CSV",
		Long: `Make the list of a batch that the fleet imports, as CSV.

It has the serial numbers, the IDs of their vouchers and hashes of the sticker
secrets, from which nobody finds the secrets. It is for the fleet alone all the
same. The fleet takes a list as a whole, and as often as it is given.`,
		Example: `  croft factory import 2026-11
  croft factory import 2026-11 --out /media/stick/2026-11.csv`,
		Args: session.Args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := desk.Batch(args[0])
			if err != nil {
				return err
			}
			list, err := b.ImportFile()
			if err != nil {
				return err
			}
			if out == "" {
				out = desk.SerialsPath(b.Name)
			}
			if err := write(out, list); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "List of %s.\n  %s  for the fleet\n", boxes(len(b.Boxes)), out)
			return err
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write (default: NAME.serials.csv in the folder)")
	return cmd
}

// write replaces a file that was made from a batch. It does not write over what
// nothing can make again.
func write(path string, data []byte) error {
	for _, precious := range []string{".batch.json", ".pem"} {
		if strings.HasSuffix(path, precious) {
			return session.Usage(fmt.Errorf("--out %s may be a key or a batch", path), "choose a name that does not end in "+precious)
		}
	}
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return &croft.Error{Kind: croft.KindRefused, Err: fmt.Errorf("%s is there and is no plain file; nothing was written", path), Remedy: "choose another with --out"}
	}
	err := atomicfile.WriteFile(path, data, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return &croft.Error{Kind: croft.KindNotFound, Err: err, Remedy: "make its folder, or choose another"}
	}
	return err
}

func boxes(n int) string {
	if n == 1 {
		return "1 box"
	}
	return fmt.Sprintf("%d boxes", n)
}
