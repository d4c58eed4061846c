// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

var small = command{name: "sluice-small", description: "A small command", user: "65532:65532"}

// smallTree writes a module with one small command and returns its source.
func smallTree(t *testing.T) source {
	t.Helper()
	dir := t.TempDir()
	for path, content := range map[string]string{
		"go.mod":                    "module example.org/small\n\ngo 1.26.0\n",
		"LICENSE":                   "The licence of the small command.\n",
		"cmd/sluice-small/main.go":  "package main\n\nvar version string\n\nfunc main() { println(version) }\n",
		"cmd/sluice-small/other.go": "package main\n",
	} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return source{dir: dir, version: "v1.2.3", revision: strings.Repeat("a", 40), date: time.Unix(1_700_000_000, 0).UTC()}
}

func mustBuild(t *testing.T, c command, s source, platforms ...string) *builtImage {
	t.Helper()
	built, err := c.build(t.Context(), s, platforms)
	if err != nil {
		t.Fatal(err)
	}
	return built
}

func digestOf(t *testing.T, built *builtImage) string {
	t.Helper()
	digest, err := built.index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

func TestSameSourceGivesSameDigest(t *testing.T) {
	first, second := smallTree(t), smallTree(t)
	a := mustBuild(t, small, first, "linux/arm64", "linux/amd64")
	t.Setenv("GOFLAGS", "-ldflags=-X=main.version=other")
	t.Setenv("GOAMD64", "v3")
	b := mustBuild(t, small, second, "linux/amd64", "linux/arm64")
	if digestOf(t, a) != digestOf(t, b) {
		t.Errorf("two builds in different folders and environments differ: %s, %s", digestOf(t, a), digestOf(t, b))
	}

	for what, change := range map[string]func(*source){
		"version":  func(s *source) { s.version = "v1.2.4" },
		"revision": func(s *source) { s.revision = strings.Repeat("b", 40) },
		"date":     func(s *source) { s.date = s.date.Add(time.Second) },
	} {
		other := first
		change(&other)
		if digestOf(t, mustBuild(t, small, other, "linux/amd64", "linux/arm64")) == digestOf(t, a) {
			t.Errorf("another %s gives the same digest", what)
		}
	}
}

// The commands themselves, from the work tree and from a copy elsewhere.
func TestCommandsAreReproducible(t *testing.T) {
	here, err := describe(t.Context(), "v0.0.0-test")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := here
	elsewhere.dir = copyTree(t, here.dir)
	for _, c := range commands {
		a := digestOf(t, mustBuild(t, c, here, "linux/amd64"))
		b := digestOf(t, mustBuild(t, c, elsewhere, "linux/amd64"))
		if a != b {
			t.Errorf("%s: two builds of one commit differ: %s, %s", c.name, a, b)
		}
	}
}

// copyTree copies what git knows, or would take up, of the tree.
func copyTree(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	list := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = dir
	names, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(names), "\x00"), "\x00") {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted and not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(to, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestImageContent(t *testing.T) {
	s := smallTree(t)
	built := mustBuild(t, small, s, "linux/amd64", "linux/arm64")
	manifest, err := built.index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 2 {
		t.Fatalf("got %d manifests, want one per platform", len(manifest.Manifests))
	}
	for _, descriptor := range manifest.Manifests {
		t.Run(descriptor.Platform.String(), func(t *testing.T) {
			img, err := built.index.Image(descriptor.Digest)
			if err != nil {
				t.Fatal(err)
			}
			config, err := img.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if config.Config.User != "65532:65532" {
				t.Errorf("runs as %q, want a user that is not root", config.Config.User)
			}
			if got := config.Config.Entrypoint; len(got) != 1 || got[0] != "/sluice-small" {
				t.Errorf("entrypoint is %q", got)
			}
			if config.Architecture != descriptor.Platform.Architecture {
				t.Errorf("config says %s", config.Architecture)
			}
			for key, want := range map[string]string{
				"org.opencontainers.image.licenses": "Apache-2.0",
				"org.opencontainers.image.version":  s.version,
				"org.opencontainers.image.revision": s.revision,
				"org.opencontainers.image.created":  "2023-11-14T22:13:20Z",
			} {
				if got := config.Config.Labels[key]; got != want {
					t.Errorf("label %s is %q, want %q", key, got, want)
				}
			}
			checkFiles(t, img, s)
		})
	}
}

// checkFiles looks at the file system of the image: who owns it, when it is
// from, and what the papers say.
func checkFiles(t *testing.T, img v1.Image, s source) {
	t.Helper()
	content := map[string][]byte{}
	files := mutate.Extract(img)
	defer files.Close()
	for archive := tar.NewReader(files); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.Uid != 0 || header.Gid != 0 || !header.ModTime.Equal(s.date) {
			t.Errorf("%s belongs to %d:%d and is from %s, want root's and the commit's date", header.Name, header.Uid, header.Gid, header.ModTime)
		}
		content[header.Name], err = io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.HasPrefix(content["licenses/LICENSE"], []byte("The licence")) {
		t.Error("the licence is missing")
	}
	checkStatic(t, content["sluice-small"])
	if bytes.Contains(content["sluice-small"], []byte(s.dir)) {
		t.Error("the binary tells where it was built")
	}
	var materials spdxDocument
	if err := json.Unmarshal(content["usr/share/sbom/sluice-small.spdx.json"], &materials); err != nil {
		t.Fatalf("bill of materials: %v", err)
	}
	var names []string
	for _, p := range materials.Packages {
		names = append(names, p.Name)
	}
	if got := strings.Join(names, " "); got != "example.org/small stdlib" {
		t.Errorf("bill of materials lists %q", got)
	}
}

// checkStatic fails for a program that asks for a loader, of which there is none.
func checkStatic(t *testing.T, program []byte) {
	t.Helper()
	file, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range file.Progs {
		if part.Type == elf.PT_INTERP || part.Type == elf.PT_DYNAMIC {
			t.Errorf("the program is not static: it has %s", part.Type)
		}
	}
}

// The Dockerfile copies every folder that the commands are built from.
func TestDockerfileCopiesWhatIsNeeded(t *testing.T) {
	const root = "../.."
	dockerfile, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if .Module}}{{if .Module.Main}}{{.ImportPath}}{{end}}{{end}}", "./cmd/...")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	if len(packages) < 10 {
		t.Fatalf("found %q only", packages)
	}
	for _, path := range packages {
		folder, _, _ := strings.Cut(strings.TrimPrefix(path, "github.com/sluice-dev/sluice/"), "/")
		if !strings.Contains(string(dockerfile), "COPY "+folder+" "+folder+"\n") {
			t.Errorf("the Dockerfile does not copy %s, which %s is in", folder, path)
		}
	}
	module, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\S+)$`).FindSubmatch(module)[1]
	if !strings.Contains(string(dockerfile), "golang:"+string(version)+" ") {
		t.Errorf("the Dockerfile does not build with Go %s", version)
	}
}

func TestLicences(t *testing.T) {
	here, err := describe(t.Context(), "v0.0.0-test")
	if err != nil {
		t.Fatal(err)
	}
	files, err := licences(t.Context(), here.dir, &debug.BuildInfo{Deps: []*debug.Module{{Path: "github.com/spf13/pflag"}}})
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, f := range files {
		paths = append(paths, f.path)
	}
	if got := strings.Join(paths, " "); got != "licenses/LICENSE licenses/github.com/spf13/pflag/LICENSE" {
		t.Errorf("got %q", got)
	}

	for name, is := range map[string]bool{
		"LICENSE": true, "LICENSE.md": true, "LICENCE": true, "LICENSE-APACHE": true, "NOTICE": true, "COPYING": true, "PATENTS": true,
		"license_test.go": false, "README.md": false, "licenses.go": false,
	} {
		if licenceName.MatchString(name) != is {
			t.Errorf("licenceName.MatchString(%q) = %t", name, !is)
		}
	}
}

func TestLayoutAndTar(t *testing.T) {
	s := smallTree(t)
	built := mustBuild(t, small, s, "linux/amd64")
	var sums [2][]byte
	for i := range sums {
		dir := filepath.Join(t.TempDir(), "image")
		if err := built.writeLayout(dir); err != nil {
			t.Fatal(err)
		}
		if err := writeTar(dir, dir+".tar", s.date); err != nil {
			t.Fatal(err)
		}
		written, err := layout.FromPath(dir)
		if err != nil {
			t.Fatal(err)
		}
		index, err := written.ImageIndex()
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := index.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		if got := manifest.Manifests[0].Annotations["io.containerd.image.name"]; got != "ghcr.io/sluice-dev/sluice-small:v1.2.3" {
			t.Errorf("containerd would import it as %q", got)
		}
		if sums[i], err = os.ReadFile(dir + ".tar"); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(sums[0], sums[1]) {
		t.Error("two archives of one image differ")
	}
}

func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New())
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	built := mustBuild(t, small, smallTree(t), "linux/amd64")
	o := options{out: t.TempDir(), push: host + "/team"}
	if err := deliver(t.Context(), o, small, built); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(host + "/team/sluice-small:v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	descriptor, err := remote.Get(tag)
	if err != nil {
		t.Fatal(err)
	}
	if descriptor.Digest.String() != digestOf(t, built) {
		t.Errorf("the registry has %s, built was %s", descriptor.Digest, digestOf(t, built))
	}
}

func TestDescribe(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1600000000")
	s, err := describe(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	if s.date.Unix() != 1_600_000_000 {
		t.Errorf("date is %s, want SOURCE_DATE_EPOCH", s.date)
	}
	if s.version == "" || len(s.revision) != 40 {
		t.Errorf("version %q, revision %q", s.version, s.revision)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := describe(context.Background(), ""); err == nil {
		t.Error("a malformed date was accepted")
	}
}

func TestReport(t *testing.T) {
	var out strings.Builder
	built := mustBuild(t, small, smallTree(t), "linux/amd64")
	if err := built.report(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ghcr.io/sluice-dev/sluice-small:v1.2.3@sha256:", "linux/amd64", "binary", "image", "start-up"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
}
