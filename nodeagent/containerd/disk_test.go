// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

const (
	containerdRoot = cluster.ContainerdRoot
	snapshotRoot   = containerdRoot + "/io.containerd.snapshotter.v1.overlayfs"
	gib            = 1024 * images.MiB
	// diskTimeout is for specs that make large layers and write them.
	diskTimeout = 5 * time.Minute
	// refused is what a pull says that does not fit.
	refused = "insufficient disk space"
)

// nodeWithDisks adds a node for the specs of a container.
func nodeWithDisks(ctx context.Context, disks ...cluster.Disk) *cluster.Node {
	GinkgoHelper()
	n, err := machines.AddNode(ctx, cluster.NodeOptions{Disks: disks})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func(ctx context.Context) { Expect(machines.RemoveNode(ctx, n)).To(Succeed()) }, NodeTimeout(specTimeout))
	return n
}

// pairOn is a pair that is served to another node.
func pairOn(n *cluster.Node, name string, layers ...v1.Layer) *pair {
	GinkgoHelper()
	p := &pair{registry: serve(), mirror: serve(), repository: "team/app"}
	p.pushLayers(name, layers)
	Expect(n.WriteHostsTOML(p.registry.Host(), fmt.Sprintf("server = %q\n[host.%q]\n  capabilities = [\"pull\"]\n", p.registry.URL(), p.mirror.URL()))).To(Succeed())
	return p
}

// on is the request for a pull on a node.
func (p *pair) on(policy v1alpha1.RegistryPolicy) helperRequest {
	return helperRequest{Image: p.ref.String(), Digest: p.digest, Policy: policy}
}

// fetched is how often a layer was sent, to the end or not.
func (p *pair) fetched(layer int) (times int) {
	for _, server := range []*upstream.Server{p.registry, p.mirror} {
		for _, t := range server.Requests().Where(upstream.Blobs).Tallies() {
			if t.Digest == p.layers()[layer] {
				times += t.Complete + t.Partial
			}
		}
	}
	return times
}

// remains lists what a node has of an image.
func remains(ctx context.Context, n *cluster.Node, p *pair) (found []string) {
	GinkgoHelper()
	blobs, err := n.Ctr(ctx, "content", "list", "--quiet")
	Expect(err).NotTo(HaveOccurred())
	for _, layer := range append(p.layers(), p.digest.String()) {
		if strings.Contains(blobs, layer) {
			found = append(found, layer)
		}
	}
	for _, kind := range [][]string{{"content", "active"}, {"leases", "list", "--quiet"}, {"snapshots", "list"}} {
		out, err := n.Ctr(ctx, kind...)
		Expect(err).NotTo(HaveOccurred())
		for line := range strings.Lines(out) {
			if strings.Contains(line, "layer-sha256") || strings.HasPrefix(line, "sluice-") || strings.HasPrefix(line, "extract") || strings.HasPrefix(line, p.topSnapshot()) {
				found = append(found, strings.TrimSpace(line))
			}
		}
	}
	return found
}

var _ = Describe("On a node with little room", Ordered, ContinueOnFailure, func() {
	// Room for about 300 MiB, of which the half is margin.
	const (
		size    = 16 * gib
		minFree = 0.98
		inodes  = 2_000_000
	)
	var n *cluster.Node
	BeforeAll(func(ctx context.Context) {
		n = nodeWithDisks(ctx, cluster.Disk{Path: containerdRoot, Bytes: size, Inodes: inodes})
	}, NodeTimeout(specTimeout))

	DescribeTable("a layer that is larger than it looks is stopped in time, and all of it goes",
		func(ctx context.Context, policy v1alpha1.RegistryPolicy) {
			p := pairOn(n, "zeros-"+string(policy), images.Layer("small", images.MiB), images.Zeros("zeros-"+string(policy), 400*images.MiB))
			step := diskStep{Pulls: []helperRequest{p.on(policy)}}
			reports := onDisk(ctx, n, diskRequest{MinFreeDisk: minFree, Disk: containerdRoot, Steps: []diskStep{step, step}})
			for _, r := range reports {
				Expect(r.Errors[0]).To(And(ContainSubstring(refused), MatchRegexp(`\d+ MiB must be freed on `+containerdRoot)))
				Expect(r.Lowest.Bytes).To(BeNumerically(">", r.line(minFree)), "the line was not crossed")
				Expect(r.After.Bytes).To(BeNumerically(">", r.Before.Bytes-8*images.MiB), "all was given back")
			}
			Expect(reports[0].Lowest.Bytes).To(BeNumerically("<", reports[0].Before.Bytes-64*images.MiB), "it was being unpacked")
			Expect(reports[1].Lowest.Bytes).To(BeNumerically(">", reports[1].Before.Bytes-8*images.MiB), "it is not tried again without more room")
			Expect(p.fetched(1)).To(Equal(1), "nor fetched again")
			Expect(remains(ctx, n, p)).To(BeEmpty())
		},
		Entry("by a seed", seed, SpecTimeout(diskTimeout)),
		Entry("by a peer", peer, SpecTimeout(diskTimeout)),
	)

	It("so is one that is already there and only to be unpacked, and what is there stays", func(ctx context.Context) {
		p := pairOn(n, "imported", images.Zeros("imported", 400*images.MiB))
		var archive bytes.Buffer
		Expect(images.WriteArchive(&archive, p.ref.String(), p.image)).To(Succeed())
		Expect(n.ImportPacked(ctx, &archive)).To(Succeed())
		req := p.on(v1alpha1.RegistryPolicyLocal)
		req.Digest = ""
		step := diskStep{Pulls: []helperRequest{req}}
		reports := onDisk(ctx, n, diskRequest{MinFreeDisk: minFree, Disk: containerdRoot, Steps: []diskStep{step, step}})
		for _, r := range reports {
			Expect(r.Errors[0]).To(ContainSubstring(refused))
			Expect(r.Lowest.Bytes).To(BeNumerically(">", r.line(minFree)))
		}
		Expect(reports[1].Lowest.Bytes).To(BeNumerically(">", reports[1].Before.Bytes-8*images.MiB), "it is looked at before it is tried again")
		Expect(remains(ctx, n, p)).To(ConsistOf(p.digest.String(), p.layers()[0]), "what somebody imported")
	}, SpecTimeout(diskTimeout))

	It("one of very many files is stopped before it takes the inodes that the kubelet wants", func(ctx context.Context) {
		p := pairOn(n, "files", images.Empty("file", 120_000))
		step := diskStep{Pulls: []helperRequest{p.on(peer)}}
		reports := onDisk(ctx, n, diskRequest{
			MinFreeDisk: 0.01, Disk: containerdRoot, Steps: []diskStep{step, step},
			KubeletConfig: "{apiVersion: kubelet.config.k8s.io/v1beta1, kind: KubeletConfiguration, evictionHard: {imagefs.inodesFree: 95%}}",
		})
		for _, r := range reports {
			Expect(r.Errors[0]).To(And(ContainSubstring(refused), MatchRegexp(`\d+ inodes must be freed on `+containerdRoot)))
			Expect(r.Lowest.Inodes).To(BeNumerically(">", r.Size.Inodes/100*95))
		}
		Expect(reports[1].Lowest.Inodes).To(BeNumerically(">", reports[1].Before.Inodes-100))
		Expect(remains(ctx, n, p)).To(BeEmpty())
	}, SpecTimeout(diskTimeout))

	It("it does not end the pull that runs beside it", func(ctx context.Context) {
		zeros := pairOn(n, "beside", images.Zeros("beside", 400*images.MiB))
		honest := pairOn(n, "honest", images.Layers("honest", 4, 4*images.MiB)...)
		honest.mirror.SetRate(4 * images.MiB)
		reports := onDisk(ctx, n, diskRequest{MinFreeDisk: minFree, Disk: containerdRoot, Steps: []diskStep{
			{Pulls: []helperRequest{zeros.on(peer), honest.on(peer)}},
		}})
		Expect(reports[0].Errors).To(ConsistOf(ContainSubstring(refused), BeEmpty()))
		Expect(reports[0].Lowest.Bytes).To(BeNumerically(">", reports[0].line(minFree)))
	}, SpecTimeout(diskTimeout))
})

var _ = Describe("On a node with little room whose images are unpacked only after they have come", func() {
	It("a layer that is larger than it looks is stopped in time", func(ctx context.Context) {
		n, err := machines.AddNode(ctx, cluster.NodeOptions{Snapshotter: "native", Disks: []cluster.Disk{{Path: containerdRoot, Bytes: 16 * gib}}})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(func(ctx context.Context) { Expect(machines.RemoveNode(ctx, n)).To(Succeed()) }, NodeTimeout(specTimeout))
		const minFree = 0.98
		p := pairOn(n, "native", images.Zeros("native", 400*images.MiB))
		reports := onDisk(ctx, n, diskRequest{MinFreeDisk: minFree, Disk: containerdRoot, Steps: []diskStep{{Pulls: []helperRequest{p.on(seed)}}}})
		Expect(reports[0].Errors[0]).To(ContainSubstring(refused))
		Expect(reports[0].Lowest.Bytes).To(BeNumerically(">", reports[0].line(minFree)))
		Expect(reports[0].After.Bytes).To(BeNumerically(">", reports[0].Before.Bytes-8*images.MiB))
	}, SpecTimeout(diskTimeout))
})

var _ = Describe("On a node whose snapshots have a disk of their own", Ordered, ContinueOnFailure, func() {
	var n *cluster.Node
	BeforeAll(func(ctx context.Context) {
		n = nodeWithDisks(ctx, cluster.Disk{Path: containerdRoot, Bytes: 4 * gib}, cluster.Disk{Path: snapshotRoot, Bytes: 16 * gib})
	}, NodeTimeout(specTimeout))

	It("content counts on the one, and what is unpacked on the other", func(ctx context.Context) {
		const minFree = 0.97 // room for 80 MiB of content, and 320 MiB of snapshots
		p := pairOn(n, "divided", images.Layer("divided", 50*images.MiB))
		reports := onDisk(ctx, n, diskRequest{MinFreeDisk: minFree, Disk: containerdRoot, Steps: []diskStep{{Pulls: []helperRequest{p.on(peer)}}}})
		Expect(reports[0].Errors[0]).To(BeEmpty())

		zeros := pairOn(n, "divided-zeros", images.Zeros("divided-zeros", 600*images.MiB))
		reports = onDisk(ctx, n, diskRequest{MinFreeDisk: minFree, Disk: snapshotRoot, Steps: []diskStep{{Pulls: []helperRequest{zeros.on(peer)}}}})
		Expect(reports[0].Errors[0]).To(And(ContainSubstring(refused), ContainSubstring("must be freed on "+snapshotRoot)))
		Expect(reports[0].Lowest.Bytes).To(BeNumerically(">", reports[0].line(minFree)))
	}, SpecTimeout(diskTimeout))

	It("a full disk is told as such, also where nobody looks at it, and all that was written goes", func(ctx context.Context) {
		p := pairOn(n, "off", images.Layer("off", 4*images.MiB), images.Zeros("off", 400*images.MiB))
		reports := onDisk(ctx, n, diskRequest{MinFreeDisk: 0, Disk: snapshotRoot, Steps: []diskStep{
			{Leave: 256 * images.MiB},
			{Pulls: []helperRequest{p.on(peer)}},
		}})
		Expect(reports[1].Errors[0]).To(ContainSubstring(refused))
		Expect(reports[1].After.Bytes).To(BeNumerically(">", reports[1].Before.Bytes-8*images.MiB))
		Expect(remains(ctx, n, p)).To(BeEmpty())
	}, SpecTimeout(diskTimeout))
})

var _ = Describe("When there is too little room on a node", func() {
	const (
		size    = 8 * gib
		minFree = 0.95 // room for 320 MiB
	)
	var n *cluster.Node
	BeforeEach(func(ctx context.Context) {
		n = nodeWithDisks(ctx, cluster.Disk{Path: containerdRoot, Bytes: size})
	}, NodeTimeout(specTimeout))
	has := func(ctx context.Context, p *pair) bool {
		GinkgoHelper()
		names, err := n.Ctr(ctx, "images", "list", "--quiet")
		Expect(err).NotTo(HaveOccurred())
		return strings.Contains(names, p.ref.String())
	}

	It("images that Sluice brought and nobody wants or uses make room for one that is wanted, and no others", func(ctx context.Context) {
		wanted := pairOn(n, "wanted", images.Layer("wanted", 10*images.MiB))
		unwanted := pairOn(n, "unwanted", images.Layer("unwanted", 50*images.MiB))
		used := pairOn(n, "used", images.Layer("used", 10*images.MiB))
		imported := pairOn(n, "imported-too", images.Layer("imported-too", 10*images.MiB))
		fits := pairOn(n, "fits", images.Layer("fits", 60*images.MiB))
		large := pairOn(n, "large", images.Layer("large", 200*images.MiB))
		var archive bytes.Buffer
		Expect(images.WriteArchive(&archive, imported.ref.String(), imported.image)).To(Succeed())
		Expect(n.Import(ctx, &archive)).To(Succeed())
		spec := []helperRequest{wanted.on(peer), fits.on(peer), large.on(peer)}
		reports := onDisk(ctx, n, diskRequest{MinFreeDisk: minFree, Disk: containerdRoot, Steps: []diskStep{
			{Pulls: []helperRequest{wanted.on(peer), used.on(peer)}},
			{Pulls: []helperRequest{unwanted.on(peer)}},
		}})
		Expect(reports[0].Errors).To(HaveEach(BeEmpty()))
		Expect(reports[1].Errors).To(HaveEach(BeEmpty()))
		createContainer(ctx, n, used.ref.String())

		reports = onDisk(ctx, n, diskRequest{MinFreeDisk: minFree, Disk: containerdRoot, Steps: []diskStep{
			{Spec: append(spec, unwanted.on(peer)), Pulls: []helperRequest{fits.on(peer)}},
			{Spec: spec, Pulls: []helperRequest{large.on(peer)}},
			{Pulls: []helperRequest{fits.on(peer)}},
		}})
		Expect(reports[0].Errors[0]).To(ContainSubstring(refused), "all are wanted, or used")
		Expect(reports[1].Errors[0]).To(ContainSubstring(refused), "nothing makes room enough")
		Expect(reports[1].After.Bytes).To(BeNumerically("<", reports[1].Before.Bytes+images.MiB), "and so nothing is given up")
		Expect(reports[2].Errors[0]).To(BeEmpty(), "the unwanted one was given up")
		for p, want := range map[*pair]bool{wanted: true, used: true, unwanted: false, imported: true, fits: true} {
			Expect(has(ctx, p)).To(Equal(want), p.ref.String())
		}
		Expect(remains(ctx, n, unwanted)).To(BeEmpty())
	}, SpecTimeout(diskTimeout))

	It("unfinished content goes under pressure, wanted or not", func(ctx context.Context) {
		p := pairOn(n, "unfinished", images.Layers("unfinished", 3, 20*images.MiB)...)
		DeferCleanup(p.mirror.Inject(upstream.Of(p.layers()[2]), 0, upstream.Answer(404)))
		req := p.on(peer)
		req.Timeout = 10 * time.Second
		reports := onDisk(ctx, n, diskRequest{MinFreeDisk: minFree, Disk: containerdRoot, Steps: []diskStep{
			{Spec: []helperRequest{req}, Pulls: []helperRequest{req}},
			{Leave: 256 * images.MiB},
			{WatchUntil: 316 * images.MiB},
		}})
		Expect(reports[0].Errors[0]).To(ContainSubstring(nodeagent.ErrNotOnMirror.Error()))
		Expect(reports[0].After.Bytes).To(BeNumerically("<", reports[0].Before.Bytes-60*images.MiB), "it stays as long as there is room")
		Expect(reports[2].After.Bytes).To(BeNumerically(">", reports[2].Before.Bytes+60*images.MiB))
		Expect(remains(ctx, n, p)).To(BeEmpty())
	}, SpecTimeout(diskTimeout))
})

// createContainer has CRI create a container of an image. It does not run.
func createContainer(ctx context.Context, n *cluster.Node, image string) {
	GinkgoHelper()
	connection, err := grpc.NewClient("unix://"+n.ContainerdSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	Expect(err).NotTo(HaveOccurred())
	defer func() { _ = connection.Close() }()
	service := cri.NewRuntimeServiceClient(connection)
	sandbox := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "pod", Uid: "uid", Namespace: "default"},
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE},
		}},
	}
	pod, err := service.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	Expect(err).NotTo(HaveOccurred())
	_, err = service.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: pod.PodSandboxId, SandboxConfig: sandbox,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "container"}, Image: &cri.ImageSpec{Image: image}, Command: []string{"/none"},
			Linux: &cri.LinuxContainerConfig{},
		},
	})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func(ctx context.Context) {
		GinkgoHelper()
		again, err := grpc.NewClient("unix://"+n.ContainerdSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		Expect(err).NotTo(HaveOccurred())
		defer func() { _ = again.Close() }()
		_, err = cri.NewRuntimeServiceClient(again).RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId})
		Expect(err).NotTo(HaveOccurred())
	}, NodeTimeout(specTimeout))
}
