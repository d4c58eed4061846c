// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-dev/sluice/test/cluster"
)

// ownerVariable makes this test program the owner of a cluster, and says how it
// comes to its end.
const ownerVariable = "SLUICE_TEST_CLUSTER_OWNER"

// The ways in which an owner ends without calling Stop.
const (
	endKilled = "killed" // by whoever started it
	endPanic  = "panic"
	endExit   = "exit"
)

// own starts a cluster, prints its folder and ends in the way asked for.
func own(end string) {
	ctx := context.Background()
	// Only the first needs Pods: what the kernel does about them is the same.
	opts := cluster.Options{Nodes: cluster.Nodes(1), ContainerdOnly: end != endKilled}
	c, err := cluster.Start(ctx, opts)
	if err != nil {
		panic(err)
	}
	if !opts.ContainerdOnly {
		if err := startPod(ctx, c); err != nil {
			panic(err)
		}
	}
	fmt.Println(c.Dir)
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	if end == endPanic {
		panic("as asked for")
	}
}

var _ = Describe("A cluster whose owner ends without stopping it", func() {
	DescribeTable("leaves nothing behind", func(ctx context.Context, end string) {
		owner, stdin, dir := startOwner(end)
		traces := lookFor(dir)
		Expect(traces.processes).To(ContainElement(ContainSubstring("containerd")), "sees what there is")
		Expect(traces.gone()).NotTo(Succeed())

		if end == endKilled {
			Expect(traces.processes).To(ContainElement(ContainSubstring("/pause")), "a Pod runs")
			Expect(owner.Process.Signal(unix.SIGKILL)).To(Succeed())
		} else {
			Expect(stdin.Close()).To(Succeed())
		}
		// The janitor has the owner's standard error, so this waits for it.
		_ = owner.Wait() // well or badly, depending on the end
		Expect(traces.gone()).To(Succeed())
	},
		Entry("when it is killed", endKilled, SpecTimeout(specTimeout)),
		Entry("when it panics", endPanic, SpecTimeout(specTimeout)),
		Entry("when it exits", endExit, SpecTimeout(specTimeout)),
	)

	It("leaves what the next one removes, when its janitor is killed as well", func(ctx context.Context) {
		owner, _, dir := startOwner(endExit)
		traces := lookFor(dir)
		janitor := childOf(owner.Process.Pid, "janitor")
		Expect(unix.Kill(janitor, unix.SIGKILL)).To(Succeed())
		Expect(owner.Process.Signal(unix.SIGKILL)).To(Succeed())
		Expect(owner.Wait()).NotTo(Succeed())

		next, err := cluster.Start(ctx, cluster.Options{Nodes: cluster.Nodes(1), ContainerdOnly: true})
		Expect(err).NotTo(HaveOccurred())
		Expect(next.Stop()).To(Succeed())
		Expect(traces.gone()).To(Succeed())
	}, SpecTimeout(specTimeout))
})

// startOwner starts this program as an owner and returns when it has started
// its cluster in dir.
func startOwner(end string) (owner *exec.Cmd, stdin interface{ Close() error }, dir string) {
	GinkgoHelper()
	owner = exec.Command("/proc/self/exe")
	owner.Env = append(os.Environ(), ownerVariable+"="+end)
	var stderr strings.Builder
	owner.Stderr = &stderr
	in, err := owner.StdinPipe()
	Expect(err).NotTo(HaveOccurred())
	out, err := owner.StdoutPipe()
	Expect(err).NotTo(HaveOccurred())
	Expect(owner.Start()).To(Succeed())
	DeferCleanup(func() { _ = owner.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	Expect(err).NotTo(HaveOccurred(), "%s", &stderr)
	return owner, in, strings.TrimSpace(line)
}

// startPod runs a Pod on the first node.
func startPod(ctx context.Context, c *cluster.Cluster) error {
	config, err := c.RESTConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	if _, err = client.CoreV1().Pods("default").Create(ctx, pausePod(c.Nodes()[0]), metav1.CreateOptions{}); err != nil {
		return err
	}
	_, err = c.Kubectl(ctx, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=30s")
	return err
}
