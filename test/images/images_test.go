// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"go.uber.org/goleak"

	. "github.com/sluice-dev/sluice/test/images"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLayerDependsOnNameAndSizeAlone(t *testing.T) {
	// A change of this digest means that images differ from those that earlier
	// versions made, and that results are no longer comparable.
	const golden = "sha256:a77cbf0d14cad3fce126a7eb09a9ccc2b0dccd44dcca0fa5d85e9d3f61d49d93"
	if got := digest(t, Layer("golden", 100*KiB)); got != golden {
		t.Errorf("digest = %s, want %s", got, golden)
	}
	same, other, longer := Layer("golden", 100*KiB), Layer("other", 100*KiB), Layer("golden", 101*KiB)
	if digest(t, same) != golden {
		t.Error("two layers of one name and size differ")
	}
	if digest(t, other) == golden || digest(t, longer) == golden {
		t.Error("layers of different names or sizes are equal")
	}
}

func TestLayerIsValidAndIncompressible(t *testing.T) {
	for _, size := range []int64{0, 1, 511, 512, 64 * KiB, 3*MiB + 7} {
		layer := Layer("valid", size)
		if err := validate.Layer(layer); err != nil {
			t.Errorf("size %d: %v", size, err)
		}
		blob, err := layer.Size()
		if err != nil {
			t.Fatal(err)
		}
		if blob < size || blob > size+size/1000+4*KiB {
			t.Errorf("blob of a layer of %d bytes has %d", size, blob)
		}
	}
}

func TestLayerStreams(t *testing.T) {
	layer := Layer("large", 256*MiB)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	digest(t, layer)
	r, err := layer.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if allocated := int64(after.TotalAlloc - before.TotalAlloc); allocated > 16*MiB {
		t.Errorf("reading a layer of 256 MiB allocated %d MiB", allocated/MiB)
	}
}

// An abandoned reader must end its writer; goleak in TestMain tells.
func TestLayerReaderCanBeAbandoned(t *testing.T) {
	r, err := Layer("abandoned", GiB).Compressed()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, r, MiB); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read after close = %v", err)
	}
}

func TestImage(t *testing.T) {
	base := Layer("base", 10*KiB)
	app := must(Image(Options{Layers: append(Layers("app", 2, KiB), base)}))(t)
	if err := validate.Image(app); err != nil {
		t.Error(err)
	}
	other := must(Image(Options{Layers: []v1.Layer{Layer("base", 10*KiB)}, Seed: "other"}))(t)
	appLayers, otherLayers := must(app.Layers())(t), must(other.Layers())(t)
	if digest(t, appLayers[2]) != digest(t, otherLayers[0]) {
		t.Error("images do not share the layer of the same name")
	}
	reseeded := must(Image(Options{Layers: []v1.Layer{base}, Seed: "reseeded"}))(t)
	if digest(t, other) == digest(t, reseeded) {
		t.Error("images of different seeds are equal")
	}
	if _, err := Image(Options{Platform: "a/b/c/d"}); err == nil {
		t.Error("a platform that does not parse was accepted")
	}
}

func TestIndex(t *testing.T) {
	amd := must(Image(Options{Layers: Layers("amd", 2, KiB)}))(t)
	arm := must(Image(Options{Layers: Layers("arm", 2, KiB), Platform: "linux/arm64"}))(t)
	index := must(Index(amd, arm))(t)
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest := must(index.IndexManifest())(t)
	var got []string
	for _, m := range manifest.Manifests {
		got = append(got, m.Platform.String())
	}
	if len(got) != 2 || got[0] != "linux/amd64" || got[1] != "linux/arm64" {
		t.Errorf("platforms = %v", got)
	}
}

func TestPauseIsStaticAndReproducible(t *testing.T) {
	img := must(Pause(t.Context(), Layer("bulk", KiB)))(t)
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	if again := must(Pause(t.Context(), Layer("bulk", KiB)))(t); digest(t, again) != digest(t, img) {
		t.Error("two builds of the pause image differ")
	}
	config := must(img.ConfigFile())(t)
	if e := config.Config.Entrypoint; len(e) != 1 || e[0] != "/pause" {
		t.Errorf("entrypoint = %q", e)
	}

	root := t.TempDir()
	extract(t, img, root)
	program := filepath.Join(root, "pause")
	binary := must(elf.Open(program))(t)
	defer binary.Close()
	for _, p := range binary.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("pause needs a dynamic loader, which the image does not have")
		}
	}
}

// go-containerregistry's own reader of layouts is the witness that the archive is one.
func TestWriteArchive(t *testing.T) {
	shared := Layer("shared", 10*KiB)
	index := must(Index(
		must(Image(Options{Layers: []v1.Layer{shared, Layer("amd", KiB)}}))(t),
		must(Image(Options{Layers: []v1.Layer{shared}, Platform: "linux/arm64"}))(t),
	))(t)
	var buffer bytes.Buffer
	if err := WriteArchive(&buffer, "example.com/team/app:1", index); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	unpack(t, &buffer, dir)
	top := must(layout.ImageIndexFromPath(dir))(t)
	manifest := must(top.IndexManifest())(t)
	if len(manifest.Manifests) != 1 {
		t.Fatalf("index.json lists %d artifacts, want 1", len(manifest.Manifests))
	}
	root := manifest.Manifests[0]
	if name := root.Annotations["io.containerd.image.name"]; name != "example.com/team/app:1" {
		t.Errorf("name = %q", name)
	}
	if root.Digest != must(index.Digest())(t) {
		t.Errorf("digest = %s, want the index's own", root.Digest)
	}
	read := must(top.ImageIndex(root.Digest))(t)
	if err := validate.Index(read); err != nil {
		t.Error(err)
	}
}

func TestSplitTag(t *testing.T) {
	for ref, want := range map[string][2]string{
		"app":                   {"app", "latest"},
		"team/app:1.0":          {"team/app", "1.0"},
		"localhost:5000/app":    {"localhost:5000/app", "latest"}, // a port, not a tag
		"localhost:5000/app:v1": {"localhost:5000/app", "v1"},
	} {
		if repo, tag := SplitTag(ref); [2]string{repo, tag} != want {
			t.Errorf("SplitTag(%q) = %q, %q; want %q", ref, repo, tag, want)
		}
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func digest(t *testing.T, of interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	return must(of.Digest())(t).String()
}

func extract(t *testing.T, img v1.Image, dir string) {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	unpack(t, r, dir)
}

func unpack(t *testing.T, r io.Reader, dir string) {
	t.Helper()
	seen := map[string]bool{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if seen[h.Name] {
			t.Errorf("%s is in the archive twice", h.Name)
		}
		seen[h.Name] = true
		path := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		f := must(os.OpenFile(path, os.O_CREATE|os.O_WRONLY, os.FileMode(h.Mode)))(t)
		if _, err := io.Copy(f, tr); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLayersThatAreLargerThanTheyLook(t *testing.T) {
	for name, layer := range map[string]v1.Layer{"zeros": Zeros("zeros", 3*MiB+7), "files": Empty("empty", 5000)} {
		if err := validate.Layer(layer); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if blob, err := layer.Size(); err != nil || blob > 300*KiB {
			t.Errorf("%s: a blob of %d bytes, %v", name, blob, err)
		}
	}
}
