// Owner stands in for a box's owner: in a real browser of the size of a phone it opens
// the page that the code on the box leads to, makes a passkey, says "This is mine", and
// waits until the charts of the box are drawn. It prints how long each step took.
//
//	owner [-pictures DIR] https://fleet.example/claim#K7QM2XWP
//
// Debian's Chromium must be there. Its passkeys are in memory.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/device"
)

func main() {
	pictures := flag.String("pictures", "", "`folder` for a picture of each page")
	patience := flag.Duration("patience", 3*time.Minute, "for all of it")
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	ctx, cancel := context.WithTimeout(ctx, *patience)
	err := claim(ctx, flag.Arg(0), *pictures, os.Stdout)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "owner:", err)
		os.Exit(1)
	}
}

// step is something that the owner does, until the page shows something.
type step struct {
	what   string
	do     chromedp.Action
	awaits string // CSS selector of what is visible then
}

func claim(ctx context.Context, url, pictures string, out io.Writer) error {
	// As root Chromium's own sandbox cannot be; it opens our pages only.
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox)
	ctx, end := chromedp.NewExecAllocator(ctx, options...)
	defer end()
	ctx, leave := chromedp.NewContext(ctx)
	defer leave()
	phone := &webauthn.VirtualAuthenticatorOptions{
		Protocol: webauthn.AuthenticatorProtocolCtap2, Transport: webauthn.AuthenticatorTransportInternal,
		HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true,
	}
	err := chromedp.Run(ctx, chromedp.Emulate(device.IPhone13), webauthn.Enable(), chromedp.ActionFunc(func(ctx context.Context) error {
		_, err := webauthn.AddVirtualAuthenticator(phone).Do(ctx)
		return err
	}))
	if err != nil {
		return fmt.Errorf("start Chromium (make setup installs it): %w", err)
	}
	for i, s := range []step{
		{"the code is scanned", chromedp.Navigate(url), `form[data-passkey="create"] button`},
		{"a passkey is made", chromedp.Click(`form[data-passkey="create"] button`), `form[action="/claim/confirm"] button`},
		{`"This is mine"`, chromedp.Click(`form[action="/claim/confirm"] button`), `.charts`},
		{"its charts are drawn", chromedp.ScrollIntoView(`.charts`), `.charts canvas`},
	} {
		begin := time.Now()
		err := chromedp.Run(ctx, s.do, chromedp.WaitVisible(s.awaits))
		if err == nil {
			_, err = fmt.Fprintf(out, "%-22s %5.1f s\n", s.what, time.Since(begin).Seconds())
		}
		if pictures != "" {
			err = errors.Join(err, picture(ctx, filepath.Join(pictures, fmt.Sprintf("owner-%d.png", i+1))))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return nil
}

// picture photographs the whole page, also when the steps' time is over.
func picture(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	var png []byte
	if err := chromedp.Run(ctx, chromedp.FullScreenshot(&png, 100)); err != nil {
		return fmt.Errorf("take a picture: %w", err)
	}
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, png, 0o644))
}
