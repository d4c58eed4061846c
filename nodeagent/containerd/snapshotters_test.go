// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
)

// snapshotters are those that a node does not have from the start, as overlayfs and native. prepare
// returns the configuration of CRI with which the kubelet pulls into it.
var snapshotters = []struct {
	name    string
	prepare func(context.Context, *cluster.Node) string
}{{"btrfs", useBtrfs}, {"erofs", useErofs}}

var _ = Describe("With the snapshotter", Serial, func() {
	for _, s := range snapshotters {
		for _, policy := range []v1alpha1.RegistryPolicy{seed, peer} {
			It(fmt.Sprintf("%s, a pull with the policy %s leaves what the kubelet's own leaves", s.name, policy), func(ctx context.Context) {
				n := machines.Nodes()[1]
				Expect(reconfigure(ctx, n, `snapshotter = "overlayfs"`, s.prepare(ctx, n))).To(Succeed())
				daemon, err := client.New(n.ContainerdSocket, client.WithDefaultNamespace(namespace))
				Expect(err).NotTo(HaveOccurred())
				DeferCleanup(daemon.Close)
				p := newPair(s.name + "-" + string(policy))
				Expect(n.WriteHostsTOML(p.registry.Host(), fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = ['pull']\n", p.registry.URL(), p.mirror.URL()))).To(Succeed())
				req := helperRequest{Image: p.ref.String(), Digest: p.digest, Policy: policy}
				want := map[v1alpha1.RegistryPolicy]v1alpha1.ImageSource{seed: v1alpha1.SourceUpstream, peer: v1alpha1.SourceMirror}[policy]
				Expect(onNode(ctx, n, req)).To(Equal(string(want)))
				Expect(onNode(ctx, n, req)).To(Equal(string(v1alpha1.SourceLocal)), "nothing is missing")

				Expect(p.snapshots(ctx, daemon.SnapshotService("overlayfs"))).To(BeEmpty(), "nobody would use them there")
				Expect(n.Images(ctx, p.ref.String())).To(HaveKeyWithValue(p.ref.String(), HaveField("Content", HavePrefix("complete"))))
				Expect(filesOn(ctx, n, s.name, p)).To(Equal(filesIn(p.image.(v1.Image))), "what a container would see")

				ours, snapshots := p.labels(ctx, daemon), p.snapshots(ctx, daemon.SnapshotService(s.name))
				Expect(snapshots).To(HaveLen(3))
				p.push(p.ref.String(), 3, images.MiB)
				_, err = cri.NewImageServiceClient(daemon.Conn().(grpc.ClientConnInterface)).PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: p.ref.String()}})
				Expect(err).NotTo(HaveOccurred())
				Expect(ours).To(ContainElements(p.labels(ctx, daemon)), "what keeps it all from being deleted")
				Expect(snapshots).To(Equal(p.snapshots(ctx, daemon.SnapshotService(s.name))))
			}, SpecTimeout(specTimeout))
		}
	}
})

// useBtrfs gives a node a file system of that type. The transfer service is not configured for btrfs, so
// that CRI has to pull in its other way.
func useBtrfs(ctx context.Context, n *cluster.Node) string {
	GinkgoHelper()
	const dir = "/var/lib/containerd/io.containerd.snapshotter.v1.btrfs"
	_, err := n.Run(ctx, "sh", "-ec", "truncate -s 256M /run/btrfs; mkfs.btrfs -q /run/btrfs; mkdir -p "+dir+"; mount -o loop /run/btrfs "+dir)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func(ctx context.Context) {
		_, err := n.Run(ctx, "sh", "-ec", "umount "+dir+"; rm /run/btrfs")
		Expect(err).NotTo(HaveOccurred())
	}, NodeTimeout(specTimeout))
	return "snapshotter = 'btrfs'\n  use_local_image_pull = true"
}

// useErofs lets a node's containerd find what makes file systems of that type. Then the transfer service,
// which seeds use, is configured for erofs, with a differ of its own; the agent of a peer gets the walking
// one, as every client does.
func useErofs(ctx context.Context, n *cluster.Node) string {
	GinkgoHelper()
	program, err := cluster.MkfsErofs(ctx, GinkgoLogr.Info)
	Expect(err).NotTo(HaveOccurred())
	n.ContainerdEnvironment = []string{"PATH=" + filepath.Dir(program) + ":" + os.Getenv("PATH")}
	DeferCleanup(func() { n.ContainerdEnvironment = nil })
	return "snapshotter = 'erofs'"
}

// filesOn are the files that a container of the image would see, by what they contain.
func filesOn(ctx context.Context, n *cluster.Node, snapshotter string, p *pair) map[string]string {
	GinkgoHelper()
	const target = "/run/rootfs"
	_, err := n.Run(ctx, "mkdir", "-p", target)
	Expect(err).NotTo(HaveOccurred())
	_, err = n.Ctr(ctx, "images", "mount", "--snapshotter", snapshotter, p.ref.String(), target)
	Expect(err).NotTo(HaveOccurred())
	defer func() {
		_, err := n.Ctr(ctx, "images", "unmount", "--snapshotter", snapshotter, "--rm", target)
		Expect(err).NotTo(HaveOccurred())
	}()
	output, err := n.Run(ctx, "sh", "-ec", "cd "+target+"; find . -type f -exec sha256sum {} +")
	Expect(err).NotTo(HaveOccurred())
	files := map[string]string{}
	for line := range strings.Lines(output) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ./")
		files[name] = sum
	}
	return files
}

// filesIn are the files in the layers of an image.
func filesIn(image v1.Image) map[string]string {
	GinkgoHelper()
	layers, err := image.Layers()
	Expect(err).NotTo(HaveOccurred())
	files := map[string]string{}
	for _, layer := range layers {
		archive := tar.NewReader(bytes.NewReader(tarOf(layer)))
		for {
			header, err := archive.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			Expect(err).NotTo(HaveOccurred())
			if header.Typeflag == tar.TypeReg {
				content, err := io.ReadAll(archive)
				Expect(err).NotTo(HaveOccurred())
				files[header.Name] = fmt.Sprintf("%x", sha256.Sum256(content))
			}
		}
	}
	return files
}

// roles are what digests are in the image.
func (p *pair) roles() *strings.Replacer {
	GinkgoHelper()
	config, err := p.image.(v1.Image).ConfigFile()
	Expect(err).NotTo(HaveOccurred())
	name, err := p.image.(v1.Image).ConfigName()
	Expect(err).NotTo(HaveOccurred())
	pairs := []string{p.digest.String(), "the manifest", name.String(), "the config"}
	var diffIDs []digest.Digest
	for i, layer := range p.layers() {
		diffIDs = append(diffIDs, digest.Digest(config.RootFS.DiffIDs[i].String()))
		pairs = append(pairs, layer, fmt.Sprintf("layer %d", i), identity.ChainID(diffIDs).String(), fmt.Sprintf("chain %d", i))
	}
	for i, id := range diffIDs {
		pairs = append(pairs, id.String(), fmt.Sprintf("diff %d", i))
	}
	return strings.NewReplacer(pairs...)
}

// labels are those of the image's record and content, with what the digests in them are.
func (p *pair) labels(ctx context.Context, daemon *client.Client) (labels []string) {
	GinkgoHelper()
	roles := p.roles()
	add := func(of string, found map[string]string) {
		for _, key := range slices.Sorted(maps.Keys(found)) {
			labels = append(labels, roles.Replace(fmt.Sprintf("%s: %s=%s", of, key, found[key])))
		}
	}
	record, err := daemon.ImageService().Get(ctx, p.ref.String())
	Expect(err).NotTo(HaveOccurred())
	add("record", record.Labels)
	for d := range p.sizes() {
		info, err := daemon.ContentStore().Info(ctx, digest.Digest(d))
		Expect(err).NotTo(HaveOccurred())
		add(d, info.Labels)
	}
	slices.Sort(labels)
	return labels
}

// snapshots are those of the image's layers, with their parents and kinds.
func (p *pair) snapshots(ctx context.Context, service snapshots.Snapshotter) (found []string) {
	GinkgoHelper()
	roles := p.roles()
	Expect(service.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if text := roles.Replace(fmt.Sprintf("%s: %s on %s", info.Name, info.Kind, info.Parent)); strings.HasPrefix(text, "chain ") || strings.HasPrefix(text, "diff ") {
			found = append(found, text)
		}
		return nil
	})).To(Succeed())
	slices.Sort(found)
	return found
}
