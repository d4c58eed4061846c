// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
)

// everyKey is a hosts.toml with all that containerd reads in it, in more than one spelling.
const everyKey = `
server = "https://registry.test"
ca = "server.crt"
[host."http://spegel:30020"]
capabilities = ["pull", "resolve"]
dial_timeout = "200ms"
[host."https://cache.test/v2/proxy"]
override_path = true
skip_verify = true
client = [["client.cert", "/keys/client.key"]]
[host."https://cache.test/v2/proxy".header]
x-token = ["a", "b"]
[host."plain.test"]
ca = ["/ca/one.crt", "two.crt"]
`

func TestAFileIsWrittenAsItWasRead(t *testing.T) {
	dir := t.TempDir()
	f, err := parseFile(dir, []byte(everyKey))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"http://spegel:30020", "https://cache.test/v2/proxy", "plain.test"}; !slices.Equal(f.names, want) {
		t.Errorf("hosts %q, want %q", f.names, want)
	}
	text, err := f.marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := parseFile("/elsewhere", text)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(again.names, f.names) {
		t.Errorf("written in the order %q", again.names)
	}
	cache, plain := again.hosts["https://cache.test/v2/proxy"], again.hosts["plain.test"]
	client := cache["client"].([]any)[0].([]any)
	ca := plain["ca"].([]any)
	for _, path := range []struct{ got, want any }{
		{again.server["ca"], filepath.Join(dir, "server.crt")},
		{client[0], filepath.Join(dir, "client.cert")},
		{client[1], "/keys/client.key"},
		{ca[0], "/ca/one.crt"},
		{ca[1], filepath.Join(dir, "two.crt")},
	} {
		if path.got != path.want {
			t.Errorf("path %v, want %v", path.got, path.want)
		}
	}
	if header := cache["header"].(map[string]any)["x-token"].([]any); len(header) != 2 || cache["override_path"] != true || cache["skip_verify"] != true {
		t.Errorf("the cache is %v", cache)
	}
}

func TestKeysInAnyCase(t *testing.T) {
	f, err := parseFile("/dir", []byte("Server = 'https://registry.test'\nCA = 'a.crt'\n[host.'http://b:1']\nCapabilities = ['Pull']\n"))
	if err != nil {
		t.Fatal(err)
	}
	if f.server["server"] != "https://registry.test" || f.server["ca"] != "/dir/a.crt" || f.mayResolve("http://b:1") {
		t.Errorf("read %v", f)
	}
}

func TestAFileThatContainerdDoesNotAcceptIsNone(t *testing.T) {
	root := t.TempDir()
	writeHosts(t, root, "registry.test", "server = 'https://elsewhere.test'\n[host.'http://a:1']\ndial_timeout = '200'\n")
	hosts, err := Config{Roots: []string{root}, Scratch: t.TempDir()}.Read(t.Context(), "registry.test", nil)
	if err != nil || len(hosts.Mirrors) > 0 || hosts.MirrorMayResolve() || !slices.Equal(urls(hosts.Upstreams), []string{"https://registry.test"}) {
		t.Errorf("%v, %+v", err, hosts)
	}
	if dir, _, err := hosts.WriteUpstreams(); err != nil || dir != root {
		t.Errorf("the daemon reads %q (%v), want its own %q", dir, err, root)
	}
}

// containerd reads what is written, too.
func TestHostsThatAreLeftOut(t *testing.T) {
	const toml = "server = 'https://registry.test'\n[host.'http://a:1']\n[host.'http://registry.test']\ndial_timeout = '3s'\n[host.'http://b:1']\n"
	root := t.TempDir()
	writeHosts(t, root, "registry.test", toml)
	hosts, err := Config{Roots: []string{root}, Scratch: filepath.Join(t.TempDir(), "made", "when", "needed")}.Read(t.Context(), "registry.test", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		reason string
		write  func() (string, func(), error)
		want   []string
	}{
		{"one mirror", func() (string, func(), error) { return hosts.WriteWithout(hosts.Mirrors[:1]) }, []string{"http://registry.test", "http://b:1", "https://registry.test"}},
		{"all mirrors", hosts.WriteUpstreams, []string{"http://registry.test", "https://registry.test"}},
	} {
		dir, remove, err := tt.write()
		if err != nil {
			t.Fatal(err)
		}
		got, err := config.ConfigureHosts(t.Context(), config.HostOptions{HostDir: config.HostDirFromRoot(dir)})("registry.test")
		if err != nil || !slices.Equal(urls(got), tt.want) {
			t.Errorf("%s: left %q, %v, want %q", tt.reason, urls(got), err, tt.want)
		}
		remove()
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: %s is still there: %v", tt.reason, dir, err)
		}
	}
}

func TestAHostThatCannotBeUsedSpoilsNoOther(t *testing.T) {
	for _, tt := range []struct {
		reason, dir, toml  string
		mirrors, upstreams []string
		mayResolve         bool
		upstreamUnusable   bool
	}{
		{
			reason: "of a mirror", dir: "registry.test",
			toml:      "[host.'https://a:1']\nca = '/not/here.crt'\n[host.'http://b:1']\ncapabilities = ['pull']\n",
			mirrors:   []string{"http://b:1"},
			upstreams: []string{"https://registry.test"}, mayResolve: true, // by the daemon, which may see the file
		}, {
			reason: "of the registry among the hosts", dir: "_default",
			toml:    "server = 'https://elsewhere.test'\n[host.'http://b:1']\ncapabilities = ['pull']\n[host.'https://registry.test']\nclient = 'missing.pem'\n",
			mirrors: []string{"http://b:1"}, upstreams: []string{"https://elsewhere.test"}, upstreamUnusable: true,
		}, {
			reason: "k3s rewrites the names for a mirror", dir: "registry.test",
			toml:    "[host.'http://a:1']\n[host.'http://a:1'.rewrite]\n'^team/(.*)' = 'proxy/$1'\n[host.'http://b:1']\ncapabilities = ['pull']\n",
			mirrors: []string{"http://b:1"}, upstreams: []string{"https://registry.test"}, mayResolve: true,
		}, {
			reason: "k3s rewrites the names for the registry", dir: "registry.test",
			toml:      "server = 'https://registry.test'\n[host.'https://registry.test'.rewrite]\n'^team/(.*)' = 'proxy/$1'\n",
			upstreams: []string{"https://registry.test"}, upstreamUnusable: true,
		}, {
			reason: "of the server", dir: "registry.test",
			toml:    "server = 'https://registry.test'\nca = 'missing.crt'\n[host.'http://b:1']\n",
			mirrors: []string{"http://b:1"}, mayResolve: true, upstreamUnusable: true,
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			root, scratch := t.TempDir(), t.TempDir()
			writeHosts(t, root, tt.dir, tt.toml)
			hosts, err := Config{Roots: []string{root}, Scratch: scratch}.Read(t.Context(), "registry.test", nil)
			if err != nil || hosts.Unusable == nil {
				t.Fatalf("%v, unusable %v", err, hosts.Unusable)
			}
			if hosts.UpstreamUnusable != tt.upstreamUnusable {
				t.Errorf("the registry is unusable: %v", hosts.UpstreamUnusable)
			}
			if !slices.Equal(urls(hosts.Mirrors), tt.mirrors) || !slices.Equal(urls(hosts.Upstreams), tt.upstreams) || hosts.MirrorMayResolve() != tt.mayResolve {
				t.Errorf("mirrors %q, upstreams %q, a mirror may resolve %v", urls(hosts.Mirrors), urls(hosts.Upstreams), hosts.MirrorMayResolve())
			}
			if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

func TestCertificatesInDockersLayoutThatCannotBeRead(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "registry.test"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/not/here", filepath.Join(root, "registry.test", "ca.crt")); err != nil {
		t.Fatal(err)
	}
	hosts, err := Config{Roots: []string{root}, Scratch: t.TempDir()}.Read(t.Context(), "registry.test", nil)
	if err != nil || hosts.Unusable == nil || len(hosts.Mirrors)+len(hosts.Upstreams) > 0 {
		t.Errorf("%v, %+v", err, hosts)
	}
	if dir, _, err := hosts.WriteUpstreams(); err != nil || dir != root {
		t.Errorf("the daemon reads %q (%v), want its own %q", dir, err, root)
	}
}

func writeHosts(t *testing.T, root, dir, toml string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, dir, "hosts.toml"), []byte(toml), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestTheFirstOfTheRootsThatHasSomethingCounts(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	writeHosts(t, first, "registry.test", "[host.'http://a:1']\n")
	writeHosts(t, second, "registry.test", "[host.'http://b:1']\n")
	writeHosts(t, second, "_default", "[host.'http://c:1']\n")
	roots := Config{Roots: []string{"/not/there", first, second}, Scratch: t.TempDir()}
	for registry, want := range map[string]struct{ mirror, root string }{
		"registry.test": {"http://a:1", first},
		"another.test":  {"http://c:1", second},
	} {
		hosts, err := roots.Read(t.Context(), registry, nil)
		if err != nil || !slices.Equal(urls(hosts.Mirrors), []string{want.mirror}) || hosts.Root() != want.root {
			t.Errorf("%s: %v, mirrors %q of %q, want %q of %q", registry, err, urls(hosts.Mirrors), hosts.Root(), want.mirror, want.root)
		}
	}
}
