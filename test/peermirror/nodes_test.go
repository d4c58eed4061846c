// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package peermirror_test

import (
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	containerdimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/peermirror"
	"github.com/sluice-dev/sluice/test/upstream"
)

// What runs on the nodes of a test cluster, on real containerd: the stand-in,
// or the real Spegel in its place when SPEGEL names it.
var onNodes = environment{
	start: func(t *testing.T, n int) []node {
		var nodes []node
		for _, n := range startNodes(t, n) {
			nodes = append(nodes, n)
		}
		return nodes
	},
	patience: 6 * time.Second,
}

func TestConformanceOnNodes(t *testing.T) { conformance(t, onNodes) }

// What decides whether peers find a blob is its label, and when that comes.
func TestAdvertised(t *testing.T) {
	nodes := startNodes(t, 2)
	holder, other := nodes[0], nodes[1]
	onNodes.eventually(t, "GET", other, "/readyz", 200)
	// late commits content whose label comes so much later.
	late := func(content string, later time.Duration) digest.Digest {
		d := holder.write(t, content, nil)
		<-time.After(later)
		holder.label(t, d)
		return d
	}
	missed := func(d digest.Digest) {
		t.Helper()
		if got := ask(t, "GET", other, blob(d)); got.status != 404 {
			t.Errorf("a blob that was labelled too late is served: %d", got.status)
		}
		if got := ask(t, "GET", holder, blob(d)); got.status != 200 {
			t.Errorf("its own node gets %d", got.status)
		}
	}

	inTime := late("labelled in time", 300*time.Millisecond)
	onNodes.eventually(t, "GET", other, blob(inTime), 200)

	announced := late("labelled late, and announced again", 2*time.Second)
	missed(announced)
	event := &eventtypes.ContentCreate{Digest: announced.String()}
	if err := holder.daemon.EventService().Publish(t.Context(), "/content/create", event); err != nil {
		t.Fatal(err)
	}
	onNodes.eventually(t, "GET", other, blob(announced), 200)

	found := late("labelled late, and found at the next start", 2*time.Second)
	missed(found)
	mirror := holder.Mirror.Process()
	holder.Containerd.Kill()
	select {
	case <-mirror.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the mirror outlives its containerd")
	}
	if err := holder.Containerd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	onNodes.eventually(t, "GET", other, blob(found), 200)
}

// The test images, the upstream, the mirrors and real containerd together.
func TestNodesPullFromEachOther(t *testing.T) {
	// containerd asks the upstream after a single miss.
	c := startCluster(t, 2, "--behave=well")
	registry, err := upstream.New(upstream.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.Start(c.GatewayIP + ":5000"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := registry.Close(); err != nil {
			t.Error(err)
		}
	})
	app, err := images.Pause(t.Context(), images.Layers("app", 3, images.MiB)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.Push("team/app:1.0", app); err != nil {
		t.Fatal(err)
	}
	pull := func(n *cluster.Node) {
		t.Helper()
		if err := peermirror.WriteConfiguration(n.CertsDir, []string{registry.URL()}, []string{n.MirrorURL()}, true); err != nil {
			t.Fatal(err)
		}
		_, err := n.Ctr(t.Context(), "images", "pull", "--hosts-dir=/etc/containerd/certs.d", registry.Host()+"/team/app:1.0")
		if err != nil {
			t.Fatal(err)
		}
	}
	// served waits until a node's mirror finds the image: Spegel takes its time to advertise it.
	served := func(n *cluster.Node) {
		t.Helper()
		d, err := app.Digest()
		if err != nil {
			t.Fatal(err)
		}
		paths := []string{"manifests/1.0", "manifests/" + d.String()}
		manifest, err := app.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range append(manifest.Layers, manifest.Config) {
			paths = append(paths, "blobs/"+part.Digest.String())
		}
		for _, path := range paths {
			onNodes.eventually(t, "GET", clusterNode{Node: n}, "/v2/team/app/"+path+"?ns="+registry.Host(), 200)
		}
	}
	first, second := c.Nodes()[0], c.Nodes()[1]

	pull(first)
	tallies := registry.Requests().Tallies()
	if len(tallies) != 6 { // manifest, config, three layers, the program
		t.Errorf("the first node asked for %d pieces of content, want 6", len(tallies))
	}
	for _, tally := range tallies {
		if tally.Complete != 1 || tally.Partial != 0 || !slices.Equal(tally.Clients, []string{first.IP}) {
			t.Errorf("%s was sent %d times, %d in part, to %v", tally.Digest, tally.Complete, tally.Partial, tally.Clients)
		}
	}

	registry.Reset()
	served(second)
	pull(second)
	if n := registry.Connections()[second.IP]; n != 0 {
		t.Errorf("the second node connected to the upstream %d times", n)
	}

	// The first node's mirror is there again after its containerd, and is found by
	// a node that comes later, past one that does not answer.
	first.Containerd.Kill()
	if err := first.Containerd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	second.PowerOff()
	third, err := c.AddNode(t.Context(), cluster.NodeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.CutOff(upstream.Refuse); err != nil {
		t.Fatal(err)
	}
	served(third)
	pull(third)
	response, err := browser.Get("http://" + third.IP + ":9090/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	metrics, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(metrics), `spegel_mirror_requests_total{cache="hit"`) {
		t.Errorf("the third node's mirror counted no hit:\n%s", metrics)
	}
}

func startCluster(t *testing.T, nodes int, mirrorFlags ...string) *cluster.Cluster {
	t.Helper()
	mirror, err := cluster.DefaultMirror(t.Context(), t.Logf, mirrorFlags...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := cluster.Start(t.Context(), cluster.Options{
		Nodes:          cluster.Nodes(nodes),
		ContainerdOnly: true,
		Mirror:         mirror,
		Logf:           t.Logf,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func startNodes(t *testing.T, n int) (nodes []clusterNode) {
	t.Helper()
	for _, n := range startCluster(t, n).Nodes() {
		daemon, err := client.New(n.ContainerdSocket, client.WithDefaultNamespace("k8s.io"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { daemon.Close() })
		nodes = append(nodes, clusterNode{n, daemon})
	}
	return nodes
}

type clusterNode struct {
	*cluster.Node
	daemon *client.Client
}

func (n clusterNode) url() string { return n.MirrorURL() }

var sourceLabels = map[string]string{labels.LabelDistributionSource + "." + registryName: repositoryName}

func (n clusterNode) commit(t *testing.T, blob string) digest.Digest {
	t.Helper()
	return n.write(t, blob, sourceLabels)
}

// write puts content into the store that has these labels from the beginning.
func (n clusterNode) write(t *testing.T, blob string, marks map[string]string) digest.Digest {
	t.Helper()
	d := digest.FromString(blob)
	kept := map[string]string{"containerd.io/gc.root": time.Now().Format(time.RFC3339)} // or it would be garbage at once
	maps.Copy(kept, marks)
	err := content.WriteBlob(t.Context(), n.daemon.ContentStore(), d.String(),
		strings.NewReader(blob), ocispec.Descriptor{Digest: d, Size: int64(len(blob))}, content.WithLabels(kept))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// label says later where content is from.
func (n clusterNode) label(t *testing.T, d digest.Digest) {
	t.Helper()
	for label := range sourceLabels {
		_, err := n.daemon.ContentStore().Update(t.Context(), content.Info{Digest: d, Labels: sourceLabels}, "labels."+label)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func (n clusterNode) tag(t *testing.T, name string, target digest.Digest) {
	t.Helper()
	info, err := n.daemon.ContentStore().Info(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.daemon.ImageService().Create(t.Context(), containerdimages.Image{
		Name:   name,
		Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: target, Size: info.Size},
	})
	if err != nil {
		t.Fatal(err)
	}
}
