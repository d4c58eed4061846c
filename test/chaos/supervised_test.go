// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
)

const (
	nodes       = 4
	controllers = 2
	// rate has a distribution take some seconds, so that a fault falls into it.
	rate = 2 * images.MiB
	// seedTimeout is short, so that a fault can last longer.
	seedTimeout = 20 * time.Second
	// other is a second namespace.
	other = "chaos"
)

// supervisedCluster is the cluster, and what stands in for the kubelet and the Deployment: it
// starts our programs again when they end.
type supervisedCluster struct {
	*testing.T
	*stack.Stack
	seeds *stack.SeedWatch

	ctx  context.Context
	work sync.WaitGroup

	mu   sync.Mutex
	off  map[string]bool // nodes that are without power, or gone
	down map[int]bool    // controllers that are not started again
}

func start(ctx context.Context, t *testing.T, logs string) *supervisedCluster {
	g := NewWithT(t)
	if logs != "" {
		var err error
		logs, err = os.MkdirTemp(logs, "chaos-")
		g.Expect(err).NotTo(HaveOccurred())
		t.Log("logs are in", logs)
	}
	s, err := stack.Start(ctx, stack.Options{
		Nodes: cluster.Nodes(nodes), Controllers: controllers, Race: true, LogDir: logs, Logf: t.Logf,
		ControllerFlags: []string{"--seed-timeout=" + seedTimeout.String(), "--agent-timeout=15s", "--verbosity=1"},
		AgentFlags:      []string{"--no-progress-timeout=10s"},
	})
	g.Expect(err).NotTo(HaveOccurred())
	ctx, cancel := context.WithCancel(ctx)
	c := &supervisedCluster{T: t, Stack: s, ctx: ctx, off: map[string]bool{}, down: map[int]bool{}}
	t.Cleanup(func() {
		cancel()
		c.work.Wait()
		g.Expect(s.Stop()).To(Succeed())
	})
	g.Expect(s.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: other}})).To(Succeed())
	c.seeds, err = s.WatchSeeds(ctx)
	g.Expect(err).NotTo(HaveOccurred())
	t.Cleanup(c.seeds.Stop)
	s.Upstream.SetRate(rate)
	for i, process := range s.Controllers() {
		up := func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return !c.down[i]
		}
		c.keep(process, up, func() (*cluster.Process, error) { return s.RestartController(ctx, i) })
	}
	for _, node := range s.Cluster.Nodes() {
		c.keepAgent(node)
	}
	return c
}

func (c *supervisedCluster) keepAgent(node *cluster.Node) {
	on := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.off[node.Name]
	}
	c.keep(c.Agent(node), on, func() (*cluster.Process, error) { return c.StartAgent(c.ctx, node) })
}

// keep starts a program again whenever it has ended, as long as its machine runs.
func (c *supervisedCluster) keep(process *cluster.Process, may func() bool, start func() (*cluster.Process, error)) {
	const pause = 100 * time.Millisecond
	c.work.Go(func() {
		for {
			select {
			case <-process.Done():
			case <-c.ctx.Done():
				return
			}
			if may() {
				if next, err := start(); next != nil {
					process = next
				} else {
					c.Logf("starting again: %v", err)
				}
			}
			if wait(c.ctx, pause) != nil {
				return
			}
		}
	})
}

// power turns a node on or off. A node that is off gets no agent.
func (c *supervisedCluster) power(node *cluster.Node, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off[node.Name] = !on
}

// keepDown sets whether a controller that has ended stays down.
func (c *supervisedCluster) keepDown(controller int, down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down[controller] = down
}

// leader is the controller that got the lease last, by what they log.
func (c *supervisedCluster) leader() (leader int) {
	var since time.Time
	for i, process := range c.Controllers() {
		log, err := os.ReadFile(process.Log)
		if err != nil {
			c.Fatal(err)
		}
		for lines := bufio.NewScanner(bytes.NewReader(log)); lines.Scan(); {
			var line struct {
				Time time.Time
				Msg  string
			}
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "Successfully acquired lease" && line.Time.After(since) {
				leader, since = i, line.Time
			}
		}
	}
	return leader
}

// nodeAt is the node with an address; nil if there is none any more.
func (c *supervisedCluster) nodeAt(address string) *cluster.Node {
	all := c.Cluster.Nodes()
	if at := slices.IndexFunc(all, func(n *cluster.Node) bool { return n.IP == address }); at >= 0 {
		return all[at]
	}
	return nil
}
