package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/croft-cloud/croft"
	"github.com/croft-cloud/croft/cmd/croft/session"
	"github.com/croft-cloud/croft/firmware/boards"
	"github.com/croft-cloud/croft/firmware/esp"
	"github.com/croft-cloud/croft/images/build"
	"github.com/croft-cloud/croft/images/media"
	"github.com/croft-cloud/croft/provisioning/joinfile"
)

func newImageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Build, inspect and write disk images, and say what they join", Args: noCommand, RunE: help}
	cmd.AddCommand(newImageBuildCommand(), newImageInspectCommand(), newImageNetworkCommand(), newImageVoucherCommand(), newImageWriteCommand())
	return cmd
}

func newImageBuildCommand() *cobra.Command {
	var board, version, network string
	var opts build.Options
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build the disk image of a board from this repository",
		Long: `Build the disk image of a board from this repository.

Makes a disk image, the root and the kernel image in it, a manifest with the
digest of everything, and an SBOM. Nothing in the output folder changes before
all of them are complete. Downloads the kernel once; needs 2 GiB of free space.

With --network the boxes join a network: they let what they have on its chain,
through its relays. Without, they boot and show their page. croft image network
changes that later; root and kernel image are the same with every network.`,
		Example: `  croft image build
  croft image build --board uefi-x86 --version 1.4.0 --out /srv/releases/1.4.0
  croft image build --network network.json`,
		Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if opts.Board, err = boards.Get(board); err != nil {
				return err
			}
			opts.Version = croft.Version(version)
			if network != "" {
				if opts.Network, err = readNetwork(network); err != nil {
					return err
				}
			}
			steps := newSteps(cmd.ErrOrStderr())
			opts.Progress = steps.begin
			result, err := build.Build(cmd.Context(), opts)
			steps.end(err)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			for _, a := range result.Release.Artifacts {
				fmt.Fprintf(out, "%s  %s\n", a.SHA256, filepath.Join(opts.Out, a.Name))
			}
			fmt.Fprintf(out, "version %s for %s; try it: croft vm run %s\n", result.Release.Version, board, filepath.Join(opts.Out, filepath.Base(result.Image)))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&board, "board", "uefi-x86", "hardware model: "+strings.Join(boards.Names(), ", "))
	f.StringVar(&opts.Out, "out", "build", "folder for the results")
	f.StringVar(&opts.Source, "source", ".", "root folder of croft's source")
	f.StringVar(&opts.Cache, "cache", "", "folder for downloads (default: cache below --out)")
	f.StringVar(&network, "network", "", "file that says which network the boxes join (default: none)")
	f.StringVar(&version, "version", "", "name of the release (default: from the commit)")
	complete := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return boards.Names(), cobra.ShellCompDirectiveNoFileComp
	}
	if err := cmd.RegisterFlagCompletionFunc("board", complete); err != nil {
		panic(err) // there is no such flag: a mistake above
	}
	return cmd
}

// steps prints what is being done and how long each step took; on a step of
// more than five seconds it shows that time goes by.
type steps struct {
	w       io.Writer
	current string
	started time.Time
	done    chan struct{} // closed to end the signs of life; nil when there are none
	quiet   chan struct{} // closed when they have ended
}

func newSteps(w io.Writer) *steps { return &steps{w: w} }

func (s *steps) begin(step string) {
	s.end(nil)
	s.current = step
	fmt.Fprintf(s.w, "%s …\n", step)
	s.watch(step)
}

// watch prints a sign of life every five seconds until stop.
func (s *steps) watch(step string) {
	s.started, s.done, s.quiet = time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(s.quiet)
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-s.done:
				return
			case <-tick.C:
				fmt.Fprintf(s.w, "    … %s, %d s\n", step, int(time.Since(s.started).Seconds()))
			}
		}
	}()
}

func (s *steps) stop() {
	close(s.done)
	<-s.quiet
}

func (s *steps) end(err error) {
	if s.current == "" {
		return
	}
	s.stop()
	if err == nil {
		fmt.Fprintf(s.w, "    done in %.1f s\n", time.Since(s.started).Seconds())
	}
	s.current = ""
}

func newImageInspectCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Explain a disk image, or a disk, to a person",
		Long: `Explain a disk image, or a disk, to a person: its partitions, what would boot
first, and what is wrong with it. Only reads.`,
		Example: `  croft image inspect build/croft-uefi-x86.img
  sudo croft image inspect --json /dev/sdX`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			about, err := media.Inspect(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(about)
			}
			_, err = io.WriteString(cmd.OutOrStdout(), about.Text())
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "answer in JSON")
	return cmd
}

func newImageNetworkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "network IMAGE [FILE]",
		Short: "Say which network the boxes of an image join, or show it",
		Long: `Say which network the boxes of an image join, or show it.

FILE is JSON: where the chain and the relays are. It goes onto the image's EFI
partition, in the place of the one that may be there; nothing else changes, and
it holds no secret. A box reads it when it starts. On a stick that is written
already, any computer can put the file there, as croft/network.json.`,
		Example: `  croft image network build/croft-uefi-x86.img network.json
  croft image network build/croft-uefi-x86.img`,
		Args: session.Args(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return showNetwork(cmd.OutOrStdout(), args[0])
			}
			network, err := readNetwork(args[1])
			if err != nil {
				return err
			}
			if err := media.SetNetwork(args[0], network); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "boxes with %s join %s\n", args[0], network.Chain.ID)
			return nil
		},
	}
}

func newImageVoucherCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "voucher IMAGE [FILE]",
		Short: "Give an image the voucher of one box, by which its fleet knows it",
		Long: `Give an image the voucher of one box, by which its fleet knows it.

The voucher is read from FILE, or from standard input. It goes onto the image's EFI
partition, in the place of the one that may be there. Write the image to that box
alone: a voucher lets in the first box that comes with it.`,
		Example: `  croft factory voucher 2026-11 CR-4821-3077-5567 | croft image voucher box.img`,
		Args:    session.Args(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := cmd.InOrStdin()
			if len(args) == 2 {
				f, err := os.Open(args[1])
				if err != nil {
					return &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("read the voucher: %w", err), Remedy: "`croft factory voucher` prints it"}
				}
				defer f.Close()
				in = f
			}
			raw, err := io.ReadAll(io.LimitReader(in, joinfile.MaxVoucher+64))
			if err != nil {
				return fmt.Errorf("read the voucher: %w", err)
			}
			if err := media.SetVoucher(args[0], string(raw)); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is now for one box alone\n", args[0])
			return err
		},
	}
}

// readNetwork reads the file that says which network boxes join.
func readNetwork(path string) (*joinfile.Network, error) {
	const remedy = "`croft relay` prints its part of it; the README shows a whole one"
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &croft.Error{Kind: croft.KindNotFound, Err: fmt.Errorf("network file %s does not exist", path), Remedy: remedy}
	}
	if err != nil {
		return nil, fmt.Errorf("read the network file: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, joinfile.MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read the network file: %w", err)
	}
	network, err := joinfile.Parse(raw)
	if e, ok := errors.AsType[*croft.Error](err); ok { // its remedy is for boxes
		return nil, &croft.Error{Kind: e.Kind, Err: fmt.Errorf("%s: %w", path, e.Err), Remedy: remedy}
	}
	return network, err
}

// showNetwork prints the network file of an image or a disk.
func showNetwork(w io.Writer, path string) error {
	about, err := media.Inspect(path)
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer f.Close()
	part := about.Partitions[0]
	volume, err := esp.OpenVolume(io.NewSectionReader(f, part.Start, part.Size))
	if err != nil {
		return fmt.Errorf("read the EFI partition of %s: %w", path, err)
	}
	raw, err := volume.ReadFile(joinfile.Path, joinfile.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return &croft.Error{
			Kind: croft.KindNotFound, Err: fmt.Errorf("%s has no network file: its boxes join none", path),
			Remedy: "put one there with `croft image network " + path + " FILE`",
		}
	}
	if err != nil {
		return fmt.Errorf("read the network file of %s: %w", path, err)
	}
	_, err = w.Write(raw)
	return err
}

func newImageWriteCommand() *cobra.Command {
	var image string
	var yes bool
	cmd := &cobra.Command{
		Use:   "write DEVICE",
		Short: "Write an image to a disk, after asking",
		Long: `Write an image to a disk, after asking.

Refuses a disk that is mounted, in use, holds the running system or is too
small. What was on the disk is lost; what the image does not cover is not wiped,
though. All that is written is read back. The partition table comes last: a
writing that was stopped leaves a disk that does not boot, never half a box.`,
		Example: `  lsblk --nodeps --output NAME,SIZE,MODEL     # which disk is it?
  sudo croft image write /dev/sdX
  sudo croft image write --yes --image build/croft-uefi-x86.img /dev/sdX`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			job, err := media.Prepare(image, args[0])
			if err != nil {
				return err
			}
			defer job.Close()
			fmt.Fprintf(cmd.ErrOrStderr(), "%s\n", job)
			if !yes {
				if err := confirm(cmd, job.Name()); err != nil {
					return err
				}
			}
			show := progress{w: cmd.ErrOrStderr(), overwrite: isTerminal(cmd.ErrOrStderr())}
			if err := job.Write(cmd.Context(), show.show); err != nil {
				show.breakLine()
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s carries the image; put it into the box and switch it on\n", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&image, "image", "build/croft-uefi-x86.img", "the image to write")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// confirm asks for the name of the disk that is to be overwritten.
func confirm(cmd *cobra.Command, name string) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "Everything on it will be lost. Type the name of the disk (%s) to go on: ", name)
	answer := make(chan string, 1)
	go func() { // ends with the program: reading from a terminal cannot be stopped
		line, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
		answer <- line
	}()
	var line string
	select {
	case line = <-answer:
	case <-cmd.Context().Done():
	}
	if strings.TrimSpace(line) == name {
		return nil
	}
	if !strings.HasSuffix(line, "\n") {
		fmt.Fprintln(cmd.ErrOrStderr())
	}
	return &croft.Error{Kind: croft.KindRefused, Err: errors.New("nothing was written"), Remedy: "type exactly " + name + ", or pass --yes"}
}

// progress prints how far something is, once a second and at the end.
type progress struct {
	w         io.Writer
	overwrite bool // each line over the last one, on a terminal

	phase string
	begin time.Time // of the phase
	last  time.Time
	open  bool // the cursor stands in a line
}

func (p *progress) show(phase string, done, total int64) {
	now := time.Now()
	if phase != p.phase {
		p.phase, p.begin, p.last = phase, now, now
	}
	if done < total && now.Sub(p.last) < time.Second {
		return
	}
	p.last = now
	line := fmt.Sprintf("%s: %3d %% of %d MiB", phase, done*100/max(total, 1), total>>20)
	if took := now.Sub(p.begin); took >= time.Second {
		line += fmt.Sprintf(", %.0f MiB/s", float64(done>>20)/took.Seconds())
	}
	if p.overwrite {
		fmt.Fprintf(p.w, "\r%-60s", line)
		p.open = true
	} else {
		fmt.Fprintln(p.w, line)
	}
	if done == total {
		p.breakLine()
	}
}

func (p *progress) breakLine() {
	if p.open {
		fmt.Fprintln(p.w)
		p.open = false
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
