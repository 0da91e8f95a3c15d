//go:build integration

package hosting

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/croft-cloud/croft/agent/blueprint"
	"github.com/croft-cloud/croft/agent/lease"
	"github.com/croft-cloud/croft/chain/akash"
	"github.com/croft-cloud/croft/chain/tenant/gatewayclient"
	"github.com/croft-cloud/croft/internal/rig/outside"
)

// page is a service that answers HTTP by host.
func page(image string, more ...string) string {
	return "    image: " + image + "\n" + strings.Join(more, "") + "    expose: [{port: 3000, as: 80, to: [{global: true}]}]\n"
}

// badInput shows what is answered to what is wrong, in which words, and that it
// leaves nothing behind.
func (s *stage) badInput(t *testing.T) {
	t.Run("manifests", s.badManifests)
	t.Run("a host name that another has", s.hostTaken)
	t.Run("images that cannot be had", s.badImages)
	t.Run("a registry that is away", s.registryAway)
	t.Run("a lease that is closed while its image is pulled", s.closedWhilePulling)
}

// tells waits until tenant and owner are told of something bad, in the same words.
func (s *stage) tells(t *testing.T, who *outside.Tenant, id akash.LeaseID, reason, words string) {
	t.Helper()
	s.told(t, who, id, reason, words)
	s.wait(t, "the owner is told "+words, func() bool {
		return slices.ContainsFunc(s.Status().Trouble, func(e lease.Event) bool {
			return e.Type == lease.Warning && e.Reason == reason && strings.HasPrefix(e.Note, words)
		})
	})
}

// untold says that a tenant is told nothing of a lease but why, as far as a close
// frame takes it.
func (s *stage) untold(t *testing.T, who *outside.Tenant, id akash.LeaseID, why string) {
	t.Helper()
	events, err := who.Events(t.Context(), id)
	refusal, ok := errors.AsType[*gatewayclient.GatewayError](err)
	if want := why[:min(123, len(why))]; !ok || refusal.Code != 4001 || refusal.Message != want || len(events) > 0 {
		t.Errorf("events are %+v, %v\nwant none, and 4001 %s", events, err, want)
	}
}

func (s *stage) badManifests(t *testing.T) {
	f := file(t, simple(map[string]string{"web": page(program)}))
	good := f.Manifest()
	id := s.lease(t, s.me, f, good)
	victim, changed := s.lease(t, s.me, f, good), s.lease(t, s.me, f, good)
	// The other tenant has a deployment, and so is known to the chain.
	foreign := s.lease(t, s.other, f, good)
	closed := s.lease(t, s.me, f, good)
	s.over(t, s.me, closed)
	bigger := file(t, strings.ReplaceAll(simple(map[string]string{"web": page(program)}), "128Mi", "4Gi")).Manifest()
	more := s.lease(t, s.me, f, bigger)
	clash := file(t, simple(map[string]string{
		"web": "    image: " + program + "\n    expose: [{port: 3000, as: 7000, to: [{global: true}]}, {port: 3001, as: 7000, to: [{global: true}]}]\n",
	}))
	ports := s.lease(t, s.me, clash, clash.Manifest())
	twice := file(t, simple(map[string]string{"a": page(program), "b": page(program)}))
	same := twice.Manifest()
	for i := range same[0].Services {
		same[0].Services[i].Expose[0].Hosts = []string{"one.example"}
	}
	hosts := s.lease(t, s.me, twice, same)
	other := slices.Clone(good)
	other[0].Services = slices.Clone(good[0].Services)
	other[0].Services[0].Env = []string{"COLOUR=red"}
	hash := good.Hash()
	wrongHash := fmt.Sprintf("manifest is not the one on chain: its hash is %x, that on chain %x; send the manifest of the newest deployment update", other.Hash(), hash)

	t.Run("answers", func(t *testing.T) {
		for _, tc := range []struct {
			name     string
			send     func(t *testing.T) error
			status   int
			sentence string
		}{
			{
				"the deployment of another tenant",
				func(t *testing.T) error { return s.put(t, s.other, victim, good.JSON()) },
				404, fmt.Sprintf("no active lease: deployment %s/%d has none with this provider; create the lease first", foreign.Owner, victim.DSeq),
			},
			{
				"another manifest than that of the deployment",
				func(t *testing.T) error { return s.put(t, s.me, changed, other.JSON()) },
				422, wrongHash,
			},
			{
				"a lease that is closed",
				func(t *testing.T) error { return s.put(t, s.me, closed, good.JSON()) },
				404, fmt.Sprintf("no active lease: deployment %s/%d has none with this provider; create the lease first", closed.Owner, closed.DSeq),
			},
			{
				"more than was leased",
				func(t *testing.T) error { return s.put(t, s.me, more, bigger.JSON()) },
				422, `manifest does not fit what was leased: group "home": service "web": resources.memory: {"quantity":{"val":"4294967296"},"attributes":[]}, on chain {"quantity":{"val":"134217728"},"attributes":[]}; send the manifest that belongs to the deployment's groups`,
			},
			{
				"two ports of a service that would be one port of the world",
				func(t *testing.T) error { return s.put(t, s.me, ports, clash.Manifest().JSON()) },
				422, `manifest is invalid: group "home": service "web": expose: ports 3000 and 3001 would both be TCP port 7000 of the world; correct the SDL and update the deployment`,
			},
			{
				"two services with one host name",
				func(t *testing.T) error { return s.put(t, s.me, hosts, same.JSON()) },
				422, `manifest is invalid: group "home": service "b": expose[0].hosts: one.example is taken by service "a"; make the manifest anew from the SDL and send it again`,
			},
			{
				"what is no JSON",
				func(t *testing.T) error { return s.put(t, s.me, id, []byte(`[{"name":`)) },
				422, "the manifest is not JSON",
			},
			{
				"JSON that is no manifest",
				func(t *testing.T) error { return s.put(t, s.me, id, []byte(`{"services": 3}`)) },
				422, `manifest is not well-formed: the whole cannot be an object in JSON; make the manifest anew from the SDL and send it again`,
			},
			{
				"a manifest without services",
				func(t *testing.T) error { return s.put(t, s.me, id, []byte(`[{"name":"home"}]`)) },
				422, `manifest is invalid: group "home": services is empty; make the manifest anew from the SDL and send it again`,
			},
			{
				"more bytes than a manifest may have",
				func(t *testing.T) error {
					return s.put(t, s.me, id, append(bytes.Repeat([]byte(" "), blueprint.MaxManifest), good.JSON()...))
				},
				422, "the body is longer than 1048576 bytes",
			},
		} {
			t.Run(tc.name, func(t *testing.T) {
				t.Parallel() // some answers wait for the chain to have what is asked for
				refused(t, tc.send(t), tc.status, tc.sentence)
			})
		}
	})
	s.tells(t, s.me, ports, "ManifestRefused", "a manifest was refused: manifest is invalid: group \"home\": service \"web\": expose: ports 3000 and 3001")
	s.tells(t, s.me, changed, "ManifestRefused", "a manifest was refused: "+wrongHash)
	// Who has no lease gets the answer and nothing else, and nobody else hears of it.
	const without = "no active lease: lease %s has no manifest; send the manifest first"
	s.untold(t, s.me, victim, fmt.Sprintf(without, victim))
	s.untold(t, s.other, foreign, fmt.Sprintf(without, foreign))
	if text := fmt.Sprint(s.Status().Trouble); strings.Contains(text, "no active lease") {
		t.Errorf("the owner is told what strangers send: %s", text)
	}
	for _, l := range s.Status().Leases {
		if left := s.left(t, l.ID); len(left) > 0 {
			t.Errorf("a refused manifest leaves %v", left)
		}
		who := s.me
		if l.ID.Owner == s.other.Owner() {
			who = s.other
		}
		_, err := who.Status(t.Context(), l.ID)
		refused(t, err, 404, "the lease has no manifest yet; send it first")
		s.over(t, who, l.ID)
	}
}

func (s *stage) hostTaken(t *testing.T) {
	f := file(t, simple(map[string]string{"web": strings.Replace(page(program), "as: 80", "as: 80, accept: [shop.example]", 1)}))
	holder := s.lease(t, s.other, f, f.Manifest())
	s.accepted(t, s.other, holder, f.Manifest())
	late := s.lease(t, s.me, f, f.Manifest())
	const taken = `host name belongs to another: service "web": shop.example; choose another host name`
	refused(t, s.put(t, s.me, late, f.Manifest().JSON()), 422, taken)
	s.tells(t, s.me, late, "ManifestRefused", "a manifest was refused: "+taken)
	if events, err := s.other.Events(t.Context(), holder); err != nil || strings.Contains(fmt.Sprint(events), "ManifestRefused") {
		t.Errorf("who has the name is told %+v, %v", events, err)
	}
	if left := s.left(t, late); len(left) > 0 {
		t.Errorf("a refused manifest leaves %v", left)
	}
	s.over(t, s.other, holder)
	s.accepted(t, s.me, late, f.Manifest()) // it is free now
	s.over(t, s.me, late)
}

// service is what a lease's status says of a service, and why it does not run.
func (s *stage) service(t *testing.T, status gatewayclient.LeaseStatus, name string) (gatewayclient.ServiceStatus, string) {
	t.Helper()
	for _, e := range status.Errors {
		if why, ok := strings.CutPrefix(e, name+": "); ok {
			return status.Services[name], why
		}
	}
	return status.Services[name], ""
}

func (s *stage) badImages(t *testing.T) {
	for _, image := range []outside.Image{
		{Name: "croft/foreign:1", Arch: "riscv64"},
		{Name: "croft/locked:1", Private: true, Env: []string{"LOCKED=1"}},
		{Name: "croft/secret:1", Private: true, Env: []string{"SECRET=1"}},
		{Name: "croft/opened:1", Private: true, Env: []string{"OPENED=1"}},
	} {
		image.Program = s.w.Web()
		if _, err := s.w.Registry.Put(image); err != nil {
			t.Fatal(err)
		}
	}
	// Credentials are for the registry they name, and not for mirrors of others.
	here := s.w.Registry.Address()
	credentials := "    credentials: {host: \"" + here + "\", username: " + registryUser + ", password: " + registryPassword + "}\n"
	wrong := strings.Replace(credentials, registryPassword, "wrong horse", 1)
	f := file(t, simple(map[string]string{
		"foreign": page(here + "/croft/foreign:1"), "locked": page(here + "/croft/locked:1"), "opened": page(here+"/croft/opened:1", credentials),
		"mistyped": page(here+"/croft/secret:1", wrong), "unknown": page(here + "/croft/nobody:1"), "web": page(program),
	}))
	id := s.lease(t, s.me, f, f.Manifest())
	s.accepted(t, s.me, id, f.Manifest())
	s.wait(t, "what can run runs", func() bool {
		status, err := s.me.Status(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return status.Services["opened"].Available == 1 && status.Services["web"].Available == 1
	})
	for _, tc := range []struct{ name, service, image, reason, why string }{
		{"an image that does not exist", "unknown", "nobody", "UnknownImage", "pull IMAGE: the registry has no such image; check the image's name and tag"},
		{"an image for another machine", "foreign", "foreign", "WrongArchitecture", "the image is for \"linux\" on \"riscv64\", this machine is linux on amd64; build the image for linux/amd64"},
		{"a private image without credentials", "locked", "locked", "CredentialsRefused", "pull IMAGE: the registry answered 401; check the image's name and the credentials for its registry"},
		{"a private image with wrong credentials", "mistyped", "secret", "CredentialsRefused", "pull IMAGE: the registry answered 401; check the image's name and the credentials for its registry"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			image := here + "/croft/" + tc.image + ":1"
			text := strings.ReplaceAll(tc.why, "IMAGE", image)
			s.told(t, s.me, id, tc.reason, fmt.Sprintf("image %q could not be pulled: %s. The next attempt is in 10m0s", image, text))
			status, err := s.me.Status(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if service, why := s.service(t, status, tc.service); service.Available != 0 || why != "image "+image+" is not here: "+text {
				t.Errorf("status is %+v, %q", service, why)
			}
		})
	}
	events, err := s.me.Events(t.Context(), id)
	if text := fmt.Sprint(events, s.Status()); err != nil || strings.Contains(text, registryPassword) || strings.Contains(text, "wrong horse") {
		t.Errorf("a password is in what is told: %s, %v", text, err)
	}
	s.wait(t, "the owner is told of each", func() bool {
		text := fmt.Sprint(s.Status().Trouble)
		for _, reason := range []string{"UnknownImage", "WrongArchitecture", "CredentialsRefused"} {
			if !strings.Contains(text, reason) {
				return false
			}
		}
		return true
	})
	s.over(t, s.me, id)
}

func (s *stage) registryAway(t *testing.T) {
	if _, err := s.w.Registry.Put(outside.Image{Name: "croft/late:1", Program: s.w.Web(), Env: []string{"LATE=1"}}); err != nil {
		t.Fatal(err)
	}
	here := s.w.Registry.Address()
	f := file(t, simple(map[string]string{"web": page(here + "/croft/late:1")}))
	id := s.lease(t, s.me, f, f.Manifest())
	s.w.Registry.Stop()
	defer func() {
		if err := s.w.Registry.Start(); err != nil {
			t.Error(err)
		}
	}()
	s.accepted(t, s.me, id, f.Manifest())
	image := here + "/croft/late:1"
	s.tells(t, s.me, id, "RegistryDown", fmt.Sprintf("image %q could not be pulled: pull %s: ", image, image))
	status, err := s.me.Status(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if service, why := s.service(t, status, "web"); service.Available != 0 || !strings.HasPrefix(why, "image "+image+" is not here: pull "+image+": ") {
		t.Errorf("status is %+v, %q", service, why)
	}
	if err := s.w.Registry.Start(); err != nil {
		t.Fatal(err)
	}
	s.ready(t, s.me, id)
	s.over(t, s.me, id)
}

func (s *stage) closedWhilePulling(t *testing.T) {
	// A layer that no other image has.
	web, err := os.ReadFile(s.w.Web())
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "web")
	if err := os.WriteFile(other, append(web, "and a little more"...), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.w.Registry.Put(outside.Image{Name: "croft/slow:1", Program: other}); err != nil {
		t.Fatal(err)
	}
	letGo := s.w.Registry.Hold("croft/slow")
	defer letGo()
	f := file(t, simple(map[string]string{"web": page("croft/slow:1")}))
	id := s.lease(t, s.me, f, f.Manifest())
	s.accepted(t, s.me, id, f.Manifest())
	s.wait(t, "a part of the image is here", func() bool {
		parts, err := os.ReadDir(filepath.Join(s.dir, "perm/containerd/io.containerd.content.v1.content/ingest"))
		return err == nil && len(parts) > 0
	})
	var told []gatewayclient.Event
	var last error
	end := beside(t, func(ctx context.Context) {
		last = s.me.With(ctx, id, func(g *gatewayclient.Gateway) error {
			for e, err := range g.Events(ctx, id, gatewayclient.StreamConfig{Follow: true}) {
				if err != nil {
					return err
				}
				told = append(told, e)
			}
			return nil
		})
	})
	status, err := s.me.Status(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if service, why := s.service(t, status, "web"); service.Available != 0 || service.Total != 1 || why != "web-1-0: its image is being pulled" {
		t.Errorf("status is %+v, %q", service, why)
	}
	s.over(t, s.me, id)
	s.empty(t) // what was fetched is gone too
	_, err = s.me.Status(t.Context(), id)
	refused(t, err, 404, fmt.Sprintf("lease %s does not run here", id))
	refused(t, s.put(t, s.me, id, f.Manifest().JSON()), 404,
		fmt.Sprintf("no active lease: deployment %s/%d has none with this provider; create the lease first", id.Owner, id.DSeq))
	s.untold(t, s.me, id, fmt.Sprintf("lease %s does not run here", id))
	end()
	if n := len(told); n == 0 || told[n-1].Reason != "Killing" || told[n-1].Type != "Normal" || told[n-1].Note != "the lease is over: everything is stopped and removed" {
		t.Errorf("who follows the events is told %+v, and then %v", told, last)
	}
	if text := fmt.Sprint(told); strings.Contains(text, "could not be pulled") {
		t.Errorf("a pull that was broken off is told as one that failed: %s", text)
	}
}
