// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

// agentProgram is the program, built once.
var agentProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sluice-agent-")
	if err != nil {
		return "", err
	}
	program := filepath.Join(dir, "sluice-agent")
	build := exec.Command("go", "build", "-o", program, "../../cmd/sluice-agent")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	return program, nil
})

var _ = AfterSuite(func() {
	if program, err := agentProgram(); err == nil {
		Expect(os.RemoveAll(filepath.Dir(program))).To(Succeed())
	}
})

// check runs sluice-agent --check on a node. It returns what is printed, with single spaces, and the exit
// code.
func check(ctx context.Context, n *cluster.Node, flags ...string) (output string, code int) {
	GinkgoHelper()
	program, err := agentProgram()
	Expect(err).NotTo(HaveOccurred())
	output, err = n.Run(ctx, program, append([]string{"--check"}, flags...)...)
	GinkgoWriter.Println(output)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code, err = exit.ExitCode(), nil
	}
	Expect(err).NotTo(HaveOccurred())
	var lines []string
	for line := range strings.Lines(output) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, "\n"), code
}

// configure replaces all hosts.toml files of a node until the spec ends.
func configure(n *cluster.Node, files map[string]string) {
	GinkgoHelper()
	remove := func() {
		entries, err := os.ReadDir(n.CertsDir)
		Expect(err).NotTo(HaveOccurred())
		for _, entry := range entries {
			Expect(os.RemoveAll(filepath.Join(n.CertsDir, entry.Name()))).To(Succeed())
		}
	}
	remove()
	DeferCleanup(remove)
	for registry, text := range files {
		Expect(n.WriteHostsTOML(registry, text)).To(Succeed())
	}
}

// reconfigure restarts a node's containerd with another configuration until the spec ends. It returns why
// that containerd does not become ready.
func reconfigure(ctx context.Context, n *cluster.Node, old, replacement string) error {
	GinkgoHelper()
	path := filepath.Join(n.Dir, "etc/containerd/config.toml")
	before, err := os.ReadFile(path)
	Expect(err).NotTo(HaveOccurred())
	Expect(string(before)).To(ContainSubstring(old))
	restart := func(ctx context.Context, text string) error {
		Expect(os.WriteFile(path, []byte(text), 0o600)).To(Succeed())
		n.Containerd.Kill()
		return startAgain(ctx, n)
	}
	DeferCleanup(restart, string(before), NodeTimeout(specTimeout))
	return restart(ctx, strings.Replace(string(before), old, replacement, 1))
}

// startAgain starts a node's containerd, and the mirror, which ends with it.
func startAgain(ctx context.Context, n *cluster.Node) error {
	if err := n.Containerd.Start(ctx); err != nil {
		return err
	}
	return n.Mirror.Start(ctx)
}

var _ = Describe("sluice-agent --check", Serial, func() {
	var n *cluster.Node
	BeforeEach(func() {
		n = machines.Nodes()[1]
		configure(n, map[string]string{"_default": fmt.Sprintf("[host.%q]\n", n.MirrorURL())})
	})

	It("prints how everything is, and ends with 0 where nothing keeps images away", func(ctx context.Context) {
		output, code := check(ctx, n)
		Expect(strings.Split(output, "\n")).To(HaveExactElements(
			HavePrefix("ok containerd v2.4.2 answers at /run/containerd/containerd.sock"),
			Equal("ok transfer service is there"),
			Equal("ok snapshotter overlayfs"),
			Equal("ok config_path /etc/containerd/certs.d"),
			Equal("ok discard_unpacked_layers false"),
			MatchRegexp(`^ok disk free: \d+ % at /var/lib/containerd/.*overlayfs, of which 15 % must stay free$`),
			Equal("ok scratch path /run/sluice/check can be written"),
			Equal("ok certificate authorities those of the system are seen here"),
			Equal("ok hosts.toml of _default names "+n.MirrorURL()),
			Equal("ok mirror "+n.MirrorURL()+" answers"),
		))
		Expect(code).To(Equal(0))
		Expect(filepath.Join(n.Dir, "run/sluice/check")).NotTo(BeADirectory(), "nothing is left")
	}, SpecTimeout(specTimeout))

	DescribeTable("finds in containerd's configuration", func(ctx context.Context, old, replacement, want string, wantCode int) {
		Expect(reconfigure(ctx, n, old, replacement)).To(Succeed())
		output, code := check(ctx, n)
		Expect(output).To(ContainSubstring(want))
		Expect(code).To(Equal(wantCode))
	},
		Entry("that it throws layers away", "discard_unpacked_layers = false", "discard_unpacked_layers = true",
			"warning discard_unpacked_layers is true, ", 0, SpecTimeout(specTimeout)),
		Entry("that it reads other files than the agent", `config_path = "/etc/containerd/certs.d"`, `config_path = "/etc/other"`,
			"warning config_path containerd reads /etc/other for the kubelet and the agent /etc/containerd/certs.d, ", 0, SpecTimeout(specTimeout)),
		Entry("that it has no transfer service", "version = 3\n", "version = 3\ndisabled_plugins = ['io.containerd.grpc.v1.transfer']\n",
			"error transfer service is not there, ", 1, SpecTimeout(specTimeout)),
		Entry("that a runtime has another snapshotter", "\n    [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]",
			"\n    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\n"+
				"    runtime_type = 'io.containerd.runc.v2'\n    snapshotter = 'native'\n"+
				"    [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]",
			"ok snapshotter overlayfs; runtimes that have another one unpack when a Pod starts: kata (native)", 0, SpecTimeout(specTimeout)),
	)

	It("finds that the transfer service may not unpack into CRI's snapshotter", func(ctx context.Context) {
		output, _ := check(ctx, machines.Nodes()[2])
		Expect(output).To(ContainSubstring("ok snapshotter native; a seed unpacks an image only after it has come, unless "))
	}, SpecTimeout(specTimeout))

	It("finds that CRI does not answer", func(ctx context.Context) {
		brief, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		Expect(reconfigure(brief, n, "version = 3\n", "version = 3\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n")).
			To(MatchError(context.DeadlineExceeded), "which the node waits for")
		output, code := check(ctx, n)
		Expect(output).To(ContainSubstring("error CRI containerd's plugin for the kubelet does not answer, see its log: "))
		Expect(output).NotTo(ContainSubstring("snapshotter"))
		Expect(code).To(Equal(1))
	}, SpecTimeout(specTimeout))

	DescribeTable("finds in hosts.toml", func(ctx context.Context, text, want string) {
		configure(n, map[string]string{"registry_5000_": text})
		output, code := check(ctx, n)
		Expect(output).To(ContainSubstring(want))
		Expect(code).To(Equal(0))
	},
		Entry("what containerd does not accept", "[host.'http://a:1']\ndial_timeout = '200'\n",
			"warning hosts.toml of registry:5000 containerd goes on as if it were not there, so mend it: time: missing unit in duration \"200\"",
			SpecTimeout(specTimeout)),
		Entry("a CA file that is not there", "[host.'https://127.0.0.1:1']\nca = '/not/here.crt'\n",
			"warning hosts.toml of registry:5000 the agent leaves out what containerd may use: host \"https://127.0.0.1:1\": unable to read CA cert \"/not/here.crt\"",
			SpecTimeout(specTimeout)),
		Entry("names that k3s rewrites", "[host.'https://127.0.0.1:1']\n[host.'https://127.0.0.1:1'.rewrite]\n'(.*)' = 'proxy/$1'\n",
			"warning hosts.toml of registry:5000 the agent leaves out what containerd may use: host \"https://127.0.0.1:1\": its rewrite patterns are followed by the containerd of k3s alone",
			SpecTimeout(specTimeout)),
		Entry("no mirror", "server = 'http://registry:5000'\n",
			"warning mirror no hosts.toml below /etc/containerd/certs.d names one that the agent can ask", SpecTimeout(specTimeout)),
		Entry("a mirror that does not run", "[host.'http://127.0.0.1:1']\n",
			"warning mirror http://127.0.0.1:1 does not answer the agent: connect: connection refused: ", SpecTimeout(specTimeout)),
	)

	It("finds a mirror that answers nothing", func(ctx context.Context) {
		mirror := serve()
		Expect(mirror.CutOff(upstream.Hang)).To(Succeed())
		configure(n, map[string]string{"_default": fmt.Sprintf("[host.%q]\n", mirror.URL())})
		output, code := check(ctx, n)
		Expect(output).To(ContainSubstring("warning mirror " + mirror.URL() + " does not answer the agent: it answers nothing at all: "))
		Expect(code).To(Equal(0))
	}, SpecTimeout(specTimeout))

	It("finds that containerd does not answer", func(ctx context.Context) {
		n.Containerd.Kill() // the socket stays
		DeferCleanup(startAgain, n, NodeTimeout(specTimeout))
		output, code := check(ctx, n)
		Expect(output).To(ContainSubstring("error containerd does not answer at /run/containerd/containerd.sock, see that it runs: "))
		Expect(output).To(ContainSubstring("ok hosts.toml of _default "), "what does not need it")
		Expect(code).To(Equal(1))
	}, SpecTimeout(specTimeout))

	DescribeTable("finds on the node", func(ctx context.Context, flag, want string) {
		output, code := check(ctx, n, flag)
		Expect(output).To(ContainSubstring(want))
		Expect(code).To(Equal(1))
	},
		Entry("no socket", "--containerd-address=/run/other.sock", "error containerd has no socket /run/other.sock: ", SpecTimeout(specTimeout)),
		Entry("too little space", "--min-free-disk=99.999%",
			"error disk less than 100 % of the bytes or 5 % of the inodes, or just that, are free at /var/lib/containerd/", SpecTimeout(specTimeout)),
		Entry("a folder that cannot be written", "--scratch-path=/proc/sluice", "error scratch path make directory for hosts.toml files: mkdir /proc/sluice", SpecTimeout(specTimeout)),
	)

	It("finds that no certificate authority is there", func(ctx context.Context) {
		program, err := agentProgram()
		Expect(err).NotTo(HaveOccurred())
		output, err := n.Run(ctx, "env", "SSL_CERT_FILE=/none", "SSL_CERT_DIR=/none", program, "--check")
		Expect(err).NotTo(HaveOccurred())
		Expect(output).To(MatchRegexp("warning +certificate authorities +none is seen here"))
	}, SpecTimeout(specTimeout))
})

var _ = Describe("A containerd that throws layers away", Serial, func() {
	It("keeps those that come through the agent, and has what the kubelet pulled fetched once more", func(ctx context.Context) {
		Expect(reconfigure(ctx, node, "discard_unpacked_layers = false", "discard_unpacked_layers = true")).To(Succeed())
		runtime := start(options())
		kubelet := func(p *pair) {
			GinkgoHelper()
			_, err := imageService().PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: p.ref.String()}})
			Expect(err).NotTo(HaveOccurred())
			collectGarbage(ctx)
			Expect(status(ctx, p.ref.String())).NotTo(BeNil(), "the kubelet would run it")
		}
		for _, policy := range []v1alpha1.RegistryPolicy{seed, peer} {
			p := newPair("kept-" + string(policy))
			Expect(pull(ctx, runtime, p.request(policy))).To(HaveField("Digest", p.digest))
			collectGarbage(ctx)
			Expect(present(ctx, runtime, p)).To(BeTrue(), string(policy))
			kubelet(p) // as for the pull policy Always
			Expect(present(ctx, runtime, p)).To(BeTrue(), string(policy))

			p.push("thrown-away-"+string(policy), 2, images.MiB)
			kubelet(p)
			Expect(present(ctx, runtime, p)).To(BeFalse(), "without its layers no peer can have it")
			Expect(pull(ctx, runtime, p.request(policy))).To(HaveField("PulledBytes", BeNumerically(">=", 2*images.MiB)))
			collectGarbage(ctx)
			Expect(present(ctx, runtime, p)).To(BeTrue(), "and it stays so")
			Expect(pull(ctx, runtime, p.request(policy))).To(HaveField("PulledBytes", BeZero()), "it is not fetched again and again")
		}
	}, SpecTimeout(specTimeout))
})
