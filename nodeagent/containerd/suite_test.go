// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/nodeagent/containerd"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/runtimetest"
	"github.com/sluice-dev/sluice/test/upstream"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == helperArgument {
		os.Exit(pullOnNode(os.Args[2]))
	}
	if len(os.Args) == 3 && os.Args[1] == diskArgument {
		os.Exit(diskOnNode(os.Args[2]))
	}
	os.Exit(m.Run())
}

func TestContainerd(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "Runtime on containerd")
}

var (
	// machines are shared by all specs. Those that need one node use the first. CRI uses the
	// snapshotter native on the last.
	machines *cluster.Cluster
	node     *cluster.Node
	// direct is a client of that node's containerd, beside the Runtime's.
	direct *client.Client
)

var _ = BeforeSuite(func(ctx context.Context) {
	mirror, err := cluster.DefaultMirror(ctx, GinkgoLogr.Info)
	Expect(err).NotTo(HaveOccurred())
	nodes := cluster.Nodes(3)
	nodes[2].Snapshotter = "native"
	machines, err = cluster.Start(ctx, cluster.Options{Nodes: nodes, ContainerdOnly: true, Mirror: mirror, Logf: GinkgoLogr.Info})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Expect(machines.Stop()).To(Succeed()) })
	node = machines.Nodes()[0]
}, NodeTimeout(10*time.Minute))

const namespace = "k8s.io"

// options of a Runtime on the node.
func options() containerd.Options {
	return containerd.Options{
		Address:            node.ContainerdSocket,
		Namespace:          namespace,
		RegistryConfigPath: node.CertsDir,
		ScratchPath:        filepath.Join(node.Dir, "scratch"),
		NoProgressTimeout:  10 * time.Second,
		UserAgent:          "sluice-agent/test",
		Log:                GinkgoLogr,
	}
}

// No spec leaves a goroutine behind; its registries do not either.
var _ = BeforeEach(func() {
	before := goleak.IgnoreCurrent()
	// Specs add nodes and restart daemons, and the mirrors with them.
	daemons := goleak.IgnoreAnyFunction("github.com/sluice-dev/sluice/test/cluster.startProcess.func2")
	machines := goleak.IgnoreAnyFunction("github.com/sluice-dev/sluice/test/cluster.startMachine.func2")
	keepers := goleak.IgnoreAnyFunction("github.com/sluice-dev/sluice/test/cluster.(*Daemon).keep")
	DeferCleanup(func() { Expect(goleak.Find(before, daemons, machines, keepers)).To(Succeed()) })
	var err error
	direct, err = client.New(node.ContainerdSocket, client.WithDefaultNamespace(namespace))
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(direct.Close)
})

func start(opts containerd.Options) *containerd.Runtime {
	GinkgoHelper()
	runtime, err := containerd.New(opts)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(runtime.Close)
	return runtime
}

// serve starts a registry at the gateway.
func serve() *upstream.Server {
	GinkgoHelper()
	server, err := upstream.New(upstream.Options{})
	Expect(err).NotTo(HaveOccurred())
	Expect(server.Start(machines.GatewayIP + ":0")).To(Succeed())
	DeferCleanup(server.Close)
	return server
}

// hosts writes the node's hosts.toml for a registry.
func hosts(registry, format string, args ...any) {
	GinkgoHelper()
	Expect(node.WriteHostsTOML(registry, fmt.Sprintf(format, args...))).To(Succeed())
}

// record looks an image name up.
func record(name string) (runtimetest.Record, bool) {
	GinkgoHelper()
	image, err := direct.ImageService().Get(context.Background(), name)
	if errdefs.IsNotFound(err) {
		return runtimetest.Record{}, false
	}
	Expect(err).NotTo(HaveOccurred())
	return runtimetest.Record{Digest: image.Target.Digest, Pinned: image.Labels["io.cri-containerd.pinned"] == "pinned"}, true
}

func deleteName(name string) {
	GinkgoHelper()
	Expect(direct.ImageService().Delete(context.Background(), name, images.SynchronousDelete())).To(Succeed())
}

// point makes or moves a name as another client would, for content that is there.
func point(name string, d digest.Digest, pinned bool) {
	GinkgoHelper()
	ctx := context.Background()
	known, err := direct.ImageService().List(ctx, "target.digest=="+d.String())
	Expect(err).NotTo(HaveOccurred())
	Expect(known).NotTo(BeEmpty())
	image := images.Image{Name: name, Target: known[0].Target, Labels: map[string]string{"io.cri-containerd.image": "managed"}}
	if pinned {
		image.Labels["io.cri-containerd.pinned"] = "pinned"
	}
	_, err = direct.ImageService().Create(ctx, image)
	if errdefs.IsAlreadyExists(err) {
		_, err = direct.ImageService().Update(ctx, image)
	}
	Expect(err).NotTo(HaveOccurred())
}

// hang stops the node's daemon, so that it does not answer, until resume is called.
func hang() (resume func()) {
	daemon := node.Containerd.Process()
	daemon.Signal(unix.SIGSTOP)
	return func() { daemon.Signal(unix.SIGCONT) }
}

// contentSource is an upstream.Server for the conformance suite.
type contentSource struct{ *upstream.Server }

func (s contentSource) Withhold(d digest.Digest) func() {
	return s.Inject(upstream.Of(d.String()), 0, upstream.Answer(404))
}

func (s contentSource) SetDown(down bool) {
	if down {
		Expect(s.CutOff(upstream.Refuse)).To(Succeed())
		return
	}
	Expect(s.Restore()).To(Succeed())
}

func (s contentSource) Protect(repository string) {
	s.Server.Protect(repository, &upstream.Auth{
		Scheme:    upstream.Bearer,
		Users:     map[string]string{runtimetest.User: runtimetest.Password, runtimetest.OverLimit: runtimetest.Password},
		OverLimit: map[string]bool{runtimetest.OverLimit: true},
	})
}

func (s contentSource) Fetched(d digest.Digest) int {
	n := 0
	for _, t := range s.Requests().Tallies() {
		if t.Digest == d.String() {
			n += t.Complete + t.Partial
		}
	}
	return n
}

func (s contentSource) Resolved() int {
	return len(s.Requests().Where(upstream.Manifests, func(r upstream.Request) bool {
		return digest.Digest(r.Reference).Validate() != nil
	}))
}

var _ = Describe("containerd", func() {
	runtimetest.Conformance(func(context.Context) *runtimetest.TestNode {
		registry, mirror := serve(), serve()
		const configuration = `
server = %q
[host.%q]
  capabilities = ["pull"]
`
		hosts(registry.Host(), configuration, registry.URL(), mirror.URL())
		return &runtimetest.TestNode{
			Spoil: func() {
				hosts(registry.Host(), configuration+"[host.'https://another.test']\nca = '/not/here.crt'\n", registry.URL(), mirror.URL())
			},
			Runtime:  start(options()),
			Registry: registry.Host(),
			Upstream: contentSource{registry},
			Mirror:   contentSource{mirror},
			Record:   record,
			Delete:   deleteName,
			Point:    point,
			Hang:     hang,
			Unlabel:  unlabel,
			Created:  watchCreated,
		}
	})
})
