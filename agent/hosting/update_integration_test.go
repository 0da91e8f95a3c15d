//go:build integration

package hosting

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/api/deploymentv1"
	"github.com/croft-cloud/croft/chain/api/deploymentv1beta4"
	"github.com/croft-cloud/croft/chain/sdl"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

// shop uses most of what a manifest can say.
const shop = `version: "2.0"
services:
  db:
    image: croft/app:1
    env: [PORT=5432]
    expose:
      - {port: 5432, to: [{service: web}]}
  echo:
    image: croft/app:1
    command: [/bin/app, echo]
    args: ["7000"]
    expose:
      - {port: 7000, to: [{global: true}]}
      - {port: 7000, proto: udp, to: [{global: true}]}
  store:
    image: croft/app:1
    env: [COLOUR=red]
    params: {storage: {data: {mount: /data}, fast: {mount: /ram}}}
    expose:
      - {port: 3000, as: 80, to: [{global: true}]}
  web:
    image: croft/app:1
    env: [COLOUR=red]
    expose:
      - {port: 3000, as: 80, accept: [shop.example], http_options: {max_body_size: 1000}, to: [{global: true}]}
profiles:
  compute:
    small: {resources: {cpu: {units: 0.05}, memory: {size: 128Mi}, storage: {size: 64Mi}}}
    disks:
      resources:
        cpu: {units: 0.05}
        memory: {size: 128Mi}
        storage:
          - {size: 64Mi}
          - {name: data, size: 64Mi, attributes: {persistent: true, class: CLASS}}
          - {name: fast, size: 16Mi, attributes: {class: ram}}
  placement:
    home:
      pricing: {small: {denom: uakt, amount: 100000}, disks: {denom: uakt, amount: 100000}}
deployment:
  db: {home: {profile: small, count: 1}}
  echo: {home: {profile: small, count: 1}}
  store: {home: {profile: disks, count: 1}}
  web: {home: {profile: small, count: 2}}
`

// workloads shows what runs for a manifest, as tenants and their visitors see it.
func (s *stage) workloads(t *testing.T) {
	t.Run("a shop", s.runShop)
	t.Run("a service in trouble", s.runTrouble)
}

func (s *stage) runShop(t *testing.T) {
	p, _ := s.open()
	text := strings.Replace(shop, "CLASS", string(p.class), 1)
	id := s.deploy(t, s.me, file(t, text))
	status, err := s.me.Status(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	store := "http://" + status.Services["store"].URIs[0]
	const web = "http://shop.example/"

	t.Run("variables of the manifest and of the provider", func(t *testing.T) {
		for _, want := range []string{"COLOUR=red", "AKASH_OWNER=" + string(id.Owner), "AKASH_DEPLOYMENT_SEQUENCE=" + fmt.Sprint(id.DSeq)} {
			if got := s.page(t, web); !slices.Contains(got.Env, want) {
				t.Errorf("environment is %q, want %s", got.Env, want)
			}
		}
	})
	t.Run("both replicas serve", func(t *testing.T) {
		seen := map[string]bool{}
		s.wait(t, "both have answered", func() bool {
			seen[s.page(t, web).Host] = true
			return seen["web-1-0"] && seen["web-1-1"]
		})
	})
	t.Run("TLS by the name of the server", func(t *testing.T) { s.overTLS(t, "shop.example") })
	t.Run("ports of the world, with a command and its arguments", func(t *testing.T) {
		for _, proto := range []string{"TCP", "UDP"} {
			i := slices.IndexFunc(status.Ports["echo"], func(f gatewayclient.ForwardedPort) bool { return f.Proto == proto && f.Port == 7000 })
			if i < 0 {
				t.Errorf("no %s port is in the status: %+v", proto, status.Ports)
				continue
			}
			at := status.Ports["echo"][i]
			if got := s.echoed(t, strings.ToLower(proto), net.JoinHostPort(at.Host, fmt.Sprint(at.ExternalPort)), "hello there"); got != "hello there" {
				t.Errorf("%s port answers %q", proto, got)
			}
		}
	})
	t.Run("a body that is too large", func(t *testing.T) {
		for size, want := range map[int]string{1000: "200 took 1000 bytes\n", 1001: "413 The request is larger than the 1000 bytes that this service takes."} {
			if got := s.post(t, web+"take", size); !strings.HasPrefix(got, want) {
				t.Errorf("%d bytes: answer is %q, want %q", size, got, want)
			}
		}
	})
	t.Run("what services reach of each other", func(t *testing.T) { s.neighbours(t, id) })
	t.Run("shell", func(t *testing.T) { s.shells(t, id) })
	t.Run("logs", func(t *testing.T) { s.logLines(t, id, web) })
	t.Run("volumes survive a restart, memory does not", func(t *testing.T) { s.volumes(t, id, store) })
	t.Run("update", func(t *testing.T) { s.update(t, id, text, web, store) })
	t.Run("host names move", func(t *testing.T) { s.migrate(t, id, web) })
	s.over(t, s.me, id)
}

// site is the front page of the tenants' program.
type site struct {
	Host string
	Env  []string
}

func (s *stage) page(t *testing.T, url string) site {
	t.Helper()
	got, err := s.pageOr(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (s *stage) pageOr(ctx context.Context, url string) (got site, err error) {
	text, err := s.me.Get(ctx, url)
	if err == nil {
		err = json.Unmarshal([]byte(text), &got)
	}
	return got, err
}

// post is status and text of the answer to so many bytes.
func (s *stage) post(t *testing.T, url string, size int) string {
	t.Helper()
	resp, err := s.w.Relay.Client().Post(url, "text/plain", strings.NewReader(strings.Repeat("x", size)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, text)
}

// overTLS asks for a page at a host whose certificate nobody vouches for.
func (s *stage) overTLS(t *testing.T, host string) {
	t.Helper()
	raw, err := s.w.Relay.Dial(t.Context(), "tcp", host+":443")
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, &tls.Config{ServerName: host, InsecureSkipVerify: true})
	defer conn.Close()
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := conn.ConnectionState().PeerCertificates[0].VerifyHostname(host); err != nil {
		t.Error(err)
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(text), "COLOUR=red") {
		t.Errorf("answer is %s %s, %v", resp.Status, text, err)
	}
}

// echoed is what a port answers to a word. A packet that is lost is sent again.
func (s *stage) echoed(t *testing.T, network, address, word string) (answer string) {
	t.Helper()
	s.wait(t, network+" port "+address+" answers", func() bool {
		conn, err := s.w.Relay.Dial(t.Context(), network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		got := make([]byte, len(word))
		if _, err = io.WriteString(conn, word); err == nil {
			err = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		}
		if err == nil {
			_, err = io.ReadFull(conn, got)
		}
		answer = string(got)
		return err == nil
	})
	return answer
}

// run is what a command prints in a service's first replica.
func (s *stage) run(t *testing.T, id akash.LeaseID, service string, command ...string) (string, error) {
	t.Helper()
	return s.me.Shell(t.Context(), id, service, append([]string{"/bin/app"}, command...)...)
}

func (s *stage) neighbours(t *testing.T, id akash.LeaseID) {
	// A second port is open in the container, and not in the manifest.
	end := beside(t, func(ctx context.Context) {
		if _, err := s.me.Shell(ctx, id, "db", "/bin/app", "echo", "5433"); ctx.Err() == nil {
			t.Errorf("the second port was closed: %v", err)
		}
	})
	defer end()
	s.wait(t, "the second port is open inside", func() bool {
		said, err := s.run(t, id, "db", "dial", "127.0.0.1:5433")
		return err == nil && said == "it listens\n"
	})
	if said, err := s.run(t, id, "web", "dial", "db:5432"); err != nil || said != "it listens\n" {
		t.Errorf("web reaches db at its port: %q, %v", said, err)
	}
	if said, err := s.run(t, id, "web", "dial", "db:5433"); err == nil {
		t.Errorf("web reaches db at a port that is not exposed: %q", said)
	}
	found, err := s.run(t, id, "web", "find", "db")
	if addresses := strings.Fields(found); err != nil || len(addresses) == 0 {
		t.Errorf("web finds db at %q, %v", found, err)
	}
	for _, at := range append(strings.Fields(found), "db") {
		if said, err := s.run(t, id, "echo", "dial", net.JoinHostPort(at, "5432")); err == nil {
			t.Errorf("echo reaches db at %s, which is open to web alone: %q", at, said)
		}
	}
}

func (s *stage) shells(t *testing.T, id akash.LeaseID) {
	var out strings.Builder
	err := s.me.With(t.Context(), id, func(g *gatewayclient.Gateway) error {
		return g.Shell(t.Context(), id, gatewayclient.ShellConfig{
			Service: "web", Replica: 1, Command: []string{"/bin/app", "cat"}, Stdin: strings.NewReader("line one\nline two\n"), Stdout: &out,
		})
	})
	if err != nil || out.String() != "line one\nline two\n" {
		t.Errorf("input comes back as %q, %v", &out, err)
	}
	_, err = s.run(t, id, "web", "fail", "7")
	if exit, ok := errors.AsType[*gatewayclient.ExitError](err); !ok || exit.Code != 7 {
		t.Errorf("a program that ends with 7: %v", err)
	}
	if _, err := s.me.Shell(t.Context(), id, "web", "/bin/nothing"); !errors.Is(err, gatewayclient.ErrNotRun) {
		t.Errorf("a program that is not there: %v", err)
	}
}

func (s *stage) logLines(t *testing.T, id akash.LeaseID, web string) {
	lines := make(chan gatewayclient.LogLine)
	end := beside(t, func(ctx context.Context) {
		err := s.me.With(ctx, id, func(g *gatewayclient.Gateway) error {
			for line, err := range g.Logs(ctx, id, gatewayclient.StreamConfig{Follow: true, Services: []string{"web"}, Tail: 1}) {
				if err != nil {
					return err
				}
				select {
				case lines <- line:
				case <-ctx.Done():
				}
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	defer end()
	last := map[string]bool{(<-lines).Name: true, (<-lines).Name: true}
	if !last["web-1-0"] || !last["web-1-1"] {
		t.Errorf("the last line of each replica: got those of %v", last)
	}
	s.page(t, web+"?sign=a-new-visitor")
	if line := <-lines; !strings.Contains(line.Message, "sign=a-new-visitor") {
		t.Errorf("the next line is %+v", line)
	}
}

// files are what lies in a folder of the store.
func (s *stage) files(t *testing.T, id akash.LeaseID, folder string) []string {
	t.Helper()
	list, err := s.run(t, id, "store", "list", folder)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(list)
}

func (s *stage) volumes(t *testing.T, id akash.LeaseID, store string) {
	if said, err := s.me.Get(t.Context(), store+"/write?dir=/data&mib=1"); err != nil || said != "wrote 1 MiB\n" {
		t.Errorf("write: %q, %v", said, err)
	}
	if said, err := s.me.Get(t.Context(), store+"/write?dir=/ram&mib=40"); err == nil || !strings.HasPrefix(said, "wrote 16 MiB, then:") {
		t.Errorf("write more than 16 MiB of memory: %q, %v", said, err)
	}
	before := s.files(t, id, "/data")
	if len(before) != 1 || len(s.files(t, id, "/ram")) != 1 {
		t.Errorf("files: %v on disk, %v in memory", before, s.files(t, id, "/ram"))
	}
	if _, err := s.me.Get(t.Context(), store+"/exit?code=3"); err != nil {
		t.Fatal(err)
	}
	s.told(t, s.me, id, "BackOff", "store-1-0 ended with exit code 3, once in a row; it starts again in ")
	s.ready(t, s.me, id)
	if after := s.files(t, id, "/data"); !slices.Equal(after, before) || len(s.files(t, id, "/ram")) != 0 {
		t.Errorf("files after a restart: %v on disk, %v in memory", after, s.files(t, id, "/ram"))
	}
}

// revise puts another manifest in the place of a deployment's.
func (s *stage) revise(t *testing.T, id akash.LeaseID, manifest sdl.Manifest) {
	t.Helper()
	hash := manifest.Hash()
	s.tell(t, s.me, &deploymentv1beta4.MsgUpdateDeployment{Id: &deploymentv1.DeploymentID{Owner: string(id.Owner), Dseq: id.DSeq}, Hash: hash[:]})
	s.accepted(t, s.me, id, manifest)
}

func (s *stage) update(t *testing.T, id akash.LeaseID, text, web, store string) {
	if _, err := s.w.Registry.Put(outside.Image{Name: "croft/app:2", Program: s.w.Web(), Env: []string{"RELEASE=2"}}); err != nil {
		t.Fatal(err)
	}
	before := s.files(t, id, "/data")
	asked, failed := 0, 0
	end := beside(t, func(ctx context.Context) {
		for ctx.Err() == nil {
			_, err := s.pageOr(ctx, web)
			if asked++; err != nil && ctx.Err() == nil {
				failed++
				t.Logf("visitor %d: %v", asked, err)
			}
		}
	})
	i := strings.Index(text, "  web:")
	text = strings.Replace(text[:i], "COLOUR=red", "COLOUR=blue", 1) +
		strings.Replace(strings.Replace(text[i:], "COLOUR=red", "COLOUR=blue", 1), "croft/app:1", "croft/app:2", 1)
	s.revise(t, id, file(t, text).Manifest())
	seen := map[string]bool{}
	s.wait(t, "only new replicas answer", func() bool {
		status, err := s.me.Status(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if !status.Ready() || status.Services["web"].UpdatedReplicas != 2 {
			return false
		}
		got := s.page(t, web)
		if strings.HasPrefix(got.Host, "web-1-") {
			return false
		}
		seen[got.Host] = true
		if !slices.Contains(got.Env, "COLOUR=blue") || !slices.Contains(got.Env, "RELEASE=2") {
			t.Errorf("a new replica has %q", got.Env)
		}
		return seen["web-2-0"] && seen["web-2-1"]
	})
	end()
	if failed > 0 || asked < 10 {
		t.Errorf("%d of %d visitors had no answer during the update", failed, asked)
	}
	if got := s.page(t, store); got.Host != "store-2-0" || !slices.Contains(got.Env, "COLOUR=blue") {
		t.Errorf("the store is %+v", got)
	}
	if after := s.files(t, id, "/data"); !slices.Equal(after, before) {
		t.Errorf("files after an update: %v, before %v", after, before)
	}
	s.told(t, s.me, id, "ReplacingInPlace", "")
	events, err := s.me.Events(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.Object.Name == "echo-2-0" || e.Object.Name == "db-2-0" {
			t.Errorf("a service that did not change was replaced: %+v", e)
		}
	}
}

func (s *stage) migrate(t *testing.T, from akash.LeaseID, web string) {
	f := file(t, simple(map[string]string{"web": "    env: [COLOUR=green]\n" + strings.Replace(page(program), "as: 80", "as: 80, accept: [shop.example]", 1)}))
	to := s.deploy(t, s.me, f)
	if got := s.page(t, web); slices.Contains(got.Env, "COLOUR=green") {
		t.Error("a name moved by itself")
	}
	move := func(who *outside.Tenant, to akash.LeaseID) (moved []string, err error) {
		err = who.With(t.Context(), to, func(g *gatewayclient.Gateway) (err error) {
			moved, err = g.MigrateHostnames(t.Context(), []string{"shop.example"}, to.DSeq, to.GSeq)
			return err
		})
		return moved, err
	}
	if _, err := move(s.other, to); err == nil {
		t.Error("another tenant may move a name")
	}
	if moved, err := move(s.me, to); err != nil || !slices.Equal(moved, []string{"shop.example"}) {
		t.Errorf("moved %v, %v", moved, err)
	}
	s.wait(t, "the other deployment has the name", func() bool {
		got, err := s.pageOr(t.Context(), web)
		return err == nil && slices.Contains(got.Env, "COLOUR=green")
	})
	s.over(t, s.me, to)
	s.wait(t, "the name is back", func() bool {
		got, err := s.pageOr(t.Context(), web)
		return err == nil && slices.Contains(got.Env, "COLOUR=blue")
	})
}

func (s *stage) runTrouble(t *testing.T) {
	f := file(t, simple(map[string]string{"crash": "    image: " + program + "\n    command: [/bin/app, fail]\n    args: [\"3\"]\n", "hog": page(program)}))
	id := s.lease(t, s.me, f, f.Manifest())
	s.accepted(t, s.me, id, f.Manifest())
	followed := make(chan gatewayclient.Event, 1000)
	end := beside(t, func(ctx context.Context) {
		err := s.me.With(ctx, id, func(g *gatewayclient.Gateway) error {
			for e, err := range g.Events(ctx, id, gatewayclient.StreamConfig{Follow: true, Services: []string{"hog"}}) {
				if err != nil {
					return err
				}
				followed <- e
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	defer end()
	var host string
	s.wait(t, "hog answers", func() bool {
		status, err := s.me.Status(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if status.Services["hog"].Available == 1 {
			host = status.Services["hog"].URIs[0]
		}
		return host != ""
	})
	t.Run("one that needs more memory than it leased", func(t *testing.T) {
		_, _ = s.me.Get(t.Context(), "http://"+host+"/alloc?mib=300") // it ends without an answer
		const note = "hog-1-0 needed more than its limit of 128Mi of memory and was ended; lease more memory, or let the program use less"
		for e := range followed {
			if e.Reason == "OOMKilled" {
				if e.Type != "Warning" || e.Note != note || e.Object.Kind != "Pod" || e.Object.Name != "hog-1-0" {
					t.Errorf("event is %+v", e)
				}
				break
			}
		}
		s.told(t, s.me, id, "BackOff", "hog-1-0 ran out of its 128Mi of memory, once in a row; it starts again in ")
		s.wait(t, "it answers again", func() bool {
			_, err := s.me.Get(t.Context(), "http://"+host)
			return err == nil
		})
	})
	t.Run("one that ends again and again", func(t *testing.T) {
		for _, times := range []string{"once", "2 times", "3 times"} {
			s.told(t, s.me, id, "BackOff", "crash-1-0 ended with exit code 3, "+times+" in a row; it starts again in ")
		}
		status, err := s.me.Status(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if _, why := s.service(t, status, "crash"); !strings.HasPrefix(why, "crash-1-0: it ended with exit code 3, ") {
			t.Errorf("status says %q", why)
		}
	})
	end() // else it sees the lease go
	s.over(t, s.me, id)
}
